"""KServe's first protocol, which is TensorFlow Serving's: rows as `instances`, or columns as `inputs`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnxplain.client.responses import remote_explanation
from onnxplain.errors import InputError, UnknownName
from onnxplain.explanation import Explanation
from onnxplain.server.http.body import json_object, kind_of
from onnxplain.server.http.explain import explanation
from onnxplain.server.http.explain_words import ExplainWords, from_json, from_pairs
from onnxplain.server.http.open_inference import model_ready
from onnxplain.server.http.reply import Reply
from onnxplain.server.http.request import HttpRequest
from onnxplain.server.http.services import Services
from onnxplain.server.http.tensors import json_array, json_values, write_json
from onnxplain.server.models.served import split
from onnxplain.wire.inference import messages as oip
from onnxplain.wire.tensors import RANK, Array, to_array, to_raw

BODY = ("instances", "inputs")
SAID_OF_ONE = 'give one of "instances" (a row each) and "inputs" (whole tensors).'


async def model_list(services: Services, request: HttpRequest) -> Reply:
    """Names of the models that answer."""
    index = await services.inference.RepositoryIndex(oip.RepositoryIndexRequest(ready=True), None)
    names = dict.fromkeys(model.name for model in index.models if split(model.name)[1] is None)
    return Reply(write_json({"models": list(names)}))


async def ready(services: Services, request: HttpRequest) -> Reply:
    """Whether one model answers."""
    return await model_ready(services, request)


async def predict(services: Services, request: HttpRequest) -> Reply:
    """Run a model: {"instances": rows} gives "predictions", {"inputs": tensors} gives "outputs"."""
    body = await services.sized(len(request.body), lambda: json_object(request.body, request.most))
    _only(body, BODY)
    described = await services.inference.ModelMetadata(oip.ModelMetadataRequest(name=request.model), None)
    arrays = await services.sized(len(request.body), lambda: arrays_of(body, described.inputs))
    message = oip.ModelInferRequest(model_name=request.model)
    kinds = {tensor.name: tensor.datatype for tensor in described.inputs}
    for name, array in arrays.items():
        message.inputs.add(name=name, datatype=kinds[name], shape=array.shape)
        message.raw_input_contents.append(to_raw(array))
    reply = await services.inference.ModelInfer(message, None)
    rows = len(body["instances"]) if "instances" in body else None
    return await services.sized(reply.ByteSize(), lambda: Reply(write_json(_answer(reply, rows))))


async def explain(services: Services, request: HttpRequest) -> Reply:
    """Why the model answers so: a body as for predict, with target, method, options, recipe … beside it."""
    body = await services.sized(len(request.body), lambda: json_object(request.body, request.most))
    given = {name: body.pop(name) for name in BODY if name in body}
    words = from_json(from_pairs(ExplainWords(), request.query), body)
    words.refuse_drawing()
    described = await services.inference.ModelMetadata(oip.ModelMetadataRequest(name=request.model), None)
    arrays = await services.sized(len(request.body), lambda: arrays_of(given, described.inputs))
    reply, info, loaded = await explanation(services, request, words, arrays)

    def write() -> Reply:
        found = remote_explanation(reply, info, loaded, words.targets)
        head = {"model_name": found.model, "model_version": found.version, "method": found.method.name}
        entries = [_row(found, sample) for sample in range(found.samples)]
        said = {"recipe": found.recipe.content(), "explanations": entries, "warnings": list(found.notes)}
        return Reply(write_json({**head, **said}))

    return await services.in_thread(write)


def arrays_of(body: Mapping[str, Any], inputs: Sequence[Any]) -> dict[str, Array]:
    """Arrays by name. inputs: the model's, as its metadata tells. Raises InputError with the field."""
    if ("instances" in body) == ("inputs" in body):
        raise InputError(SAID_OF_ONE).at("instances")
    word = "instances" if "instances" in body else "inputs"
    given = body[word]
    if not isinstance(given, list if word == "instances" else list | dict) or not given:
        raise InputError(f"{word}: {kind_of(given)} or empty, expected an array of rows.").at(word)
    if word == "instances" and any(isinstance(row, dict) for row in given):
        given = _columns(given)
    if not isinstance(given, dict):
        if len(inputs) != 1:
            names = ", ".join(tensor.name for tensor in inputs)
            raise InputError(f"{word}: the model has several inputs; name each: {names}.").at(word)
        given = {inputs[0].name: given}
    kinds = {tensor.name: tensor.datatype for tensor in inputs}
    for name in given:
        if name not in kinds:
            raise UnknownName("input", name[:100], kinds).at(word)
    return {
        name: json_array(kinds[name], shape_of(data, f"{word}.{name}"), data, f"{word}.{name}")
        for name, data in given.items()
    }


def shape_of(data: Any, where: str) -> list[int]:
    """The shape of nested lists, by the first entry of each; whether all are alike is seen when they are read."""
    shape: list[int] = []
    while isinstance(data, list):
        shape.append(len(data))
        if len(shape) > RANK:
            raise InputError(f"{where}: more than {RANK} axes.").at(where)
        if not data:
            break
        data = data[0]
    return shape


def _columns(rows: Sequence[Any]) -> dict[str, list[Any]]:
    """Rows of named values as one list for each name."""
    names = list(rows[0]) if isinstance(rows[0], dict) else []
    for n, row in enumerate(rows):
        if not isinstance(row, dict) or row.keys() != set(names):
            raise InputError(f"instances[{n}]: every row names the same inputs: {', '.join(names)}."[:500]).at(
                f"instances[{n}]"
            )
    return {name: [row[name] for row in rows] for name in names}


def _answer(reply: Any, rows: int | None) -> dict[str, Any]:
    """Predictions row by row, or whole outputs. One output stands alone, several by name."""
    arrays = {
        tensor.name: to_array(tensor.datatype, tensor.shape, raw, tensor.name)
        for tensor, raw in zip(reply.outputs, reply.raw_output_contents, strict=True)
    }
    values = {name: json_values(array) for name, array in arrays.items()}
    (only, *more) = values.values()
    if rows is None:
        return {"outputs": values if more else only}
    for name, array in arrays.items():
        if not array.ndim or len(array) != rows:
            raise InputError(f"output {name} has no row for each instance; send whole tensors as inputs.").at(
                "instances"
            )
    if not more:
        return {"predictions": only}
    return {"predictions": [{name: value[n] for name, value in values.items()} for n in range(rows)]}


def _row(found: Explanation, sample: int) -> dict[str, Any]:
    """All targets of one instance."""
    return {
        "predicted": found.predicted(sample),
        "targets": [
            {
                "target": target.names[sample] if len(target.names) > sample else target.name,
                "score": float(np.atleast_1d(target.score)[min(sample, np.size(target.score) - 1)]),
                "attributions": {name: json_values(found.row(row, name)) for name in found.relevances},
                **_standard_errors(found, row),
            }
            for target, at, row in found.rows()
            if at == sample
        ],
    }


def _standard_errors(found: Explanation, row: int) -> dict[str, Any]:
    """By attributed tensor, where the method draws samples."""
    errors = {name: found.standard_error_row(row, name) for name in found.standard_errors}
    values = {name: json_values(array) for name, array in errors.items() if array is not None}
    return {"standard_errors": values} if values else {}


def _only(body: Mapping[str, Any], known: Sequence[str]) -> None:
    for name in body:
        if name not in known:
            raise UnknownName("key", name[:100], known).at(name[:100])
