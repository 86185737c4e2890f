"""The Open Inference Protocol's REST, with Triton's additions: one function an endpoint, over the gRPC service."""

from __future__ import annotations

from typing import Any

from onnxplain.errors import NotFound, OnnxplainError, UnknownName
from onnxplain.server.http.body import json_object, kind_of
from onnxplain.server.http.errors import HttpError
from onnxplain.server.http.infer_messages import HEAD_LENGTH, infer_reply, infer_request, raw_request, set_parameters
from onnxplain.server.http.message_json import plain
from onnxplain.server.http.reply import Reply
from onnxplain.server.http.request import HttpRequest
from onnxplain.server.http.services import Services
from onnxplain.server.http.tensors import write_json
from onnxplain.wire.inference import messages as oip

NOT_READY = {"retry-after": "1"}


async def server_metadata(services: Services, request: HttpRequest) -> Reply:
    """Name, version, extensions."""
    return Reply(write_json(plain(await services.inference.ServerMetadata(oip.ServerMetadataRequest(), None))))


async def server_live(services: Services, request: HttpRequest) -> Reply:
    """Whether the server takes requests."""
    found = await services.inference.ServerLive(oip.ServerLiveRequest(), None)
    return _readiness({"live": found.live}, found.live)


async def server_ready(services: Services, request: HttpRequest) -> Reply:
    """Whether its models answer."""
    found = await services.inference.ServerReady(oip.ServerReadyRequest(), None)
    return _readiness({"ready": found.ready}, found.ready)


async def model_ready(services: Services, request: HttpRequest) -> Reply:
    """Whether one model answers: 404 where it is not known, 503 where it does not answer now."""
    message = oip.ModelReadyRequest(name=request.model, version=request.version)
    ready = (await services.inference.ModelReady(message, None)).ready
    if not ready:
        await require_known(services, request)
    return _readiness({"name": request.model, "ready": ready}, ready)


async def model_metadata(services: Services, request: HttpRequest) -> Reply:
    """Inputs and outputs of a model."""
    message = oip.ModelMetadataRequest(name=request.model, version=request.version)
    return Reply(write_json(plain(await services.inference.ModelMetadata(message, None))))


async def model_config(services: Services, request: HttpRequest) -> Reply:
    """Types and batching of a model, as Triton's tools ask for them."""
    message = oip.ModelConfigRequest(name=request.model, version=request.version)
    return Reply(write_json(plain((await services.inference.ModelConfig(message, None)).config)))


async def model_statistics(services: Services, request: HttpRequest) -> Reply:
    """Counts and times of one model, or of all."""
    message = oip.ModelStatisticsRequest(name=request.model, version=request.version)
    return Reply(write_json(plain(await services.inference.ModelStatistics(message, None))))


async def model_infer(services: Services, request: HttpRequest) -> Reply:
    """Run a model, or its explanation (M.explain): JSON tensors, or bytes behind a JSON head."""
    if request.headers.get(HEAD_LENGTH) == "0":
        metadata = oip.ModelMetadataRequest(name=request.model, version=request.version)
        described = await services.inference.ModelMetadata(metadata, None)
        message, form = raw_request(request.model, request.version, request.body, described)
    else:
        message, form = await services.sized(
            len(request.body),
            lambda: infer_request(request.model, request.version, request.body, request.headers, request.most),
        )
    reply = await services.inference.ModelInfer(message, None)
    return await services.sized(reply.ByteSize(), lambda: infer_reply(reply, form))


async def repository_index(services: Services, request: HttpRequest) -> Reply:
    """Every model with its state."""
    body = _fields(request, ("ready",))
    ready = body.get("ready", False)
    if not isinstance(ready, bool):
        raise HttpError(f"ready: {kind_of(ready)}, expected true or false.").at("ready")
    found = await services.inference.RepositoryIndex(oip.RepositoryIndexRequest(ready=ready), None)
    return Reply(write_json([plain(model) for model in found.models]))


async def model_load(services: Services, request: HttpRequest) -> Reply:
    """Load or reload a model, under explicit control."""
    message = oip.RepositoryModelLoadRequest(model_name=request.model)
    set_parameters(message.parameters, _parameters(request), "parameters")
    await services.inference.RepositoryModelLoad(message, None)
    return Reply(b"{}")


async def model_unload(services: Services, request: HttpRequest) -> Reply:
    """Take a model away, under explicit control."""
    message = oip.RepositoryModelUnloadRequest(model_name=request.model)
    set_parameters(message.parameters, _parameters(request), "parameters")
    await services.inference.RepositoryModelUnload(message, None)
    return Reply(b"{}")


async def require_known(services: Services, request: HttpRequest) -> None:
    """Raise NotFound for a model that is not here, nothing for one that only does not answer now."""
    try:
        await model_metadata(services, request)
    except NotFound:
        raise
    except OnnxplainError:
        return


def _readiness(found: dict[str, Any], true: bool) -> Reply:
    return Reply(write_json(found), 200 if true else 503, headers={} if true else NOT_READY)


def _fields(request: HttpRequest, known: tuple[str, ...]) -> dict[str, Any]:
    body = json_object(request.body, request.most)
    for name in body:
        if name not in known:
            raise UnknownName("key", name[:100], known).at(name[:100])
    return body


def _parameters(request: HttpRequest) -> dict[str, Any]:
    parameters = _fields(request, ("parameters",)).get("parameters") or {}
    if not isinstance(parameters, dict):
        raise HttpError(f"parameters: {kind_of(parameters)}, expected an object.").at("parameters")
    return parameters
