"""onnxplain.v1.ExplainerService: convert, call, convert. The interceptor turns what is raised into a status."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from onnxplain.errors import Denied, InputError
from onnxplain.server.handlers.model_description import list_recipes
from onnxplain.server.memory_ledger import MemoryLedger
from onnxplain.server.models.repository import ModelRepository
from onnxplain.server.options import ServerOptions
from onnxplain.server.rpc.explain_stream import ExplainStream
from onnxplain.server.rpc.request_stream import RequestStream
from onnxplain.v1 import explainer_pb2 as v1
from onnxplain.v1 import explainer_pb2_grpc
from onnxplain.wire.chunks import tensors


class ExplainerService(explainer_pb2_grpc.ExplainerServiceServicer):
    """Answers by the models of a repository."""

    def __init__(self, repository: ModelRepository, options: ServerOptions, memory: MemoryLedger | None = None):
        self.repository, self.options = repository, options
        self._memory = memory or MemoryLedger(options.client_bytes)

    async def Explain(self, request: v1.ExplainRequest, context: Any) -> v1.ExplainResponse:
        """One request, one answer."""
        for path, tensor in tensors(request):
            if tensor.WhichOneof("content") == "chunked":
                raise InputError(f"{path}: chunks need ExplainStream; Explain takes raw bytes.").at(f"{path}.chunked")
        async with self.repository.use(request.model.name, request.model.version) as served:
            return await served.explain(request)

    async def ExplainStream(self, requests: RequestStream, context: Any) -> AsyncIterator[v1.ExplainStreamResponse]:
        """Any number of requests, answered as they are ready, large tensors in chunks."""
        async with aclosing(
            ExplainStream(self.repository, requests, self.options.queue_bytes, self._memory).replies()
        ) as replies:
            async for reply in replies:
                yield reply

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
        booking = self._memory.booking("replies", "the graph")
        try:
            async with self.repository.use(request.model.name, request.model.version) as served:
                async for piece in served.compile(request):
                    booking.grow(piece.graph.byte_size)  # which the first tells: all of it waits for who reads it
                    yield piece
        finally:
            booking.release()
