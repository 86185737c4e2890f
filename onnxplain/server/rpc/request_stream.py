"""A call with a stream of requests: each has its time, silence has an end, and a drain waits for open ones only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from onnxplain.errors import Expired, OnnxplainError, Unavailable
from onnxplain.server.call import CALL, Call
from onnxplain.server.guard import REQUEST_ID
from onnxplain.server.open_calls import OpenCalls
from onnxplain.server.rpc.hang_up import LAST_WORD


@asynccontextmanager
async def one_request(request_id: str, seconds: float) -> AsyncIterator[Call]:
    """While inside, CALL is one request of the stream that is being answered. Raises Expired after `seconds`."""
    stream = CALL.get()
    plain = REQUEST_ID.fullmatch(request_id) is not None  # it goes into metadata and logs
    request, forget = stream.part(request_id if plain else stream.request_id, seconds)
    token = CALL.set(request)
    timer = asyncio.timeout(seconds)
    try:
        async with timer:
            yield request
    except BaseException as error:
        if isinstance(error, TimeoutError) and timer.expired():
            error = Expired(f"a request of a stream may take {seconds:g} s here; send fewer rows.")
            request.stop(error)  # for its work in threads and slots
            raise error from None
        request.stop(error if isinstance(error, OnnxplainError) else None)
        raise
    finally:
        forget()
        CALL.reset(token)


class RequestStream:
    """The requests of one call. seconds: for each, until its replies are taken. idle_seconds: without an open one.

    A request is open from when it is handed out until the next is asked for. A service that takes the next one before
    it has answered keeps it open by `answering`, and sees to its time itself. Ends the task that is inside `in_time`.
    """

    def __init__(self, messages: Any, seconds: float, idle_seconds: float, calls: OpenCalls):
        self._messages = aiter(messages)
        self.seconds, self.idle_seconds, self._calls = seconds, idle_seconds, calls
        self._open, self._waiting = 0, False
        self._timeout = asyncio.timeout(None)
        self._timer: asyncio.TimerHandle | None = None
        self._inside = False
        self._reason: OnnxplainError | None = None

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        self._waiting = True
        self._look()
        try:
            return await anext(self._messages)
        finally:
            self._waiting = False
            self._look()

    @contextmanager
    def answering(self) -> Iterator[None]:
        """While inside, one more request is open."""
        self._open += 1
        self._look()
        try:
            yield
        finally:
            self._open -= 1
            self._look()

    @asynccontextmanager
    async def in_time(self) -> AsyncIterator[None]:
        """Around all of the service's work and the writing of its replies. Raises why the call was ended."""
        forget = self._calls.on_drain(self._look)
        try:
            async with self._timeout:
                self._inside = True
                self._look()
                yield
        except TimeoutError:
            if self._reason is None:
                raise
            raise self._reason from None
        finally:
            self._inside = False
            self._disarm()
            forget()

    def end(self, reason: OnnxplainError) -> None:
        """End the call; only the first reason counts."""
        if self._reason is None and self._inside:
            self._reason = reason
            self._timeout.reschedule(asyncio.get_running_loop().time())

    def _look(self) -> None:
        """Set the timer for what the call waits for now."""
        self._disarm()
        if not self._inside:
            return
        if not self._waiting:
            late = f"a request of a stream may take {self.seconds:g} s here (--max-request-seconds), its reply read."
            self._arm(self.seconds + LAST_WORD, Expired(late))  # the service's own limit may answer before
        elif not self._open and self._calls.draining:
            self.end(Unavailable("this server is going down, and nothing was asked. Go on with another one."))
        elif not self._open:
            idle = f"no request came for {self.idle_seconds:g} s (--idle-seconds). Begin another stream."
            self._arm(self.idle_seconds, Expired(idle))

    def _arm(self, seconds: float, reason: OnnxplainError) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self.end, reason)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
