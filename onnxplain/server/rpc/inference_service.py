"""inference.GRPCInferenceService: the Open Inference Protocol with Triton's numbering, over the same models."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from onnxplain import __version__
from onnxplain.errors import InputError, NotFound, OnnxplainError
from onnxplain.server import grpc_status
from onnxplain.server.call import CALL
from onnxplain.server.memory_ledger import MemoryLedger
from onnxplain.server.models.entry import READY
from onnxplain.server.models.repository import ModelRepository
from onnxplain.server.models.served import split
from onnxplain.server.rpc.request_stream import one_request
from onnxplain.wire.inference import INFERENCE, RPCS
from onnxplain.wire.inference import messages as oip

EXTENSIONS = (
    "model_repository",
    "model_configuration",
    "statistics",
    "parameters",
    "binary_tensor_data",
    "onnxplain.v1",
)  # what is implemented, and nothing else


class InferenceService:
    """Answers by the models of a repository; `M.explain` is the explanation of M as an ordinary model.

    max_request_seconds: for each request of a stream. memory: where replies of a stream are booked until they are sent.
    """

    def __init__(self, repository: ModelRepository, max_request_seconds: float, memory: MemoryLedger):
        self.repository, self._seconds, self._memory = repository, max_request_seconds, memory

    def handler(self) -> grpc.GenericRpcHandler:
        """All methods of the protocol that are implemented, for `server.add_generic_rpc_handlers`."""
        handlers = {}
        for name, method in RPCS.items():
            implemented: Callable[..., Any] | None = getattr(self, name, None)
            if implemented is None:
                continue
            make = (
                grpc.stream_stream_rpc_method_handler
                if method.client_streaming
                else grpc.unary_unary_rpc_method_handler
            )
            handlers[name] = make(
                implemented,
                request_deserializer=method.request.FromString,
                response_serializer=method.response.SerializeToString,
            )
        return grpc.method_handlers_generic_handler(INFERENCE, handlers)

    async def ServerLive(self, request: Any, context: Any) -> Any:
        """Whether requests are taken."""
        return oip.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: Any) -> Any:
        """Whether every model that is wanted answers."""
        return oip.ServerReadyResponse(ready=self.repository.ready)

    async def ModelReady(self, request: Any, context: Any) -> Any:
        """Whether one model answers; false for one that is not known."""
        model, _ = split(request.name)
        if self.repository.leaving:
            return oip.ModelReadyResponse(ready=False)
        try:
            if self.repository.entry(model, request.version).served is None:  # lazy: asking this loads nothing
                return oip.ModelReadyResponse(ready=True)
            async with self.repository.use(model, request.version) as served:
                return oip.ModelReadyResponse(ready=await served.ready(request.name))
        except OnnxplainError:
            return oip.ModelReadyResponse(ready=False)

    async def ServerMetadata(self, request: Any, context: Any) -> Any:
        """Name, version, extensions."""
        return oip.ServerMetadataResponse(name="onnxplain", version=__version__, extensions=EXTENSIONS)

    async def ModelMetadata(self, request: Any, context: Any) -> Any:
        """Inputs and outputs of a model, and all its versions that are served."""
        versions = self.repository.versions(split(request.name)[0])
        reply = await self._of(request.name, request.version, lambda served: served.metadata(request.name))
        reply.versions[:] = versions
        return reply

    async def ModelConfig(self, request: Any, context: Any) -> Any:
        """Types and batching of a model."""
        return await self._of(request.name, request.version, lambda served: served.config(request.name))

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        """Run a model, or its explanation."""
        if split(request.model_name)[1] is not None:
            CALL.get().caller.require("explain")
        return await self._of(request.model_name, request.model_version, lambda served: served.infer(request))

    async def ModelStreamInfer(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        """Requests one after the other; an error answers its request and the stream goes on."""
        async for request in requests:
            try:
                async with one_request(CALL.get().request_id, self._seconds):
                    response = await self.ModelInfer(request, context)
                booking = self._memory.booking("replies", "the reply", response.ByteSize())
            except Exception as error:
                reply = oip.ModelStreamInferResponse(error_message=grpc_status.logged_status(error).message)
                reply.infer_response.id = request.id
                yield reply
            else:
                try:
                    yield oip.ModelStreamInferResponse(infer_response=response)
                finally:
                    booking.release()

    async def ModelStatistics(self, request: Any, context: Any) -> Any:
        """Counts and times of one model, or of all."""
        reply = oip.ModelStatisticsResponse()
        if request.name:
            model, recipe = split(request.name)
            async with self.repository.use(model, request.version) as served:
                statistics = await served.statistics()
            reply.model_stats.extend(s for s in statistics if s.name == request.name)
            if not reply.model_stats and recipe is not None:
                raise NotFound(f"{request.name[:200]!r} was not asked for yet.").at("name")
        else:
            for served in self.repository.served():
                reply.model_stats.extend(await served.statistics())
        return reply

    async def RepositoryIndex(self, request: Any, context: Any) -> Any:
        """Every model with its state; explanations as models of their own."""
        reply = oip.RepositoryIndexResponse()
        for name, version, state, reason in self.repository.index():
            if request.ready and state != READY:
                continue
            reply.models.add(name=name, version=version, state=state, reason=reason[:500])
        for served in self.repository.served():
            for name, why_not in await served.explanations():
                if request.ready and why_not:
                    continue
                state = "UNAVAILABLE" if why_not else READY
                reply.models.add(name=name, version=served.version, state=state, reason=why_not[:500])
        reply.models.sort(key=lambda model: (model.name, int(model.version or 0)))
        return reply

    async def RepositoryModelLoad(self, request: Any, context: Any) -> Any:
        """Load or reload a model, under explicit control."""
        for name in request.parameters:
            raise InputError(
                f"parameter {name[:100]!r}: models are loaded from the repository as they are; nothing can be uploaded."
            ).at("parameters")
        await self.repository.load(request.model_name)
        return oip.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(self, request: Any, context: Any) -> Any:
        """Take a model away, under explicit control."""
        await self.repository.unload(request.model_name)
        return oip.RepositoryModelUnloadResponse()

    async def _of(self, name: str, version: str, ask: Callable[[Any], Awaitable[Any]]) -> Any:
        model, _ = split(name)
        async with self.repository.use(model, version) as served:
            return await ask(served)
