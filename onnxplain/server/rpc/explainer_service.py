"""onnxplain.v1.ExplainerService: convert, call, convert. The interceptor turns what is raised into a status."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from onnxplain.errors import Denied, Expired, InputError, OnnxplainError
from onnxplain.server import grpc_status
from onnxplain.server.call import CALL
from onnxplain.server.handlers.model_description import list_recipes
from onnxplain.server.models.repository import ModelRepository
from onnxplain.server.options import ServerOptions
from onnxplain.v1 import explainer_pb2 as v1
from onnxplain.v1 import explainer_pb2_grpc
from onnxplain.wire.chunks import Incoming, Outgoing, tensors

PROGRESS = 0.25  # seconds between two reports of one request
OPEN_REQUESTS = 64  # of one stream


class ExplainerService(explainer_pb2_grpc.ExplainerServiceServicer):
    """Answers by the models of a repository."""

    def __init__(self, repository: ModelRepository, options: ServerOptions):
        self.repository, self.options = repository, options

    async def Explain(self, request: v1.ExplainRequest, context: Any) -> v1.ExplainResponse:
        """One request, one answer."""
        for path, tensor in tensors(request):
            if tensor.WhichOneof("content") == "chunked":
                raise InputError(f"{path}: chunks need ExplainStream; Explain takes raw bytes.").at(f"{path}.chunked")
        async with self.repository.use(request.model.name, request.model.version) as served:
            return await served.explain(request)

    async def ExplainStream(
        self, requests: AsyncIterator[v1.ExplainStreamRequest], context: Any
    ) -> AsyncIterator[v1.ExplainStreamResponse]:
        """Any number of requests, answered as they are ready, large tensors in chunks."""
        replies: asyncio.Queue[v1.ExplainStreamResponse | None] = asyncio.Queue(maxsize=8)  # slow readers wait here
        reader = asyncio.create_task(_Stream(self, replies).read(requests))
        try:
            while (reply := await replies.get()) is not None:
                yield reply
            await reader
        finally:
            reader.cancel()

    async def GetExplainability(
        self, request: v1.GetExplainabilityRequest, context: Any
    ) -> v1.GetExplainabilityResponse:
        """What can be explained of a model."""
        async with self.repository.use(request.model.name, request.model.version) as served:
            return await served.explainability(request)

    async def ListRecipes(self, request: v1.ListRecipesRequest, context: Any) -> v1.ListRecipesResponse:
        """Recipes by name, in pages."""
        return list_recipes(request.page_size, request.page_token)

    async def CompileGraph(
        self, request: v1.CompileGraphRequest, context: Any
    ) -> AsyncIterator[v1.CompileGraphResponse]:
        """The compiled graph, weights and all, where the operator allows it."""
        if not self.options.allow_export:
            raise Denied("this server gives no graphs away; its operator can start it with --allow-export.")
        async with self.repository.use(request.model.name, request.model.version) as served:
            async for piece in served.compile(request):
                yield piece


class _Progress:
    """The latest word on how far a request is; told from a thread, read in the event loop."""

    def __init__(self) -> None:
        self.latest = (0, 1)

    def __call__(self, done: int, total: int) -> None:
        self.latest = (done, total)


class _Stream:
    """One ExplainStream: requests open by id, those that still wait for chunks, tasks that compute."""

    def __init__(self, service: ExplainerService, replies: asyncio.Queue[v1.ExplainStreamResponse | None]):
        self._service, self._replies = service, replies
        self._open: set[str] = set()
        self._waiting: tuple[v1.ExplainRequest, Incoming] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def read(self, requests: AsyncIterator[v1.ExplainStreamRequest]) -> None:
        """Take messages until the client has no more, then finish what is open."""
        try:
            async for message in requests:
                await self._take(message)
            if self._waiting is not None:
                request, _ = self._waiting
                await self._fail(request.request_id, InputError("the stream ended before all chunks had come."))
            if self._tasks:
                await asyncio.gather(*self._tasks)
        finally:
            for task in self._tasks:
                task.cancel()
            await self._replies.put(None)

    async def _take(self, message: v1.ExplainStreamRequest) -> None:
        kind = message.WhichOneof("message")
        if kind == "request":
            request = message.request
            if self._waiting is not None:
                pending, self._waiting = self._waiting[0], None
                await self._fail(pending.request_id, InputError("another request came before all chunks had come."))
            if request.request_id in self._open:
                await self._fail(request.request_id, InputError("this request_id is open already.").at("request_id"))
                return
            if len(self._open) >= OPEN_REQUESTS:
                await self._fail(request.request_id, InputError(f"at most {OPEN_REQUESTS} requests are open at once."))
                return
            try:
                incoming = Incoming(request, self._service.options.queue_bytes)
            except OnnxplainError as error:
                await self._fail(request.request_id, error)
                return
            self._open.add(request.request_id)
            self._waiting = (request, incoming)
        elif kind == "chunk":
            if self._waiting is None:
                await self._fail("", InputError("a chunk without a request that waits for one."))
                return
            try:
                self._waiting[1].add(message.chunk)
            except OnnxplainError as error:
                request, self._waiting = self._waiting[0], None
                await self._fail(request.request_id, error)
                return
        if self._waiting is not None and self._waiting[1].complete:
            (request, incoming), self._waiting = self._waiting, None
            try:
                incoming.fill()
            except OnnxplainError as error:
                await self._fail(request.request_id, error)
                return
            task = asyncio.create_task(self._answer(request))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer(self, request: v1.ExplainRequest) -> None:
        name, seconds = request.request_id, self._service.options.max_request_seconds
        part, forget = CALL.get().part(name, seconds)
        CALL.set(part)
        late = Expired(f"a request of a stream may take {seconds:g} s here; send fewer rows.")
        timer = asyncio.get_running_loop().call_later(seconds, part.stop, late)
        progress = _Progress()
        watch = asyncio.create_task(self._report(name, progress))
        try:
            async with self._service.repository.use(request.model.name, request.model.version) as served:
                response = await served.explain(request, progress)
        except asyncio.CancelledError:
            part.stop()
            raise
        except Exception as error:
            await self._fail(name, error)
            return
        finally:
            timer.cancel()
            watch.cancel()
            forget()
        self._open.discard(name)
        chunks = outsourced(response)
        await self._replies.put(v1.ExplainStreamResponse(response=response, request_id=name))
        for chunk in chunks.chunks():
            await self._replies.put(v1.ExplainStreamResponse(chunk=chunk, request_id=name))

    async def _report(self, name: str, progress: _Progress) -> None:
        """Say how far the request is, four times a second at most."""
        while True:
            await asyncio.sleep(PROGRESS)
            completed, total = progress.latest
            message = v1.Progress(completed=completed, total=total, stage="compute")
            message.update_time.FromNanoseconds(time.time_ns())
            await self._replies.put(v1.ExplainStreamResponse(progress=message, request_id=name))

    async def _fail(self, name: str, error: Exception) -> None:
        self._open.discard(name)
        status = grpc_status.status_of(error)
        fault = v1.StreamError(code=status.code, text=status.message, field=getattr(error, "field", ""))
        await self._replies.put(v1.ExplainStreamResponse(error=fault, request_id=name))


def outsourced(response: v1.ExplainResponse) -> Outgoing:
    """Take tensors out of a large response; they follow in chunks."""
    outgoing = Outgoing()
    for _, tensor in tensors(response):
        outgoing.take(tensor)
    return outgoing
