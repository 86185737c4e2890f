"""One endpoint at work: guarded, its body read, its work ended when nobody waits any more, its answer sent."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from starlette.types import Receive, Scope, Send

from onnxplain.errors import Cancelled, Denied, Expired, InputError, Unavailable
from onnxplain.server.call import log_fields
from onnxplain.server.guard import Guard, GuardedMethod
from onnxplain.server.http.body import read_body
from onnxplain.server.http.errors import error_reply
from onnxplain.server.http.reply import Reply, deliver
from onnxplain.server.http.request import HttpArrival, HttpRequest, http_request
from onnxplain.server.http.routes import Body
from onnxplain.server.memory_ledger import MemoryLedger


@dataclass(frozen=True)
class Doors:
    """What all endpoints share: the guard, the limits, who else may ask.

    roots: folders that no error may name. most: bytes of one body. seconds: for one request, and for taking its answer.
    origins: of pages in browsers that may ask beside the server's own.
    """

    guard: Guard
    memory: MemoryLedger
    most: int
    seconds: float
    roots: Sequence[str | Path] = ()
    origins: Iterable[str] = ()


@dataclass
class GuardedEndpoint:
    """An ASGI application that answers one method of one path. body: what it takes."""

    doors: Doors
    method: GuardedMethod
    path: str
    body: Body
    answer: Callable[[HttpRequest], Awaitable[Reply]]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, whatever happens; only a client that is gone gets nothing."""
        arrival = HttpArrival(scope)
        held = None
        try:
            reply = await self._reply(arrival, scope, receive)
            held = self.doors.memory.booking("replies", "the reply", len(reply.body))
        except _Gone:
            return
        except asyncio.CancelledError:  # the server's time to drain is over
            reply = error_reply(Unavailable("this server is going down. Try again: another one may answer."))
        except Exception as error:
            reply = error_reply(error, self.doors.roots)
        try:
            await deliver(reply, scope, send, arrival.request_id, self.doors.seconds)
        finally:
            if held is not None:
                held.release()

    async def _reply(self, arrival: HttpArrival, scope: Scope, receive: Receive) -> Reply:
        watched = _Watched(receive)
        seconds = None
        with suppress(InputError):  # which the guard raises, when it asks
            seconds = arrival.seconds_left()
        timer = asyncio.timeout(seconds)
        try:
            async with timer:
                return await self.doors.guard.answer(self.method, arrival, lambda: self._work(scope, watched))
        except asyncio.CancelledError:
            if watched.gone:
                raise _Gone from None
            raise
        except TimeoutError as error:
            if not timer.expired():
                raise
            raise Expired("the deadline passed before the answer was ready. Allow more time, or send less.") from error
        except Cancelled:
            if watched.gone:
                raise _Gone from None
            raise
        finally:
            watched.stop()

    async def _work(self, scope: Scope, watched: _Watched) -> Reply:
        doors = self.doors
        log_fields(http=f"{scope['method']} {self.path}")
        request = http_request(scope, doors.most)
        self._same_origin(scope["method"], request)
        held = doors.memory.booking("requests", "the request")
        try:
            if self.body:
                request.body = await read_body(watched.receive, request.headers, doors.most, held, self.body == "infer")
            watched.start()
            return await self.answer(request)
        finally:
            held.release()

    def _same_origin(self, verb: str, request: HttpRequest) -> None:
        """Refuse what a page of somebody else's makes a browser send: it may not read the answer, but it would act."""
        origin = request.headers.get("origin", "")
        if verb in ("GET", "HEAD") or not origin or origin in self.doors.origins:
            return
        try:
            host = urlsplit(origin).netloc
        except ValueError:  # no address at all
            host = ""
        if not host or host != request.headers.get("host"):
            raise Denied(f"pages of {origin[:200]} may not ask this server; its operator can allow it by --http-cors.")


class _Watched:
    """The receiving end of a request, watched for the client's going away once the body is there."""

    def __init__(self, receive: Receive):
        self._receive, self.gone = receive, False
        self._watcher: asyncio.Task[None] | None = None

    async def receive(self) -> dict[str, object]:
        """The next message of the body."""
        message = await self._receive()
        self.gone = self.gone or message["type"] == "http.disconnect"
        return dict(message)

    def start(self) -> None:
        """From now on, end the current task when the client goes away."""
        task = asyncio.current_task()
        assert task is not None
        self._watcher = asyncio.create_task(self._watch(task))

    def stop(self) -> None:
        """Look no more."""
        if self._watcher is not None:
            self._watcher.cancel()

    async def _watch(self, task: asyncio.Task[object]) -> None:
        while not self.gone:
            await self.receive()
        task.cancel()


class _Gone(Exception):
    """The client went away."""
