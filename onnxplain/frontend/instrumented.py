"""A rewritten model on the reference's input: does it answer the same, and which shapes and types have its tensors?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxplain.cpu_session import CpuSession
from onnxplain.errors import UnsupportedModel
from onnxplain.frontend.verify import Reference
from onnxplain.graph.outline import apart

MARK = "onnxplain.shape/"  # in front of a tensor's name: the output that says its shape


class InstrumentedModel:
    """A model in onnxruntime, with the shape of every inner tensor among its outputs.

    A Shape node a tensor, and not the tensor itself: eight bytes an axis. It stands right behind the node that makes
    the tensor, so that no tensor lives longer than in a plain run. What has no type, so that nobody knows whether it
    has a shape, is returned as it is, and its type with it.
    """

    def __init__(self, model: ir.Model):
        proto, weights = apart(model)
        del proto.graph.value_info[:]  # what inference believes must not hide what onnxruntime finds
        outputs = {value.name for value in model.graph.outputs}
        tensors = [value for node in model.graph for value in node.outputs if value.name and value.name not in outputs]
        self._shaped = [v.name or "" for v in tensors if isinstance(v.type, ir.TensorType)]
        self._untyped = [v.name or "" for v in tensors if v.type is None]
        instrumented, nodes = set(self._shaped), []
        for node in proto.graph.node:
            nodes.append(node)
            shaped = (name for name in node.output if name in instrumented)
            nodes += [onnx.NodeProto(op_type="Shape", input=[name], output=[MARK + name]) for name in shaped]
        graph = onnx.GraphProto(node=nodes)
        del proto.graph.node[:]
        proto.graph.MergeFrom(graph)
        names = [*(MARK + name for name in self._shaped), *self._untyped]
        proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        self._session = CpuSession(proto.SerializeToString(), weights=weights, nodes=len(proto.graph.node))
        ports = {port.name: port.type for port in self._session.outputs}
        self.types = {name: kind for name in self._untyped if (kind := _type(ports[name])) is not None}

    def run(self, feeds: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
        """Outputs, and the shapes of tensors, by name."""
        taken = {port.name for port in self._session.inputs}
        outputs = self._session.run({name: x for name, x in feeds.items() if name in taken})
        shapes = {name: tuple(map(int, outputs.pop(MARK + name))) for name in self._shaped}
        inner = {name: outputs.pop(name) for name in self._untyped}
        for name, array in (*outputs.items(), *inner.items()):
            if isinstance(array, np.ndarray):
                shapes[name] = array.shape
        return outputs, shapes


def run_instrumented(
    model: ir.Model, expected: Reference
) -> tuple[str | None, InstrumentedModel | None, dict[str, tuple[int, ...]]]:
    """How the model's answers differ from the reference (None: they do not); what ran it; and the shapes seen."""
    try:
        instrumented = InstrumentedModel(model)
        outputs, shapes = instrumented.run(expected.feeds)
    except UnsupportedModel as error:
        return str(error), None, {}
    return expected.mismatch(outputs), instrumented, shapes


def _type(kind: str) -> ir.TypeProtocol | None:
    """onnxruntime's "tensor(float)" as a type; None for what is no tensor."""
    name = kind.removeprefix("tensor(").removesuffix(")").upper()
    return ir.TensorType(ir.DataType[name]) if kind.startswith("tensor(") and name in ir.DataType.__members__ else None
