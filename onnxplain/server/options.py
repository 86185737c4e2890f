"""The options of `onnxplain serve`."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from onnxplain.errors import UsageError
from onnxplain.machine import cpus, memory_bytes

MESSAGE_BYTES = 64 * 2**20
LOADS = 4  # models loading at a time: each takes several times its size while it does
MEMORY_SHARE = 0.4  # of the machine's memory, for sessions


@dataclass(frozen=True)
class ServerOptions:
    """Flags of the server, with their defaults.

    port 0 takes a free one. metrics_port 0: none. slots: runs at a time; threads: inside one run, 0 shares the CPUs
    among the slots. queue_rows, queue_bytes: of one model, waiting and running. memory_budget: bytes of open sessions.
    compile_queue: recipes that wait to be compiled; max_compile_seconds: of one. load_slots: models loading at a time,
    0: by the CPUs; max_load_seconds: of loading one. readiness: see `is_ready`. lazy: models load when they are first
    asked for. poll_seconds: between looks at a source. drain_delay: seconds between the signal and refusing new work.
    http_port: None: no REST, 0: a free one; http_cors: origins of pages that may ask.
    """

    host: str = "127.0.0.1"
    port: int = 8001
    socket: Path | None = None
    metrics_port: int = 8002
    http_port: int | None = None
    http_cors: tuple[str, ...] = ()
    control: str = "none"
    poll_seconds: float = 5.0
    provider: str = "auto"
    slots: int = 1
    threads: int = 0
    max_batch_rows: int = 0
    queue_rows: int = 64
    queue_bytes: int = 256 * 2**20
    compile_queue: int = 32
    max_compile_seconds: float = 60.0
    max_message_bytes: int = MESSAGE_BYTES
    memory_budget: int = 0
    max_request_seconds: float = 60.0
    drain_delay: float = 0.0
    drain_timeout: float = 30.0
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_ca: Path | None = None
    token_file: Path | None = None
    insecure: bool = False
    reflection: bool = True
    allow_export: bool = False
    isolate: bool = False
    isolate_memory: int = 4 * 2**30
    load_slots: int = 0
    max_load_seconds: float = 120.0
    readiness: str = "serving"
    lazy: bool = False
    load: tuple[str, ...] = ()
    cache: Path = field(default_factory=lambda: default_cache())

    def __post_init__(self) -> None:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise UsageError("--tls-cert and --tls-key go together: give both.")
        if self.tls_ca is not None and self.tls_cert is None:
            raise UsageError("--tls-ca (client certificates) needs --tls-cert and --tls-key.")
        if not self.loopback and self.tls_cert is None and not self.insecure:
            raise UsageError(
                f"--host {self.host} can be reached from other machines: give --tls-cert and --tls-key, or --insecure "
                "to serve in plain text."
            )

    @property
    def loopback(self) -> bool:
        """Whether only this machine can connect."""
        return self.socket is not None or self.host in ("localhost", "::1") or self.host.startswith("127.")

    @property
    def threads_per_run(self) -> int:
        """Threads inside one run; 0 leaves it to onnxruntime, which takes all CPUs."""
        return self.threads or (0 if self.slots == 1 else max(1, cpus() // self.slots))

    @property
    def loads(self) -> int:
        """Models loading at a time: by default half the CPUs, at least two, so that a small one passes a large one."""
        return self.load_slots or min(LOADS, max(2, cpus() // 2))

    @property
    def rows_per_batch(self) -> int:
        """Rows put into one run at most: by default 8 on the CPU, 32 on a GPU."""
        if self.max_batch_rows:
            return self.max_batch_rows
        from onnxplain.runtime.session import PROVIDERS, providers

        return 32 if PROVIDERS["cuda"] in providers(self.provider) else 8

    @property
    def session_bytes(self) -> int:
        """Bytes of open sessions at most."""
        if self.memory_budget:
            return self.memory_budget
        return int(MEMORY_SHARE * memory_bytes())


def default_cache() -> Path:
    """Where downloads are kept: $XDG_CACHE_HOME/onnxplain, or ~/.cache/onnxplain."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "onnxplain"
