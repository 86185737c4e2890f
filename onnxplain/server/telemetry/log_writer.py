"""Log lines on their way out: a bounded queue and a thread of its own, so that a reader who sleeps stops nobody."""

from __future__ import annotations

import logging
import logging.handlers
import os
import queue
import time

LINES = 4096  # that wait to be written; those beyond are dropped and counted
FLUSH = 1.0  # seconds that the end of the process waits for what was logged


class LogWriter(logging.handlers.QueueHandler):
    """Formats where something is logged, writes to a file descriptor elsewhere.

    Not to a stream of Python's: whoever is stuck in writing to one holds its lock, which the end of the process takes.
    """

    queue: queue.Queue[logging.LogRecord]

    def __init__(self, descriptor: int, form: logging.Formatter):
        super().__init__(queue.Queue(LINES))
        self.setFormatter(form)
        self.dropped = 0
        self._listener = logging.handlers.QueueListener(self.queue, _Lines(descriptor, self, form))
        self._listener.start()

    def enqueue(self, record: logging.LogRecord) -> None:
        """Leave a line for the thread; count it where there is no room."""
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            self.dropped += 1

    def flush(self) -> None:
        """Wait until all is written, FLUSH seconds at most."""
        until = time.monotonic() + FLUSH
        while self.queue.unfinished_tasks and time.monotonic() < until:
            time.sleep(0.005)


class _Lines(logging.Handler):
    """What the thread does with a line that was formatted."""

    def __init__(self, descriptor: int, writer: LogWriter, form: logging.Formatter):
        super().__init__()
        self._descriptor, self._writer, self._form = descriptor, writer, form
        self._told = 0

    def createLock(self) -> None:  # noqa: N802 (logging's name)
        """Take no lock: one thread writes, and the end of the process would wait for it while the reader sleeps."""
        self.lock = None

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line; a full disk loses it."""
        dropped = self._writer.dropped
        if dropped > self._told and self._write(self._form.format(_lost(dropped - self._told))):
            self._told = dropped
        if not self._write(record.getMessage()):
            self._writer.dropped += 1

    def _write(self, line: str) -> bool:
        left = memoryview(line.encode(errors="backslashreplace") + b"\n")
        try:
            while left:
                left = left[os.write(self._descriptor, left) :]
        except BlockingIOError:  # somebody made it non-blocking, and it is full
            return False
        except OSError:
            return False
        return True


def _lost(lines: int) -> logging.LogRecord:
    record = logging.LogRecord("onnxplain.server", logging.WARNING, "", 0, "log lines dropped", (), None)
    record.fields = {"lines": lines}
    return record
