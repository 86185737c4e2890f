"""Releases made ready to answer: fetched, loaded here or in a worker, in bounded time; what nobody takes is closed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

from onnxplain.errors import Busy, OnnxplainError, OutOfMemory, Unavailable, UnsupportedModel
from onnxplain.interrupt import interruptible
from onnxplain.server.models.load_turns import LoadTurns
from onnxplain.server.models.served import Served
from onnxplain.server.scheduling.session_cache import free_memory
from onnxplain.server.telemetry.metrics import Metrics
from onnxplain.sources import ModelSource, Release, ResolvedModel

T = TypeVar("T", bound=Served)
CLOSE = 5.0  # seconds at the server's end for loads to notice that they were given up


@dataclass(frozen=True)
class Opener(Generic[T]):
    """How a model is made in a thread of this process, and how one is closed that nobody takes; both block.

    relieve: gives back what memory can be given back; then a load that found none left is tried once more.
    """

    make: Callable[[ResolvedModel], T]
    close: Callable[[T], None]
    relieve: Callable[[], object] = free_memory


class LoadAttempt(Generic[T]):
    """One load in a thread of its own. Whatever comes of it after `give_up` is closed.

    ended: done when the thread is. late: given up because it took too long. It cannot be ended from outside: it ends at
    the next step of the engine, or when onnxruntime returns, which has no steps while it makes a session.
    """

    def __init__(self, model: ResolvedModel, opener: Opener[T]):
        self._model, self._opener = model, opener
        self._lock = threading.Lock()
        self._reason: OnnxplainError | None = None
        self.late = False
        self._made: T | None = None
        self._error: BaseException | None = None
        loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = loop.create_future()
        threading.Thread(target=self._run, args=(loop,), name=f"onnxplain-load-{model.name}", daemon=True).start()

    def result(self) -> T:
        """What was loaded, once it has ended. Raises why it was not."""
        if self._error is not None:
            raise self._error
        assert self._made is not None
        return self._made

    def give_up(self, reason: OnnxplainError) -> None:
        """Nobody wants it any more; from any thread."""
        with self._lock:
            self._reason = self._reason or reason
            made, self._made = self._made, None
        if made is not None:
            self._opener.close(made)

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        made: T | None = None
        try:
            with interruptible(self._check):
                made = self._make()
        except BaseException as error:
            self._error = (
                error if isinstance(error, Exception) else RuntimeError(f"{type(error).__name__} while loading")
            )
        with self._lock:
            given_up = self._reason is not None
            self._made = None if given_up else made
        if given_up:
            if made is not None:
                self._opener.close(made)
            made = None
        free_memory()  # loading takes several times what the model holds
        with suppress(RuntimeError):  # the loop was closed
            loop.call_soon_threadsafe(self._tell)

    def _make(self) -> T:
        try:
            return self._opener.make(self._model)
        except (Busy, OutOfMemory):
            pass  # not in here: the error holds what it was about
        self._opener.relieve()
        return self._opener.make(self._model)

    def _tell(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    def _check(self) -> None:
        if self._reason is not None:
            raise self._reason


class ModelLoading(Generic[T]):
    """(source, release) -> what answers. seconds: of loading one, after its files are here.

    opener: of this process. isolated: starts a worker for a model instead. room: memory for a model to load into. A
    load that is late is given up at once, and its turn goes to the next; see `LoadAttempt` for what remains of it.
    """

    def __init__(
        self,
        turns: LoadTurns,
        seconds: float,
        metrics: Metrics,
        opener: Opener[T],
        isolated: Callable[[ResolvedModel], Awaitable[Served]] | None = None,
        room: Callable[[Release, ResolvedModel], AbstractAsyncContextManager[None]] | None = None,
    ):
        self._turns, self._seconds, self._metrics = turns, seconds, metrics
        self._opener, self._isolated, self._room = opener, isolated, room or (lambda *_: nullcontext())
        self._going: dict[Release, LoadAttempt[T]] = {}  # also those that were given up and have not ended

    async def __call__(self, source: ModelSource, release: Release) -> Served:
        """A release from its source, ready to answer. Raises OnnxplainError; cancelled, it leaves nothing behind."""
        try:
            served = await self._open(source, release)
        except Exception:
            self._metrics.load(False)
            raise
        self._metrics.load(True)
        self._metrics.model_loaded(served.name, int(served.version))
        return served

    async def close(self) -> None:
        """Give up what still loads."""
        attempts = list(self._going.values())
        for attempt in attempts:
            attempt.give_up(Unavailable("the server is shutting down; try another one."))
        if attempts:
            await asyncio.wait({attempt.ended for attempt in attempts}, timeout=CLOSE)

    async def _open(self, source: ModelSource, release: Release) -> Served:
        key = (release.name, release.version)
        before = self._going.get(release)
        if before is not None and not before.late:
            await asyncio.wait({before.ended}, timeout=self._seconds)
        async with self._turns.source(source, key) as turn:
            resolved = await turn.run(lambda: source.fetch(release))
        async with self._room(release, resolved), self._turns.load(key):
            if self._isolated is not None:
                return await self._isolated(resolved)
            return await self._load(release, resolved)

    async def _load(self, release: Release, resolved: ResolvedModel) -> T:
        """In this process, while no other load of the same files goes on."""
        if release in self._going:
            raise UnsupportedModel(
                f"{release.name}: its last load was given up and has not ended yet: onnxruntime is still making a "
                "session. --isolate ends such a load at once."
            )
        self._going[release] = attempt = LoadAttempt(resolved, self._opener)
        attempt.ended.add_done_callback(lambda _: self._going.pop(release, None))
        try:
            await asyncio.wait({attempt.ended}, timeout=self._seconds)
        except asyncio.CancelledError:
            attempt.give_up(Unavailable(f"{release.name}: nobody wants it any more."))
            raise
        if not attempt.ended.done():
            late = UnsupportedModel(
                f"{release.name}: it was not loaded within {self._seconds:g} s (--max-load-seconds). Allow more time, "
                "or serve a smaller model."
            )
            attempt.late = True
            attempt.give_up(late)
            raise late
        return attempt.result()
