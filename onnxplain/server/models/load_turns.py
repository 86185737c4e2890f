"""Whose turn it is: to ask a source, one question at a time, and to load, a few at a time, the awaited ones first."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import TypeVar

from onnxplain.sources import ModelSource

T = TypeVar("T")
Key = tuple[str, str]  # model, version
LOOK: Key = ("", "")  # asking a source what it has
AWAITED = 1  # loads beyond the usual number, for what somebody waits for: nothing huge is in front of it


class Turns:
    """`count` at a time in the order of coming, preferred ones first; `more` only for those."""

    def __init__(self, count: int, preferred: set[Key], more: int = 0):
        self._count, self._more, self._preferred = count, more, preferred
        self._taken = 0
        self._waiting: list[tuple[Key, asyncio.Future[None]]] = []

    @asynccontextmanager
    async def turn(self, key: Key) -> AsyncIterator[Turn]:
        """While inside it is the turn of `key`, and on until the work that it `run` has ended."""
        admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((key, admitted))
        self.admit()
        try:
            await admitted
        except asyncio.CancelledError:
            if admitted.done() and not admitted.cancelled():
                self._give_back()
            else:
                self._waiting.remove((key, admitted))
            raise
        turn = Turn()
        try:
            yield turn
        finally:
            if turn.work is None or turn.work.done():
                self._give_back()
            else:  # cancelled; the thread goes on
                turn.work.add_done_callback(lambda _: self._give_back())

    @property
    def full(self) -> bool:
        """Who comes now must wait."""
        return self._taken >= self._count

    def admit(self) -> None:
        """Let in whom there is room for."""
        while self._waiting:
            first = next((each for each in self._waiting if each[0] in self._preferred), None)
            if self._taken >= self._count + (self._more if first is not None else 0):
                return
            first = first or self._waiting[0]
            self._waiting.remove(first)
            if not first[1].done():
                self._taken += 1
                first[1].set_result(None)

    def _give_back(self) -> None:
        self._taken -= 1
        self.admit()


class Turn:
    """One turn. work: what its thread does."""

    work: asyncio.Future[object] | None = None

    async def run(self, work: Callable[[], T]) -> T:
        """Blocking work in a thread that nobody has to wait for."""
        future = in_thread(work)
        self.work = future  # type: ignore[assignment]  # whatever it gives
        return await asyncio.shield(future)


class LoadTurns:
    """Turns of every source and of all loads. count: loads at a time."""

    def __init__(self, count: int = 1):
        self._preferred: set[Key] = {LOOK}
        self._loads = Turns(count, self._preferred, AWAITED)
        self._sources: dict[ModelSource, Turns] = {}

    def load(self, key: Key) -> AbstractAsyncContextManager[Turn]:
        """A turn to load."""
        return self._loads.turn(key)

    def source(self, source: ModelSource, key: Key = LOOK) -> AbstractAsyncContextManager[Turn]:
        """A turn to ask a source, of which there is one at a time."""
        return self._of(source).turn(key)

    def busy(self, source: ModelSource) -> bool:
        """Something is being asked of it."""
        return source in self._sources and self._sources[source].full

    def prefer(self, key: Key) -> None:
        """Somebody waits for this one."""
        self._preferred.add(key)
        for turns in (self._loads, *self._sources.values()):
            turns.admit()

    def forget(self, key: Key) -> None:
        """It was loaded or given up."""
        self._preferred.discard(key)

    def _of(self, source: ModelSource) -> Turns:
        return self._sources.setdefault(source, Turns(1, self._preferred))


def in_thread(work: Callable[[], T], name: str = "onnxplain-source") -> asyncio.Future[T]:
    """Do blocking work in a thread of its own, which does not hold the end of the process up."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def tell(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
            future.exception()  # seen, also where nobody waits any more
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, problem = None, None
        try:
            result = work()
        except BaseException as error:
            problem = error if not isinstance(error, StopIteration) else RuntimeError("StopIteration")
        with suppress(RuntimeError):  # the loop was closed
            loop.call_soon_threadsafe(tell, result, problem)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future
