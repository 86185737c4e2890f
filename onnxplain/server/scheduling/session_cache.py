"""Open sessions, bounded by bytes: the one not used for longest is closed first, never one that runs."""

from __future__ import annotations

import gc
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol
from weakref import WeakKeyDictionary

from onnxplain import environment
from onnxplain.cpu_session import give_back
from onnxplain.errors import Busy, OutOfMemory
from onnxplain.runtime.session import Session
from onnxplain.server.memory_pressure import MemoryPressure

RETRY = 1.0  # seconds after which a run that holds its session may have ended
MAKING = 4  # times what it holds that a session takes while it is made: its bytes, onnxruntime's own, packed weights


class SessionOwner(Protocol):
    """Whose session it is, told apart by being another one. nbytes: what the session holds while it is open, about."""

    nbytes: int


class SessionCache:
    """Sessions by owner. budget: bytes; only a session that is larger than it may exceed it, alone.

    pressure: of the whole process, where sessions are made.
    """

    def __init__(self, budget: int, changed: Callable[[int], None] | None = None):
        self.budget = budget
        self.pressure: MemoryPressure | None = None
        self._open: OrderedDict[SessionOwner, Session] = OrderedDict()
        self._pins: dict[SessionOwner, int] = {}
        self._making: WeakKeyDictionary[SessionOwner, threading.Lock] = WeakKeyDictionary()
        self._opening: dict[SessionOwner, bool] = {}  # whether the session is to be kept when it is made
        self._lock = threading.Lock()
        self._turn = threading.Condition()
        self._made_now = 0  # bytes of sessions that are being made
        self._in_line: deque[object] = deque()  # those that wait to be
        self._changed = changed

    @property
    def nbytes(self) -> int:
        """What the open sessions hold, about."""
        with self._lock:
            return sum(owner.nbytes for owner in self._open)

    def nbytes_of(self, owners: Iterable[SessionOwner]) -> int:
        """What the open sessions of some owners hold, about."""
        with self._lock:
            return sum(owner.nbytes for owner in owners if owner in self._open)

    def get(self, owner: SessionOwner, make: Callable[[], Session]) -> Session:
        """The session of an owner; made once however many ask."""
        with self._lock:
            session = self._open.get(owner)
            if session is not None:
                self._open.move_to_end(owner)
                return session
            making = self._making.setdefault(owner, threading.Lock())
        with making:
            with self._lock:
                session = self._open.get(owner)
            if session is None:
                with self._a_turn(owner.nbytes):
                    if self.pressure is not None:
                        self.pressure.make_room("a session", MAKING * owner.nbytes)
                    self._make_room(owner)
                    try:
                        with self._expected(owner):
                            session = self._made(make)
                    finally:
                        with self._lock:
                            kept = self._opening.pop(owner)
                            if session is not None and kept:
                                self._open[owner] = session
                self._report()
        return session

    @contextmanager
    def _a_turn(self, nbytes: int) -> Iterator[None]:
        """Sessions are made side by side while all that they take meanwhile is within the budget, else in turn.

        Always in the order they came: small ones do not pass a large one for ever.
        """
        place = object()
        with self._turn:
            self._in_line.append(place)
            self._turn.wait_for(
                lambda: (
                    self._in_line[0] is place
                    and (not self._made_now or MAKING * (self._made_now + nbytes) <= self.budget)
                )
            )
            self._in_line.popleft()
            self._made_now += nbytes
            self._turn.notify_all()
        try:
            yield
        finally:
            with self._turn:
                self._made_now -= nbytes
                self._turn.notify_all()

    def _made(self, make: Callable[[], Session]) -> Session:
        """A session; where there is no memory for it, once more when the others that do not run are closed."""
        try:
            return make()
        except OutOfMemory:
            if not self.close_idle():
                raise
        return make()

    def _expected(self, owner: SessionOwner) -> AbstractContextManager[None]:
        return nullcontext() if self.pressure is None else self.pressure.expecting(MAKING * owner.nbytes)

    @contextmanager
    def pinned(self, owner: SessionOwner) -> Iterator[None]:
        """While inside, the owner's session stays."""
        with self._lock:
            self._pins[owner] = self._pins.get(owner, 0) + 1
        try:
            yield
        finally:
            with self._lock:
                self._pins[owner] -= 1
                if not self._pins[owner]:
                    del self._pins[owner]

    def close_idle(self) -> bool:
        """Close every session but those that run: they are opened again when they are asked for. Whether any was."""
        with self._lock:
            closed = [self._open.pop(owner) for owner in list(self._open) if owner not in self._pins]
        found = bool(closed)
        if closed:
            closed.clear()
            self._report()
        free_memory()
        return found

    def drop(self, owner: SessionOwner) -> None:
        """Keep nothing for an owner any more, nor what is being made for it; a later `get` makes another session."""
        with self._lock:
            self._open.pop(owner, None)
            if owner in self._opening:
                self._opening[owner] = False
        self._report()

    def _make_room(self, owner: SessionOwner) -> None:
        """Close the sessions not used for longest, until one more fits. Raises Busy where those that run are too many.

        From here on its bytes are kept for it.
        """
        closed: list[Session] = []
        try:
            with self._lock:
                used = sum(other.nbytes for other in (*self._open, *self._opening))
                for other in list(self._open):
                    if used + owner.nbytes <= self.budget:
                        break
                    if other not in self._pins:
                        closed.append(self._open.pop(other))
                        used -= other.nbytes
                if used and used + owner.nbytes > self.budget:
                    raise Busy(
                        f"a session takes {owner.nbytes} bytes, and those that run now {used} of the {self.budget} for "
                        "sessions (--memory-budget). Try again shortly.",
                        retry=RETRY,
                    )
                self._opening[owner] = True
        finally:
            if closed:
                closed.clear()
                free_memory()
                self._report()

    def _report(self) -> None:
        if self._changed is not None:
            self._changed(self.nbytes)


def free_memory() -> None:
    """Collect cycles, and return freed memory to the system, where onnxruntime and the C library can."""
    gc.collect()
    environment.give_back()
    give_back()
