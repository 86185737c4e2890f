"""The calls that are being answered, and the going down of a server that waits for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from onnxplain.errors import Unavailable
from onnxplain.server.call import Call


class OpenCalls:
    """What a server waits for when it goes down, and whom it tells. For the event loop's thread."""

    def __init__(self) -> None:
        self._held: set[object] = set()
        self._answering: dict[asyncio.Task[object], Call] = {}
        self._cut: set[asyncio.Task[object]] = set()
        self._none = asyncio.Event()
        self._none.set()
        self._draining = False
        self._callbacks: dict[object, Callable[[], None]] = {}

    @property
    def draining(self) -> bool:
        """New work is refused."""
        return self._draining

    def drain(self) -> None:
        """Refuse new work from now on, and tell those who wait for some."""
        self._draining = True
        callbacks = list(self._callbacks.values())
        self._callbacks.clear()
        for callback in callbacks:
            callback()

    def on_drain(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Have `callback` called when the server goes down, at once if it does. What is returned forgets it."""
        if self._draining:
            callback()
            return lambda: None
        key = object()
        self._callbacks[key] = callback
        return lambda: self._forget(key)

    def hold(self, key: object) -> None:
        """The server waits for this one, until it is released."""
        self._held.add(key)
        self._none.clear()

    def release(self, key: object) -> None:
        """It has ended, its reply is on its way."""
        self._held.discard(key)
        if not self._held:
            self._none.set()

    @contextmanager
    def answering(self, call: Call) -> Iterator[None]:
        """While inside, the current task answers this call; where `cut` ends it, Unavailable comes out."""
        task = asyncio.current_task()
        assert task is not None
        self.hold(call)
        self._answering[task] = call
        try:
            yield
        except asyncio.CancelledError:
            if task not in self._cut:
                raise
            task.uncancel()
            raise _going_down("the call took longer than this server waits when it goes down") from None
        finally:
            self._answering.pop(task, None)
            self._cut.discard(task)
            self.release(call)

    async def until_none(self, seconds: float) -> bool:
        """Wait for the end of all; False if some are open after so many seconds."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._none.wait(), seconds)
        return self._none.is_set()

    def cut(self) -> None:
        """End what is open now. Callers get Unavailable."""
        for task, call in list(self._answering.items()):
            self._cut.add(task)
            call.stop(_going_down("the call took longer than this server waits when it goes down"))
            task.cancel()

    def _forget(self, key: object) -> None:
        self._callbacks.pop(key, None)


def _going_down(why: str) -> Unavailable:
    return Unavailable(f"this server is going down: {why}. Try again: another one may answer.")
