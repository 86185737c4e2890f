"""What a Ray Serve application is told in its YAML, under `args`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from onnxplain.errors import UnknownName, UsageError
from onnxplain.machine import cpus, memory_bytes
from onnxplain.server.options import LEAST, MEMORY_SHARE, ServerOptions

OURS = ("control", "lazy", "host", "port", "socket", "metrics_port", "isolate", "load")  # Ray's part, or said elsewhere


@dataclass(frozen=True)
class ReplicaSettings:
    """models: repositories or model files, seen from every machine; registries: as `--registry`.

    load: models to have from the start, "*" for all; others are loaded when they are asked for. max_models: that Ray
    takes one replica to have; what fits in memory decides server.memory_budget, by default the share of the machine's
    CPUs that a replica has. rows: that one replica is meant to have, waiting and running; more start another, up to
    max_replicas. num_cpus, num_gpus: of one replica, fractions too. upscale_seconds, downscale_seconds: how long the
    rows must say so. server: options of `onnxplain serve` by their Python names, such as slots, threads, queue_rows.
    """

    models: Sequence[str] = ()
    registries: Sequence[str] = ()
    load: Sequence[str] = ()
    max_models: int = 16
    rows: float = 8.0
    min_replicas: int = 1
    max_replicas: int = 4
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    upscale_seconds: float = 10.0
    downscale_seconds: float = 120.0
    server: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, args: Mapping[str, Any]) -> Self:
        """Checked. Raises UnknownName, UsageError."""
        known = [entry.name for entry in fields(cls)]
        for name in args:
            if name not in known:
                raise UnknownName("argument of the Ray Serve application", name, known)
        found = cls(**args)
        options = [entry.name for entry in fields(ServerOptions) if entry.name not in OURS]
        for name in found.server:
            if name not in options:
                raise UnknownName("server option of the Ray Serve application", name, options)
        if not found.models and not found.registries:
            raise UsageError("the Ray Serve application needs `models` or `registries`: where the models are.")
        if isinstance(found.models, str) or isinstance(found.registries, str) or isinstance(found.load, str):
            raise UsageError("`models`, `registries` and `load` are lists.")
        if not 0 < found.min_replicas <= found.max_replicas:
            raise UsageError("`min_replicas` is 1 at least and at most `max_replicas`.")
        if found.rows <= 0 or found.max_models < 1:
            raise UsageError("`rows` and `max_models` are above 0.")
        found.options()
        return found

    def options(self) -> ServerOptions:
        """Of the server in a replica: it listens nowhere, and loads what it is asked for."""
        paths = {"token_file", "cache", "tls_cert", "tls_key", "tls_ca"}
        given: dict[str, Any] = {
            name: Path(value) if name in paths and value else value for name, value in self.server.items()
        }
        given.setdefault("threads", max(1, int(self.num_cpus)))
        share = int(MEMORY_SHARE * memory_bytes() * min(1.0, self.num_cpus / cpus()))
        given.setdefault("memory_budget", max(LEAST, share))
        return ServerOptions(**{**given, "control": "poll", "lazy": True, "metrics_port": 0})

    def content(self) -> dict[str, Any]:
        """As plain values, which `of` takes."""
        plain = asdict(self)
        return {**plain, **{name: list(plain[name]) for name in ("models", "registries", "load")}}
