"""One ExplainStream at work: requests open by id, answered as they are ready, large tensors in chunks both ways."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from onnxplain.errors import Expired, InputError, OnnxplainError
from onnxplain.server import grpc_status
from onnxplain.server.models.repository import ModelRepository
from onnxplain.server.rpc.hang_up import LAST_WORD
from onnxplain.server.rpc.request_stream import RequestStream, one_request
from onnxplain.v1 import explainer_pb2 as v1
from onnxplain.wire.chunks import Incoming, Outgoing, tensors

PROGRESS = 0.25  # seconds between two reports of one request
OPEN_REQUESTS = 64  # of one stream, those included whose replies are being read
WAITING_REPLIES = 8  # messages; slow readers hold up the work behind them


@dataclass
class _Arriving:
    """A request whose chunks are on their way. complete: ends when all are there, or with what is wrong."""

    incoming: Incoming
    complete: asyncio.Future[None]


class _Progress:
    """The latest word on how far a request is; told from a thread, read in the event loop."""

    def __init__(self) -> None:
        self.latest = (0, 1)

    def __call__(self, done: int, total: int) -> None:
        self.latest = (done, total)


class ExplainStream:
    """Answers the requests of one stream by the models of a repository. nbytes: of one request's chunks, at most.

    Each request has its time: for its chunks, its answer, and for the client to read that.
    """

    def __init__(self, repository: ModelRepository, requests: RequestStream, nbytes: int):
        self._repository, self._requests, self._nbytes = repository, requests, nbytes
        self._replies: asyncio.Queue[v1.ExplainStreamResponse | asyncio.Event | None] = asyncio.Queue(WAITING_REPLIES)
        self._open: set[str] = set()
        self._arriving: _Arriving | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def replies(self) -> AsyncGenerator[v1.ExplainStreamResponse, None]:
        """All replies, until the client has no more requests and each is answered."""
        reader = asyncio.create_task(self._read())
        try:
            while (reply := await self._replies.get()) is not None:
                if isinstance(reply, asyncio.Event):
                    reply.set()  # what stood before it was written
                else:
                    yield reply
            await reader
        finally:
            for task in (reader, *self._tasks):
                task.cancel()

    async def _read(self) -> None:
        """Take messages until the client has no more, then finish what is open."""
        try:
            async for message in self._requests:
                await self._take(message)
            self._arrived(InputError("the stream ended before all chunks had come."))
            if self._tasks:
                await asyncio.gather(*self._tasks)
        except Exception:
            await self._replies.put(None)
            raise
        await self._replies.put(None)

    async def _take(self, message: v1.ExplainStreamRequest) -> None:
        kind = message.WhichOneof("message")
        if kind == "request":
            self._arrived(InputError("another request came before all chunks had come."))
            await self._begin(message.request)
        elif kind == "chunk":
            if self._arriving is None:
                await self._fail("", InputError("a chunk without a request that waits for one."))
                return
            try:
                self._arriving.incoming.add(message.chunk)
            except OnnxplainError as error:
                self._arrived(error)
        if self._arriving is not None and self._arriving.incoming.complete:
            try:
                self._arriving.incoming.fill()
            except OnnxplainError as error:
                self._arrived(error)
            else:
                self._arrived()

    async def _begin(self, request: v1.ExplainRequest) -> None:
        name = request.request_id
        try:
            if name in self._open:
                raise InputError("this request_id is open already.").at("request_id")
            if len(self._tasks) >= OPEN_REQUESTS:
                raise InputError(f"at most {OPEN_REQUESTS} requests are open at once.")
            incoming = Incoming(request, self._nbytes)
        except OnnxplainError as error:
            await self._fail(name, error)
            return
        self._arriving = _Arriving(incoming, asyncio.get_running_loop().create_future())
        self._open.add(name)
        task = asyncio.create_task(self._answer(name, request, self._arriving.complete))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _arrived(self, problem: OnnxplainError | None = None) -> None:
        """No more chunks come for the request that waits for some, if one does."""
        arriving, self._arriving = self._arriving, None
        if arriving is None or arriving.complete.done():  # done: its time was over before
            return
        if problem is None:
            arriving.complete.set_result(None)
        else:
            arriving.complete.set_exception(problem)

    async def _answer(self, name: str, request: v1.ExplainRequest, complete: asyncio.Future[None]) -> None:
        with self._requests.answering():
            answered = False
            try:
                async with one_request(name, self._requests.seconds):
                    await complete
                    response = await self._explain(name, request)
                    answered = True
                    self._open.discard(name)
                    await self._send(name, response)
            except Exception as error:
                self._open.discard(name)
                if answered and isinstance(error, OnnxplainError):  # there is nobody to be told
                    self._requests.end(error)
                else:
                    await self._fail(name, error)

    async def _explain(self, name: str, request: v1.ExplainRequest) -> v1.ExplainResponse:
        progress = _Progress()
        reports = asyncio.create_task(self._report(name, progress))
        try:
            async with self._repository.use(request.model.name, request.model.version) as served:
                return await served.explain(request, progress)
        finally:
            reports.cancel()

    async def _send(self, name: str, response: v1.ExplainResponse) -> None:
        """Until the last message of it was taken."""
        chunks = outsourced(response)
        await self._replies.put(v1.ExplainStreamResponse(response=response, request_id=name))
        for chunk in chunks.chunks():
            await self._replies.put(v1.ExplainStreamResponse(chunk=chunk, request_id=name))
        taken = asyncio.Event()
        await self._replies.put(taken)
        await taken.wait()

    async def _report(self, name: str, progress: _Progress) -> None:
        """Say how far the request is, four times a second at most."""
        while True:
            await asyncio.sleep(PROGRESS)
            completed, total = progress.latest
            message = v1.Progress(completed=completed, total=total, stage="compute")
            message.update_time.FromNanoseconds(time.time_ns())
            await self._replies.put(v1.ExplainStreamResponse(progress=message, request_id=name))

    async def _fail(self, name: str, error: Exception) -> None:
        status = grpc_status.logged_status(error)
        fault = v1.StreamError(code=status.code, text=status.message, field=getattr(error, "field", ""))
        try:
            async with asyncio.timeout(LAST_WORD):
                await self._replies.put(v1.ExplainStreamResponse(error=fault, request_id=name))
        except TimeoutError:
            self._requests.end(Expired("the replies of this stream are not read."))


def outsourced(response: v1.ExplainResponse) -> Outgoing:
    """Take tensors out of a large response; they follow in chunks."""
    outgoing = Outgoing()
    for _, tensor in tensors(response):
        outgoing.take(tensor)
    return outgoing
