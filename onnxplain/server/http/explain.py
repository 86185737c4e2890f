"""Explanations over HTTP: a picture or tensors in, the reasons out."""

from __future__ import annotations

import asyncio

from onnxplain.client.requests import ModelInfo
from onnxplain.errors import NotFound, OnnxplainError
from onnxplain.inputs import Loaded, bind
from onnxplain.server.http.answers import check_drawing, chosen_format, explained
from onnxplain.server.http.explain_words import ExplainWords, asked
from onnxplain.server.http.reply import Reply
from onnxplain.server.http.request import HttpRequest
from onnxplain.server.http.services import Services
from onnxplain.server.http.uploads import Upload
from onnxplain.v1 import explainer_pb2 as v1
from onnxplain.wire.tensors import Array, v1_tensor

Input = Upload | dict[str, Array]


async def model_explain(services: Services, request: HttpRequest) -> Reply:
    """Why a model answers as it does for a picture or tensors: as JSON, PNG, HTML report or npz."""
    words, given = await services.sized(len(request.body), lambda: asked(request))
    form = chosen_format(words, request.headers.get("accept", ""))
    check_drawing(words, form)
    reply, info, loaded = await explanation(services, request, words, given)
    return await services.in_thread(lambda: explained(reply, info, loaded, words, form))


async def explanation(
    services: Services, request: HttpRequest, words: ExplainWords, given: Input
) -> tuple[v1.ExplainResponse, ModelInfo, Loaded]:
    """What the gRPC service answers for the same input, prepared by the settings of the version that answers."""
    while True:
        info = await described(services, request)
        loaded = await services.in_thread(lambda info=info: _loaded(given, info, request.most))  # type: ignore[misc]
        message = words.message(request.model, info.version, info.method)
        message.inputs.extend(v1_tensor(name, array) for name, array in loaded.feeds.items())
        try:
            return await services.explainer.Explain(message, None), info, loaded
        except NotFound:
            if request.version or (await described(services, request)).version == info.version:
                raise  # else another version came meanwhile: once more, by its settings
            await asyncio.sleep(0)


async def described(services: Services, request: HttpRequest) -> ModelInfo:
    """What the model takes, and how pictures become that."""
    asked_for = v1.GetExplainabilityRequest(
        model=v1.ModelRef(name=request.model, version=request.version), view=v1.EXPLAINABILITY_VIEW_BASIC
    )
    return ModelInfo(await services.explainer.GetExplainability(asked_for, None))


def _loaded(given: Input, info: ModelInfo, most: int) -> Loaded:
    if isinstance(given, Upload):
        return given.loaded(info, most)
    try:
        return Loaded(feeds=bind(given, info.specs, "the request"))
    except OnnxplainError as error:
        raise error.at(error.field or "inputs") from None
