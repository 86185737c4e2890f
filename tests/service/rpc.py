"""Calls without a client library: bytes or messages out, bytes or messages back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import grpc
import numpy as np
from grpc_health.v1 import health_pb2

from onnxplain.v1 import explainer_pb2 as v1
from onnxplain.wire.inference import INFERENCE, RPCS
from onnxplain.wire.inference import messages as oip
from onnxplain.wire.tensors import datatype_of, to_array, to_raw, v1_tensor

INFER = f"/{INFERENCE}/ModelInfer"
EXPLAIN = "/onnxplain.v1.ExplainerService/Explain"
HEALTH = "/grpc.health.v1.Health/Check"
UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


def unary(channel: Any, path: str, reply: Any = None) -> Any:
    """A callable that takes a message or bytes; reply: the class of its answer, None leaves bytes."""
    return channel.unary_unary(
        path,
        request_serializer=lambda m: m if isinstance(m, bytes) else m.SerializeToString(),
        response_deserializer=None if reply is None else reply.FromString,
    )


def infer(channel: Any) -> Any:
    """ModelInfer."""
    return unary(channel, INFER, RPCS["ModelInfer"].response)


def explain(channel: Any) -> Any:
    """Explain."""
    return unary(channel, EXPLAIN, v1.ExplainResponse)


def healthy(channel: grpc.Channel, timeout: float = 5.0) -> bool:
    """Whether the server as a whole says SERVING."""
    answer = unary(channel, HEALTH, health_pb2.HealthCheckResponse)(health_pb2.HealthCheckRequest(), timeout=timeout)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def infer_request(
    model: str, arrays: Mapping[str, np.ndarray], version: str = "", outputs: Iterable[str] = (), **parameters: str
) -> Any:
    """A ModelInferRequest with raw tensors."""
    request = oip.ModelInferRequest(model_name=model, model_version=version)
    for name, array in arrays.items():
        request.inputs.add(name=name, datatype=datatype_of(array.dtype), shape=array.shape)
        request.raw_input_contents.append(to_raw(array))
    for name in outputs:
        request.outputs.add(name=name)
    for name, value in parameters.items():
        request.parameters[name].string_param = value
    return request


def infer_arrays(reply: Any) -> dict[str, np.ndarray]:
    """The outputs of a ModelInferResponse."""
    return {
        tensor.name: to_array(tensor.datatype, tensor.shape, raw, tensor.name)
        for tensor, raw in zip(reply.outputs, reply.raw_output_contents, strict=True)
    }


def explain_request(model: str, arrays: Mapping[str, np.ndarray], *targets: str, **more: Any) -> v1.ExplainRequest:
    """An ExplainRequest; targets: expressions."""
    return v1.ExplainRequest(
        model=v1.ModelRef(name=model),
        inputs=[v1_tensor(name, array) for name, array in arrays.items()],
        targets=[v1.Target(expression=target) for target in targets],
        **more,
    )


def code(error: grpc.RpcError) -> str:
    """The name of an error's code."""
    return str(error.code().name)  # type: ignore[attr-defined]


def outcome(call: Any, request: Any, timeout: float = 60.0) -> str:
    """The name of the code that a call ends with."""
    try:
        call(request, timeout=timeout)
    except grpc.RpcError as error:
        return code(error)
    return "OK"
