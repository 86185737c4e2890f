"""ModelInfer as REST writes it, to the protocol's own messages and back: JSON, and Triton's binary extension."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from onnxplain.errors import InputError, UnknownName
from onnxplain.server.http.body import json_object, kind_of
from onnxplain.server.http.reply import Reply
from onnxplain.server.http.tensors import json_array, json_tensor, write_json
from onnxplain.wire.inference import messages as oip
from onnxplain.wire.tensors import INPUTS, RANK, size_of, to_array, to_raw

HEAD_LENGTH = "inference-header-content-length"  # bytes of JSON in front of the binary data
BINARY_SIZE, BINARY_DATA, BINARY_OUTPUT = "binary_data_size", "binary_data", "binary_data_output"
BINARY = "application/octet-stream"
REQUEST_KEYS = ("id", "parameters", "inputs", "outputs", "model_name", "model_version")
INPUT_KEYS = ("name", "datatype", "shape", "parameters", "data")
OUTPUT_KEYS = ("name", "parameters")


@dataclass(frozen=True)
class OutputForm:
    """How the outputs are to be written. named: by output; others as `binary` says."""

    binary: bool = False
    named: Mapping[str, bool] = field(default_factory=dict)

    def is_binary(self, name: str) -> bool:
        """Whether one output is sent as bytes behind the JSON."""
        return self.named.get(name, self.binary)


def infer_request(
    model: str, version: str, body: bytes, headers: Mapping[str, str], most: int
) -> tuple[Any, OutputForm]:  # fmt: skip
    """The message that a body stands for, and how its answer is to be written. Raises InputError with the field."""
    length = _head_length(headers, len(body))
    view = memoryview(body)
    head, tail = json_object(view[:length], most), view[length:]
    _known(head, REQUEST_KEYS, "")
    for key, wanted in (("model_name", model), ("model_version", version)):
        if wanted and head.get(key) not in (None, "", wanted):
            raise InputError(f"{key} is {str(head[key])[:100]!r}, the address says {wanted!r}.").at(key)
    request = oip.ModelInferRequest(model_name=model, model_version=version, id=text(head.get("id", ""), "id"))
    parameters = dict(_object(head.get("parameters"), "parameters"))
    every = _flag(parameters.pop(BINARY_OUTPUT, False), f"parameters.{BINARY_OUTPUT}")
    set_parameters(request.parameters, parameters, "parameters")
    inputs = _objects(head.get("inputs"), "inputs")
    if not inputs:
        raise InputError("inputs: a list of one tensor or more is missing.").at("inputs")
    taken = 0
    for n, tensor in enumerate(inputs):
        taken += _input(request, tensor, f"inputs[{n}]", tail[taken:])
    if taken < len(tail):
        raise InputError(f"{len(tail) - taken} bytes behind the last binary tensor.").at("inputs")
    return request, OutputForm(every, _outputs(request, head.get("outputs"), every))


def raw_request(model: str, version: str, body: bytes, metadata: Any) -> tuple[Any, OutputForm]:
    """A body that is nothing but the bytes of the model's only input, as Inference-Header-Content-Length: 0 says."""
    if len(metadata.inputs) != 1:
        names = ", ".join(tensor.name for tensor in metadata.inputs)
        raise InputError(f"a body without JSON is for models with one input; this one takes {names}.").at("inputs")
    (tensor,) = metadata.inputs
    shape = list(tensor.shape)
    if shape.count(-1) > 1 or tensor.datatype == "BYTES":
        raise InputError(f"{tensor.name}: the bytes alone do not tell its shape {shape}; send JSON in front.").at(
            "inputs[0].shape"
        )
    if -1 in shape:
        row = size_of(tensor.datatype, [side for side in shape if side >= 0], "inputs[0]")[1]
        if not row or len(body) % row:
            raise InputError(f"{tensor.name}: {len(body)} bytes are no multiple of {row}.").at("inputs[0].shape")
        shape[shape.index(-1)] = len(body) // row
    request = oip.ModelInferRequest(model_name=model, model_version=version)
    request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=shape)
    request.raw_input_contents.append(body)
    return request, OutputForm(binary=True)


def infer_reply(response: Any, form: OutputForm) -> Reply:
    """A ModelInferResponse as REST writes it: bytes only where they were asked for."""
    head: dict[str, Any] = {"model_name": response.model_name, "model_version": response.model_version}
    if response.id:
        head["id"] = response.id
    if response.parameters:
        head["parameters"] = plain_parameters(response.parameters)
    outputs: list[dict[str, Any]] = []
    tail: list[bytes] = []
    for tensor, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        if form.is_binary(tensor.name):
            parameters = {**plain_parameters(tensor.parameters), BINARY_SIZE: len(raw)}
            entry = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
            outputs.append({**entry, "parameters": parameters})
            tail.append(raw)
        else:
            outputs.append(json_tensor(tensor.name, to_array(tensor.datatype, tensor.shape, raw, tensor.name)))
    content = write_json({**head, "outputs": outputs})
    if not tail:
        return Reply(content)
    return Reply(b"".join([content, *tail]), media_type=BINARY, headers={HEAD_LENGTH: str(len(content))})


def set_parameters(into: Any, parameters: Mapping[str, Any], where: str) -> None:
    """Parameters as the protocol's messages hold them: bool, int64, string, and of inference uint64 and double."""
    for name, value in parameters.items():
        at = f"{where}.{name[:100]}"
        match value:
            case bool():
                kind = "bool_param"
            case int() if -(2**63) <= value < 2**63:
                kind = "int64_param"
            case int() if 0 <= value < 2**64:
                kind = "uint64_param"
            case float() if math.isfinite(value):
                kind = "double_param"
            case str():
                kind, value = "string_param", _utf8(value, at)
            case _:
                kind = ""
        parameter = into[_utf8(name, at)]
        if kind not in parameter.DESCRIPTOR.fields_by_name:
            shown = repr(value)[:40] if isinstance(value, int | float) else kind_of(value)
            raise InputError(f"{at}: {shown}; a parameter is true, false, a number or a string.").at(at)
        setattr(parameter, kind, value)


def plain_parameters(parameters: Any) -> dict[str, Any]:
    """Parameters of a message as JSON has them."""
    found = {}
    for name, value in parameters.items():
        kind = value.WhichOneof("parameter_choice")
        found[name] = getattr(value, kind) if kind else None
    return found


def text(value: Any, where: str) -> str:
    """A string that may go into a message. Raises InputError."""
    if not isinstance(value, str):
        raise InputError(f"{where}: {kind_of(value)}, expected a string.").at(where)
    return _utf8(value, where)


def _utf8(value: str, where: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: half a surrogate pair is no text.").at(where) from error
    return value


def _head_length(headers: Mapping[str, str], size: int) -> int:
    said = headers.get(HEAD_LENGTH)
    if said is None:
        return size
    if not (said.isascii() and said.isdecimal() and len(said) < 19) or int(said) > size:
        raise InputError(f"{HEAD_LENGTH}: {said[:40]!r}, the body has {size} bytes.").at(HEAD_LENGTH)
    return int(said)


def _input(request: Any, tensor: Mapping[str, Any], where: str, tail: memoryview) -> int:
    """Add one input to the message; how many of the binary bytes it took."""
    _known(tensor, INPUT_KEYS, f"{where}.")
    name, datatype = (text(tensor.get(key), f"{where}.{key}") for key in ("name", "datatype"))
    shape = _shape(tensor.get("shape"), f"{where}.shape")
    parameters = dict(_object(tensor.get("parameters"), f"{where}.parameters"))
    size = parameters.pop(BINARY_SIZE, None)
    size_of(datatype, shape, where)
    if size is None:
        if "data" not in tensor and not parameters:
            raise InputError(f"{where}.data is missing.").at(f"{where}.data")
        raw = to_raw(json_array(datatype, shape, tensor["data"], where)) if "data" in tensor else b""
    else:
        at = f"{where}.parameters.{BINARY_SIZE}"
        if "data" in tensor:
            raise InputError(f"{where}.data: beside {BINARY_SIZE}. Send the one or the other.").at(f"{where}.data")
        if type(size) is not int or not 0 <= size <= len(tail):
            raise InputError(f"{at}: {str(size)[:40]}, there are {len(tail)} bytes left.").at(at)
        raw = bytes(tail[:size])
    request.inputs.add(name=name, datatype=datatype, shape=shape)
    set_parameters(request.inputs[-1].parameters, parameters, f"{where}.parameters")
    request.raw_input_contents.append(raw)
    return 0 if size is None else int(size)


def _outputs(request: Any, given: Any, every: bool) -> dict[str, bool]:
    """Add the outputs that are asked for to the message; which of them are to be sent as bytes."""
    binary: dict[str, bool] = {}
    for n, output in enumerate(_objects(given, "outputs")):
        where = f"outputs[{n}]"
        _known(output, OUTPUT_KEYS, f"{where}.")
        name = text(output.get("name"), f"{where}.name")
        parameters = dict(_object(output.get("parameters"), f"{where}.parameters"))
        binary[name] = _flag(parameters.pop(BINARY_DATA, every), f"{where}.parameters.{BINARY_DATA}")
        request.outputs.add(name=name)
        set_parameters(request.outputs[-1].parameters, parameters, f"{where}.parameters")
    return binary


def _shape(value: Any, where: str) -> list[int]:
    if not isinstance(value, list) or any(type(side) is not int for side in value):
        raise InputError(f"{where}: a list of whole numbers is missing.").at(where)
    if len(value) > RANK or any(not -(2**63) <= side < 2**63 for side in value):
        raise InputError(f"{where}: at most {RANK} axes of a length that can be.").at(where)
    return value


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if value is not None and not isinstance(value, dict):
        raise InputError(f"{where}: {kind_of(value)}, expected an object.").at(where)
    return value or {}


def _objects(value: Any, where: str) -> Sequence[Mapping[str, Any]]:
    if value is None:
        return []
    if not isinstance(value, list) or any(not isinstance(entry, dict) for entry in value):
        raise InputError(f"{where}: expected an array of objects.").at(where)
    if len(value) > INPUTS:
        raise InputError(f"{where}: {len(value)} tensors, at most {INPUTS} are taken.").at(where)
    return value


def _flag(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise InputError(f"{where}: {kind_of(value)}, expected true or false.").at(where)
    return value


def _known(given: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in given:
        if key not in known:
            raise UnknownName("key", f"{where}{key}"[:100], [where + name for name in known]).at(f"{where}{key}"[:100])
