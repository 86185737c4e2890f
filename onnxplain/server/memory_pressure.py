"""What the process really holds, against its bound: measured, because libraries keep what no estimate knows of.

What was let in and has not taken its memory yet is expected, and counts as if it had.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from onnxplain.errors import Busy
from onnxplain.machine import resident_bytes

LOOK = 0.02  # seconds for which a measurement holds
PAUSE = 1.0  # seconds between two reliefs: each goes through all of Python's objects
LONGEST_PAUSE = 60.0  # where relief does not help: it would close sessions as fast as they are opened
SOFT = 0.85  # of the bound, from which on what can be given back is
COPIES = 4  # of a message, between the wire and onnxruntime and back
RETRY = 0.5  # seconds after which some of it has gone


class MemoryPressure:
    """Refuses work while the process is full. bound: bytes. relieve: gives back what can be; it may take its time.

    expected: bytes that what goes on now will take, about, some of which it may have taken.
    """

    def __init__(
        self, bound: int, relieve: Callable[[], object], measure: Callable[[], int | None] = resident_bytes
    ) -> None:
        self.bound, self.expected = bound, 0
        self._relieve, self._measure = relieve, measure
        self._lock = threading.Lock()
        self._looked, self._resident = 0.0, 0
        self._relieved, self._pause = 0.0, PAUSE
        self._relieving = False

    @property
    def resident(self) -> int:
        """Bytes of memory that the process has now, 0 where the system does not say."""
        now = time.monotonic()
        with self._lock:
            if now - self._looked > LOOK:
                self._looked, self._resident = now, self._measure() or 0
            return self._resident

    def require(self, what: str, nbytes: int = 0) -> None:
        """Raise Busy where a message of so many bytes does not fit; begin to give back where it is near to that."""
        wanted = self.resident + self.expected + COPIES * nbytes
        if wanted <= SOFT * self.bound:
            return
        self._begin_relief(PAUSE if wanted > self.bound else self._pause)
        if wanted > self.bound and nbytes < self.bound:
            raise Busy(
                f"{what}: this server holds {self.resident} of its {self.bound} bytes, and its work now takes up to "
                f"{self.expected} more (--memory-budget). Try again shortly.",
                retry=RETRY,
            )

    def expect(self, nbytes: int) -> None:
        """So many more bytes will be taken; fewer, where it is negative."""
        with self._lock:
            self.expected += nbytes

    @contextmanager
    def expecting(self, nbytes: int) -> Iterator[None]:
        """While inside, so many bytes will be taken."""
        self.expect(nbytes)
        try:
            yield
        finally:
            self.expect(-nbytes)

    def make_room(self, what: str, nbytes: int) -> None:
        """Give back what can be where so many bytes do not fit. Raises Busy if they still do not while others work."""
        if self.resident + self.expected + nbytes <= self.bound:
            return
        self._relieve()
        with self._lock:
            self._looked = 0.0
        if self.expected and self.resident + self.expected + nbytes > self.bound:
            raise Busy(
                f"{what} takes {nbytes} bytes while it is made; this server holds {self.resident} of its {self.bound}, "
                f"and what it does now takes up to {self.expected} more (--memory-budget). Try again shortly.",
                retry=RETRY,
            )

    def _begin_relief(self, pause: float) -> None:
        """In a thread of its own: whoever asks is the event loop, as a rule. pause: seconds since the last one."""
        with self._lock:
            if self._relieving or time.monotonic() - self._relieved < pause:
                return
            self._relieving = True
        threading.Thread(target=self._run, name="onnxplain-relief", daemon=True).start()

    def _run(self) -> None:
        try:
            self._relieve()
        finally:
            with self._lock:
                self._relieving, self._relieved, self._looked = False, time.monotonic(), 0.0
            helped = self.resident <= SOFT * self.bound
            self._pause = PAUSE if helped else min(LONGEST_PAUSE, 2 * self._pause)
