"""How a worker process reports to its parent: through the pipe that was its standard output."""

from __future__ import annotations

import json
import os
import threading
from typing import Any

from onnxplain.server.isolation.messages import LINE, REASONS
from onnxplain.server.telemetry.metrics import Metrics


class ReportPipe:
    """One JSON value a line. A parent that does not read loses observations; it never holds the worker up."""

    def __init__(self) -> None:
        self._pipe = os.dup(1)
        os.set_inheritable(self._pipe, False)
        os.dup2(2, 1)  # whatever a library prints belongs to the log
        os.set_blocking(self._pipe, False)
        self._lock = threading.Lock()

    def send(self, content: Any) -> None:
        """Send one report."""
        line = json.dumps(content).encode() + b"\n"
        if len(line) > LINE:
            return
        with self._lock:
            try:
                os.write(self._pipe, line)
            except OSError:  # the pipe is full, or nobody is there
                return


class ReportedMetrics(Metrics):
    """Metrics of the worker's model, counted by the parent under its own name for it."""

    def __init__(self, reports: ReportPipe):
        super().__init__()
        self._reports = reports

    def queue(self, model: str, rows: int, nbytes: int) -> None:
        """See Metrics."""
        self._reports.send(["queue", rows, nbytes])

    def run(
        self, model: str, waited: float, ran: float, rows: int, requests: int = 1, explains: bool | float = False
    ) -> None:
        """See Metrics."""
        self._reports.send(["run", waited, ran, rows, requests, int(explains)])

    def conserved(self, model: str, error: float) -> None:
        """See Metrics."""
        self._reports.send(["conserved", error])

    def refused(self, model: str, reason: str) -> None:
        """See Metrics."""
        if reason in REASONS:
            self._reports.send(["refused", reason])
