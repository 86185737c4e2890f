"""The call that is being answered: who asks, until when, and how its work is stopped."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import TypeVar

from onnxplain.errors import Cancelled, Expired, OnnxplainError
from onnxplain.server.tokens import ANYONE, Caller

T = TypeVar("T")


class Call:
    """One call, or one request of a stream.

    deadline: as time.monotonic() counts, None: never. log_fields: for the access log and the trace, which show them;
    nothing else may read them. Write them by `log_fields`. queue_seconds: how long each of its runs may wait for its
    turn, None: as long as the deadline lets it.
    """

    __slots__ = (
        "_callbacks", "_lock", "_priority", "_reason", "caller", "deadline", "log_fields", "method", "queue_seconds",
        "request_id",
    )  # fmt: skip

    def __init__(
        self, request_id: str = "", method: str = "", caller: Caller = ANYONE, deadline: float | None = None
    ) -> None:
        self.request_id, self.method, self.caller, self.deadline = request_id, method, caller, deadline
        self.log_fields: dict[str, object] = {}
        self._priority: int | None = None
        self.queue_seconds: float | None = None
        self._reason: OnnxplainError | None = None
        self._callbacks: dict[object, Callable[[], None]] = {}
        self._lock = threading.Lock()

    @property
    def priority(self) -> int:
        """Of its runs: 1 is the most urgent."""
        return self.caller.usual_priority if self._priority is None else self._priority

    def ask_for_turn(self, priority: int, queue_seconds: float | None) -> None:
        """Say how urgent the runs from now on are, and how long they may wait. priority 0: as urgent as usual.

        Raises UsageError for a priority that there is not, Denied for one that the caller may not have.
        """
        self.caller.require_priority(priority)
        self._priority, self.queue_seconds = priority or None, queue_seconds

    @property
    def stopped(self) -> bool:
        """Nobody waits for the answer any more."""
        return self._reason is not None

    def stop(self, reason: OnnxplainError | None = None) -> None:
        """End the work of this call, from any thread; only the first time counts. None: the caller went away."""
        with self._lock:
            if self._reason is not None:
                return
            self._reason = reason or Cancelled("the caller went away.")
            callbacks = list(self._callbacks.values())
            self._callbacks.clear()
        for callback in callbacks:
            callback()

    def on_stop(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Have `callback` called once when the call is stopped, at once if it is already.

        It must be quick and must not raise: it may run in the event loop. Call what is returned to forget it, as work
        that ended does while its call goes on.
        """
        key = object()
        with self._lock:
            late = self._reason is not None
            if not late:
                self._callbacks[key] = callback
        if late:
            callback()
        return lambda: self._forget(key)

    def check(self) -> None:
        """Raise why nobody waits any more, Expired or Cancelled, if so."""
        if self._reason is not None:
            raise self._reason
        if self.deadline is not None and time.monotonic() >= self.deadline:
            raise Expired("the deadline passed before the answer was ready. Allow more time, or send fewer rows.")

    def part(self, request_id: str, seconds: float | None = None) -> tuple[Call, Callable[[], None]]:
        """A call for one request of this stream, and what to call when it is answered.

        It ends with the stream, and after `seconds` at the latest. Set CALL to it in the task of that request. The log
        shows of a stream what the last request of it wrote.
        """
        ends = [self.deadline, None if seconds is None else time.monotonic() + seconds]
        part = Call(request_id, self.method, self.caller, min((end for end in ends if end is not None), default=None))
        forget = self.on_stop(lambda: part.stop(self._reason))

        def end() -> None:
            forget()
            self.log_fields.update(part.log_fields)

        return part, end

    def _forget(self, key: object) -> None:
        with self._lock:
            self._callbacks.pop(key, None)


CALL: ContextVar[Call] = ContextVar("call")  # unset outside of a call: CALL.get(None)


def log_fields(**fields: object) -> None:
    """What the access log and the trace of the current call show; for them only."""
    call = CALL.get(None)
    if call is not None:
        call.log_fields.update(fields)


async def in_thread(threads: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    """Do blocking work in a thread that knows the current call."""
    context = contextvars.copy_context()
    return await asyncio.get_running_loop().run_in_executor(threads, context.run, work)
