"""A model as protobuf without its weights: fast to pass around, and no larger than protobuf allows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxplain.cpu_session import CpuSession, place

SMALL = 1024  # bytes; smaller weights stay inside, because converters and shape inference look at them
EXTERNAL_IR = 4  # the first IR version whose weights need not be inputs too
NATIVE = {"f", "i", "u", "b"}  # numpy kinds that onnxruntime takes as they are


class _With:
    """An object of onnx_ir with other attributes in place of some of its own, to be written: nothing is changed."""

    def __init__(self, of: Any, **instead: Any):
        self._of = of
        vars(self).update(instead)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._of, name)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._of)


def outline(model: ir.Model, *, files: bool = True) -> tuple[onnx.ModelProto, dict[str, ir.TensorProtocol]]:
    """The model with its larger weights only declared, and those weights by name. The model itself is left alone.

    files: also those that lie in files beside the model; else these stay declared as they are.
    """
    weights: dict[str, ir.TensorProtocol] = {}
    written: dict[str, Any] = {}
    for name, value in model.graph.initializers.items():
        written[name] = value
        tensor = value.const_value
        if tensor is None or tensor.dtype == ir.DataType.STRING:
            continue
        external = isinstance(tensor, ir.ExternalTensor)
        if external and not files:
            continue
        if tensor.nbytes > SMALL:
            weights[name] = tensor
            shape = ir.Shape(tensor.shape.numpy())
            declared = ir.ExternalTensor(place(0), 0, tensor.nbytes, tensor.dtype, shape=shape, name=name)
            written[name] = _With(value, const_value=declared)
        elif external:
            written[name] = _With(value, const_value=ir.tensor(tensor.numpy(), dtype=tensor.dtype, name=name))
    stand_in: Any = _With(model, graph=_With(model.graph, initializers=written))
    return ir.serde.serialize_model(stand_in), weights


def in_parts(model: ir.Model) -> tuple[bytes, dict[str, np.ndarray]]:
    """The model without its larger weights, and these as arrays, read where they lie."""
    proto, arrays = apart(model)
    return proto.SerializeToString(), arrays


def apart(model: ir.Model) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """The same, the model as protobuf."""
    proto, weights = outline(model)
    proto.ir_version = max(proto.ir_version, EXTERNAL_IR)
    return proto, supply(proto, weights)


def supply(proto: onnx.ModelProto, weights: Mapping[str, ir.TensorProtocol]) -> dict[str, np.ndarray]:
    """The numbers of weights that a model declares as external, as `CpuSession` takes them.

    Those of types that numpy has not are put into the model.
    """
    arrays: dict[str, np.ndarray] = {}
    for declared in proto.graph.initializer:
        if declared.name not in weights:
            continue
        tensor = weights[declared.name]
        array = tensor.numpy()
        if array.dtype.kind in NATIVE and tensor.dtype.bitwidth >= 8 and array.dtype.type.__module__ == "numpy":
            entries = {"location": place(len(arrays)), "offset": "0", "length": str(array.nbytes)}
            del declared.external_data[:]
            declared.external_data.extend(onnx.StringStringEntryProto(key=k, value=v) for k, v in entries.items())
            arrays[declared.name] = np.asarray(array, dtype=array.dtype.newbyteorder("="), order="C")
        else:
            declared.CopyFrom(ir.serde.serialize_tensor(ir.tensor(array, dtype=tensor.dtype, name=declared.name)))
    return arrays


def runtime(model: ir.Model, *, optimise: bool = False) -> CpuSession:
    """The model in onnxruntime, its weights read where they lie. optimise: as in `CpuSession`."""
    content, weights = in_parts(model)
    return CpuSession(content, weights=weights, nodes=len(model.graph), optimise=optimise)


def release(*models: ir.Model) -> None:
    """Let go of what was read of weights in files; they are read again when asked for. What a session reads stays."""
    for model in models:
        for value in model.graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                with suppress(BufferError):
                    value.const_value.release()


def as_inputs(proto: onnx.ModelProto, weights: dict[str, ir.TensorProtocol]) -> onnx.ModelProto:
    """Declare the outlined weights as inputs instead, for onnx's own C++ functions."""
    kept = [tensor for tensor in proto.graph.initializer if tensor.name not in weights]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    for name, tensor in weights.items():
        proto.graph.input.append(
            onnx.helper.make_tensor_value_info(name, int(tensor.dtype), list(tensor.shape.numpy()))
        )
    return proto


def reattach(model: ir.Model, weights: dict[str, ir.TensorProtocol]) -> None:
    """Make initializers again of inputs that `as_inputs` declared."""
    inputs = list(model.graph.inputs)
    model.graph.inputs.clear()
    model.graph.inputs.extend(value for value in inputs if value.name not in weights)
    for value in inputs:
        if value.name in weights:
            value.const_value = weights[value.name]
            model.graph.register_initializer(value)
