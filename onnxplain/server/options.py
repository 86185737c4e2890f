"""The options of `onnxplain serve`."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from onnxplain import environment
from onnxplain.errors import UsageError
from onnxplain.machine import cpus, memory_bytes, restricted

MESSAGE_BYTES = 64 * 2**20
GRAPH_CACHE_BYTES = 16 * 2**30
LOADS = 4  # models loading at a time: each takes several times its size while it does
MEMORY_SHARE = 0.7  # of the memory there is, for this process: the rest is for what nobody counts, and for files
BASE = 256 * 2**20  # bytes of Python, onnxruntime and an empty server
LEAST = 2 * BASE  # of a budget that leaves room for a model
ORIGIN = re.compile(r"https?://([a-z0-9._-]+|\[[0-9a-f:]+\])(:[0-9]+)?")  # as browsers write it


@dataclass(frozen=True)
class ServerOptions:
    """Flags of the server, with their defaults.

    port 0 takes a free one. metrics_port 0: none. slots: runs at a time, 0: by the CPUs; threads: that all runs share,
    0: the CPUs. queue_rows, queue_bytes: of one model, waiting and running. memory_budget: bytes of the process; 0: a
    share of what it may have. model_bytes: of models and their sessions, 0: by the budget. compile_queue: recipes that
    wait to be compiled; max_compile_seconds: of one. load_slots: models loading at a time, 0: by the CPUs;
    max_load_seconds: of loading one. readiness: see `is_ready`. lazy: models load when they are first asked for.
    graph_cache: folder or bucket of models made ready and compiled graphs, None: they are not kept;
    graph_cache_bytes: of a folder.
    poll_seconds: between looks at a source. drain_delay: seconds between the signal and refusing new work.
    idle_seconds: of a stream or connection that asks for nothing. http_port: None: no REST, 0: a free one; http_cors:
    origins of pages that may ask.
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
    slots: int = 0
    threads: int = 0
    max_batch_rows: int = 0
    queue_rows: int = 64
    queue_bytes: int = 256 * 2**20
    compile_queue: int = 32
    max_compile_seconds: float = 60.0
    max_message_bytes: int = MESSAGE_BYTES
    memory_budget: int = 0
    model_bytes: int = 0
    max_request_seconds: float = 60.0
    idle_seconds: float = 300.0
    max_connections: int = 2048
    drain_delay: float = 0.0
    drain_timeout: float = 20.0  # with five seconds of delay and what comes after it less than a pod's grace of 30
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
    graph_cache: str | None = None
    graph_cache_bytes: int = GRAPH_CACHE_BYTES

    def __post_init__(self) -> None:
        if self.memory_budget and self.memory_budget < LEAST and not self.model_bytes:
            raise UsageError(
                f"--memory-budget {self.memory_budget}: it is of the whole process, and an empty server takes some "
                f"{BASE} bytes; give {LEAST} or more."
            )
        for origin in self.http_cors:
            if not ORIGIN.fullmatch(origin):
                raise UsageError(
                    f"--http-cors {origin[:100]!r} is no origin that a browser sends: write https://HOST or "
                    "https://HOST:PORT, in lower case and without a path."
                )
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
        return self.threads or (0 if self.slots < 2 else max(1, cpus() // self.slots))

    @property
    def run_slots(self) -> int:
        """Runs at a time: by default as many as there are CPUs, which then share the threads; one on a GPU."""
        return self.slots or (1 if self._on_cuda else cpus())

    @property
    def _on_cuda(self) -> bool:
        from onnxplain.runtime.session import PROVIDERS, providers

        return PROVIDERS["cuda"] in providers(self.provider)

    @property
    def loads(self) -> int:
        """Models loading at a time: by default half the CPUs, at least two, so that a small one passes a large one."""
        return self.load_slots or min(LOADS, max(2, cpus() // 2))

    @property
    def rows_per_batch(self) -> int:
        """Rows put into one run at most: by default 8 on the CPU, 32 on a GPU."""
        return self.max_batch_rows or (32 if self._on_cuda else 8)

    @property
    def process_bytes(self) -> int:
        """Bytes this process may hold in all."""
        return self.memory_budget or int(MEMORY_SHARE * memory_bytes())

    @property
    def bounds_process(self) -> bool:
        """Whether the budget is of this very process: not in programs that have a server among other things."""
        return environment.begun() is not None

    @property
    def run_bytes(self) -> int:
        """Bytes that the tensors of all runs may take together: half of what an empty server leaves."""
        return max(self.process_bytes // 4, (self.process_bytes - BASE) // 2)

    @property
    def session_bytes(self) -> int:
        """Bytes of open sessions at most: three quarters of the other half.

        Less than `run_bytes`: packed weights count there as well, see `environment.begin`.
        """
        return self.model_bytes or self.run_bytes * 3 // 4

    @property
    def client_bytes(self) -> int:
        """Bytes of all that clients send and get, while it is held: the last quarter."""
        return self.run_bytes // 4

    def begin_environment(self) -> None:
        """Have all sessions of this process share threads and a bounded arena; for processes that only serve.

        The pool has `threads`, else the CPUs there are, whatever the slots: so a run answers to the last bit what
        `onnxplain run` does, and one that is alone has them all.
        """
        environment.begin(self.threads or (cpus() if restricted() else 0), self.run_bytes)


def default_cache() -> Path:
    """Where downloads are kept: $XDG_CACHE_HOME/onnxplain, or ~/.cache/onnxplain."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "onnxplain"
