"""Open sessions, bounded by bytes: the one not used for longest is put away first, never one that runs."""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from onnxplain.runtime.session import Session

if TYPE_CHECKING:
    from onnxplain.server.scheduling.queue import ModelQueue


class SessionCache:
    """Sessions by lane. budget: bytes; what runs now may exceed it."""

    def __init__(self, budget: int, changed: Callable[[int], None] | None = None):
        self.budget = budget
        self._open: OrderedDict[ModelQueue, Session] = OrderedDict()
        self._pins: dict[ModelQueue, int] = {}
        self._making: dict[ModelQueue, threading.Lock] = {}
        self._lock = threading.Lock()
        self._changed = changed

    @property
    def nbytes(self) -> int:
        """What the open sessions hold, about."""
        with self._lock:
            return sum(lane.nbytes for lane in self._open)

    def take(self, lane: ModelQueue, make: Callable[[], Session]) -> Session:
        """The session of a lane; made once however many ask."""
        with self._lock:
            session = self._open.get(lane)
            if session is not None:
                self._open.move_to_end(lane)
                return session
            making = self._making.setdefault(lane, threading.Lock())
        with making:
            with self._lock:
                session = self._open.get(lane)
            if session is None:
                session = make()
                with self._lock:
                    self._open[lane] = session
                self._shrink()
        return session

    @contextmanager
    def pinned(self, lane: ModelQueue) -> Iterator[None]:
        """While inside, the lane's session stays."""
        with self._lock:
            self._pins[lane] = self._pins.get(lane, 0) + 1
        try:
            yield
        finally:
            with self._lock:
                self._pins[lane] -= 1
                if not self._pins[lane]:
                    del self._pins[lane]

    def drop(self, lane: ModelQueue) -> None:
        """Forget a lane for good."""
        with self._lock:
            self._open.pop(lane, None)
            self._making.pop(lane, None)
        self._tell()

    def _shrink(self) -> None:
        away: list[Session] = []
        with self._lock:
            used = sum(lane.nbytes for lane in self._open)
            for lane in list(self._open)[:-1]:
                if used <= self.budget:
                    break
                if lane not in self._pins:
                    away.append(self._open.pop(lane))
                    used -= lane.nbytes
        if away:
            away.clear()
            give_back()
        self._tell()

    def _tell(self) -> None:
        if self._changed is not None:
            self._changed(self.nbytes)


def give_back() -> None:
    """Return freed memory to the system, where the C library can."""
    gc.collect()
    if sys.platform == "linux":
        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        except (OSError, AttributeError):  # another C library
            return
