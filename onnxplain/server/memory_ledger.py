"""Bytes of what clients send and get, booked while they are held: requests, chunks, replies that are not sent yet."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from onnxplain.errors import Busy
from onnxplain.server.memory_pressure import COPIES, MemoryPressure

RETRY = 0.5  # seconds after which some of what is held has gone
KINDS = ("requests", "chunks", "replies")
TAKEN_IN = ("requests", "chunks")


class Booking:
    """Bytes of one thing. It may grow; `release` gives all back, once, from any thread."""

    def __init__(self, ledger: MemoryLedger, kind: str, what: str):
        self._ledger, self._kind, self._what = ledger, kind, what
        self.nbytes = 0
        self._released = False

    def grow(self, nbytes: int) -> None:
        """Hold so many more. Raises Busy where they do not fit, or are too late; then it holds what it held."""
        if self._released:
            raise Busy(f"{self._what} is not awaited any more.", retry=0.0)
        self._ledger.book(self._kind, nbytes, self._what)
        self.nbytes += nbytes

    def release(self) -> None:
        """Hold nothing any more."""
        if not self._released:
            self._released = True
            self._ledger.give_back(self._kind, self.nbytes)


class MemoryLedger:
    """What a server holds of its clients' data, within one budget for all of them.

    budget: bytes. changed: told of each kind what is held of it now. refused: told of what was refused. pressure: of
    the whole process; while it is full nothing more is taken in.
    """

    def __init__(
        self,
        budget: int,
        changed: Callable[[str, int], None] = lambda kind, nbytes: None,
        refused: Callable[[], None] = lambda: None,
        pressure: MemoryPressure | None = None,
    ):
        self.budget, self._pressure = budget, pressure
        self._held = dict.fromkeys(KINDS, 0)
        self._changed, self._refused = changed, refused
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Held now."""
        with self._lock:
            return sum(self._held.values())

    def booking(self, kind: str, what: str, nbytes: int = 0) -> Booking:
        """A booking to be released by whoever asks. what: in words. Raises Busy as `grow` does."""
        booking = Booking(self, kind, what)
        booking.grow(nbytes)
        return booking

    @contextmanager
    def held(self, kind: str, what: str, nbytes: int) -> Iterator[None]:
        """While inside, so many bytes are booked. Raises Busy where they do not fit."""
        booking = self.booking(kind, what, nbytes)
        try:
            yield
        finally:
            booking.release()

    def require(self, what: str, nbytes: int = 0) -> None:
        """Raise Busy while the process is too full for so many bytes more."""
        if self._pressure is None:
            return
        try:
            self._pressure.require(what, nbytes)
        except Busy:
            self._refused()
            raise

    def book(self, kind: str, nbytes: int, what: str) -> None:
        """Hold bytes of a kind. Raises Busy: with a time to come back after where waiting helps."""
        if kind in TAKEN_IN and nbytes > 0:
            self.require(what, nbytes)
        with self._lock:
            held = sum(self._held.values())
            fits = held + nbytes <= self.budget
            if fits:
                self._held[kind] += nbytes
                now = self._held[kind]
        if fits:
            self._expect(kind, nbytes)
            self._changed(kind, now)
            return
        self._refused()
        if nbytes > self.budget:
            raise Busy(
                f"{what} takes {nbytes} bytes, and {self.budget} are kept for all that clients send and get "
                "(--memory-budget). Send or ask for less at once.",
                retry=0.0,
            )
        raise Busy(
            f"{what} takes {nbytes} bytes; {held} of the {self.budget} for all that clients send and get are in use "
            "(--memory-budget). Try again shortly.",
            retry=RETRY,
        )

    def give_back(self, kind: str, nbytes: int) -> None:
        """Hold so many less."""
        with self._lock:
            self._held[kind] -= nbytes
            now = self._held[kind]
        self._expect(kind, -nbytes)
        self._changed(kind, now)

    def _expect(self, kind: str, nbytes: int) -> None:
        """What was taken in becomes arrays, answers and replies, each as large."""
        if self._pressure is not None and kind in TAKEN_IN:
            self._pressure.expect(COPIES * nbytes)
