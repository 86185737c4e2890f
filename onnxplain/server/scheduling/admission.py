"""Admission: how much of one model's work may be in the server at once. Full is said at once, never waited for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from onnxplain.errors import Busy
from onnxplain.server.call import CALL
from onnxplain.server.memory_ledger import MemoryLedger
from onnxplain.server.telemetry.metrics import Metrics


class AdmissionControl:
    """Bounds of one model. rows and nbytes: of requests admitted and not yet answered. memory: of all models."""

    def __init__(self, max_rows: int, max_bytes: int, name: str, metrics: Metrics, memory: MemoryLedger | None = None):
        self.max_rows, self.max_bytes, self.name = max_rows, max_bytes, name
        self.rows = self.nbytes = 0
        self._lock = threading.Lock()
        self._metrics, self._memory = metrics, memory

    @contextmanager
    def admit(self, rows: int, nbytes: int, seconds_per_row: float = 0.0) -> Iterator[None]:
        """Hold `rows` and `nbytes` while inside. Raises Busy with the time after which it may be worth coming back.

        What is let in counts against the rate of the current call's caller.
        """
        if rows > self.max_rows or nbytes > self.max_bytes:
            self._metrics.refused(self.name, "size")
            raise Busy(
                f"{self.name}: {rows} rows and {nbytes} bytes in one request; at most {self.max_rows} rows and "
                f"{self.max_bytes} bytes are taken at a time (--queue-rows, --queue-bytes). Send fewer at once.",
                retry=0.0,
            )
        with self._memory.held("requests", "the request", nbytes) if self._memory is not None else nullcontext():
            self._take(rows, nbytes, seconds_per_row)
            try:
                yield
            finally:
                with self._lock:
                    self.rows -= rows
                    self.nbytes -= nbytes
                self._metrics.queue(self.name, self.rows, self.nbytes)

    def _take(self, rows: int, nbytes: int, seconds_per_row: float) -> None:
        with self._lock:
            if self.rows + rows > self.max_rows or self.nbytes + nbytes > self.max_bytes:
                self._metrics.refused(self.name, "full")
                raise Busy(
                    f"{self.name}: {self.rows} of {self.max_rows} rows are waiting or running (--queue-rows); "
                    "try again shortly.",
                    retry=max(0.01, min(5.0, self.rows * seconds_per_row)),
                )
            self._take_from_rate(rows)  # last: who is refused by anything else pays nothing
            self.rows += rows
            self.nbytes += nbytes
        self._metrics.queue(self.name, self.rows, self.nbytes)

    def _take_from_rate(self, rows: int) -> None:
        call = CALL.get(None)
        if call is None or call.caller.rate is None:
            return
        try:
            call.caller.rate.take(rows)
        except Busy:
            self._metrics.refused(self.name, "rate")
            raise
