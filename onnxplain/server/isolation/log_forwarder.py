"""A worker's log lines in the server's own log."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

from onnxplain.server.telemetry.logs import event

LOG = logging.getLogger("onnxplain.server.worker")
LINES, WINDOW = 100, 10.0  # lines of one worker per so many seconds: a model must not fill the disk
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


class WorkerTrace(Exception):
    """A stack trace of a worker; it is what is logged with the record."""


class LogForwarder:
    """Logs lines of one worker under its model's name; drops what comes too fast, and says so."""

    def __init__(self, model: str = ""):
        self.model = model
        self._began, self._lines = 0.0, 0

    def forward(self, line: bytes) -> None:
        """Log one line: a record of ours as JSON, or whatever a library printed."""
        now = time.monotonic()
        if now - self._began > WINDOW:
            if self._lines > LINES:
                event(LOG, logging.WARNING, "log lines dropped", model=self.model, lines=self._lines - LINES)
            self._began, self._lines = now, 0
        self._lines += 1
        if self._lines > LINES or not line.strip():
            return
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            event(LOG, logging.WARNING, "said", model=self.model, text=line.decode(errors="replace").strip())
            return
        self._log(record)

    def _log(self, record: dict[str, Any]) -> None:
        level, name, trace = record.pop("level", ""), str(record.pop("event", "said")), record.pop("trace", None)
        number = getattr(logging, level) if level in LEVELS else logging.WARNING
        record.pop("time", None)
        about = {key: value for key, value in record.items() if isinstance(value, str | int | float)}
        fields = {**about, "model": self.model}
        if isinstance(trace, str):
            problem = WorkerTrace(trace)
            LOG.log(number, name, exc_info=(WorkerTrace, problem, None), extra={"fields": fields})
        else:
            event(LOG, number, name, **fields)
