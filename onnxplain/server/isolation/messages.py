"""What a worker process is sent and what it reports back: JSON, one message a line."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from onnxplain.errors import InputError, OnnxplainError
from onnxplain.inputs.settings import ModelSettings, load_settings
from onnxplain.server.options import BASE, LEAST, ServerOptions
from onnxplain.sources import ResolvedModel

LINE = 4096  # bytes of a report at most: what a pipe takes whole or not at all
TEXT = 1000  # characters of a reason
OBSERVATIONS = {"queue": 2, "run": 3, "conserved": 1}  # of a model: method of Metrics -> how many numbers
REASONS = ("size", "full", "memory", "deadline", "draining")  # for refusing a request: they become labels, so no others
PASSED = (
    "provider", "slots", "threads", "max_batch_rows", "queue_rows", "queue_bytes", "max_message_bytes",
    "max_request_seconds", "allow_export", "compile_queue", "max_compile_seconds",
)  # fmt: skip
DRAIN = 5.0  # seconds: the parent ends a worker when its calls are answered


@dataclass(frozen=True)
class WorkerConfig:
    """One model to serve. memory: bytes of address space above what the worker has; socket: where to answer."""

    model: ResolvedModel
    options: ServerOptions
    memory: int
    socket: Path

    @classmethod
    def of(cls, model: ResolvedModel, options: ServerOptions, socket: Path) -> Self:
        """From the server's own options: no port, no tokens, no reflection; the socket's folder keeps others out."""
        passed = {key: getattr(options, key) for key in PASSED}
        budget = max(LEAST, min(options.isolate_memory + BASE, options.process_bytes))
        return cls(model, _options(passed, budget, socket), options.isolate_memory, socket)

    def encode(self) -> bytes:
        """As it goes through the pipe. Settings go as the names of their files: the worker reads them itself."""
        settings = self.model.settings
        content = {
            "path": os.fspath(self.model.path),
            "name": self.model.name,
            "version": self.model.version,
            "graphs": None if self.model.graphs is None else os.fspath(self.model.graphs),
            "settings": [os.fspath(file) for file in settings.files],
            "defaults": dict(settings.defaults),
            "options": {key: getattr(self.options, key) for key in PASSED},
            "budget": self.options.memory_budget,
            "memory": self.memory,
            "socket": os.fspath(self.socket),
        }
        return json.dumps(content).encode() + b"\n"

    @classmethod
    def decode(cls, line: bytes) -> Self:
        """What `encode` made. Raises InputError where the settings cannot be read any more."""
        content: dict[str, Any] = json.loads(line)
        files = [Path(file) for file in content["settings"]]
        settings = load_settings(*files) if files else ModelSettings()
        # A registry's recipe replaces the defaults of the files.
        settings = replace(settings, defaults=content["defaults"])
        graphs = None if content["graphs"] is None else Path(content["graphs"])
        model = ResolvedModel(Path(content["path"]), content["name"], content["version"], settings, graphs)
        socket = Path(content["socket"])
        return cls(model, _options(content["options"], content["budget"], socket), content["memory"], socket)


def failure_report(error: BaseException) -> dict[str, Any]:
    """The report that a model cannot be served."""
    if not isinstance(error, OnnxplainError):
        error = InputError(f"unexpected {type(error).__name__} while loading")
    return {"failed": {"kind": type(error).__name__, "text": str(error)[:TEXT], "field": error.field[:200]}}


def reported_error(report: Mapping[str, Any]) -> OnnxplainError:
    """The error that a report is about: of the same class, as far as there is one."""
    return error_by_name(str(report.get("kind")), str(report.get("text"))[:TEXT], str(report.get("field", "")))


def error_by_name(
    kind: str, text: str, field: str = "", otherwise: type[OnnxplainError] = InputError
) -> OnnxplainError:
    """An error of ours by the name of its class; classes that make their own text become `otherwise`."""
    made = {found.__name__: found for found in _classes(OnnxplainError) if found.__init__ is Exception.__init__}
    return made.get(kind, otherwise)(text).at(field)


def observation(report: object) -> tuple[str, tuple[float, ...]] | None:
    """(method of Metrics, numbers) of a report, None where it is not one. A worker may say anything."""
    if not isinstance(report, list) or not report or not isinstance(report[0], str):
        return None
    name, *numbers = report
    if len(numbers) != OBSERVATIONS.get(name, -1):
        return None
    if not all(isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n) for n in numbers):
        return None
    return name, tuple(numbers)


def _options(passed: Mapping[str, Any], budget: int, socket: Path) -> ServerOptions:
    return ServerOptions(
        **passed, memory_budget=budget, socket=socket, port=0, metrics_port=0, control="none", reflection=False,
        drain_timeout=DRAIN, cache=socket.parent,
    )  # fmt: skip


def _classes(base: type[OnnxplainError]) -> list[type[OnnxplainError]]:
    return [base, *(found for direct in base.__subclasses__() for found in _classes(direct))]
