"""Where NaN and infinity are: how many in an array, and the first tensor of a graph that holds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper

from onnxplain.bfloat16 import widened
from onnxplain.cpu_session import CpuSession
from onnxplain.graph.node import is_float
from onnxplain.graph.outline import apart

MARK = "onnxplain.finite/"  # in front of a tensor's name: the output that counts what is not finite


@dataclass(frozen=True)
class Holes:
    """What is not finite in an array. nans, infinities: how many; size: of the array; first: index of the first."""

    nans: int
    infinities: int
    size: int
    first: tuple[int, ...]

    @classmethod
    def of(cls, array: Any) -> Holes | None:
        """None where every value is finite, and for what are no floats."""
        array = widened(np.asarray(array))
        if array.dtype.kind != "f" or np.isfinite(array).all():
            return None
        nans, at = int(np.isnan(array).sum()), ~np.isfinite(array)
        return cls(nans, int(at.sum()) - nans, array.size, tuple(int(i) for i in np.argwhere(at)[0]))

    def __str__(self) -> str:
        """`3 of 10 values are NaN and 1 is infinite, the first at [0, 2]`."""
        parts = [(self.nans, "NaN"), (self.infinities, "infinite")]
        said = " and ".join(
            f"{n}{f' of {self.size} values' if i == 0 else ''} {'is' if n == 1 else 'are'} {kind}"
            for i, (n, kind) in enumerate((n, kind) for n, kind in parts if n)
        )
        return f"{said}, the first at {list(self.first)}" if self.first else said


def first_not_finite(model: ir.Model, feeds: Mapping[str, np.ndarray], nan: bool) -> tuple[str, str] | None:
    """(tensor, node) where NaN (or, with `nan` False, infinity) appears first; None where it does nowhere.

    One run of the graph as written. A few nodes behind every tensor count in it, so that nothing is held that a plain
    run would not hold; they stand in reverse, because onnxruntime orders nodes from the last leaf on and so counts
    in a tensor while it is there. Raises UnsupportedModel, Expired.
    """
    proto, weights = apart(model)
    makers = {v.name: node for node in model.graph for v in node.outputs if v.name and v.dtype and is_float(v)}
    graph = proto.graph
    del graph.output[:]
    for name, node in reversed(makers.items()):
        value = next(v for v in node.outputs if v.name == name)
        graph.node.extend(_count(name, value.dtype, nan))
        graph.output.append(helper.make_tensor_value_info(MARK + name, onnx.TensorProto.INT32, []))
    found = CpuSession(proto.SerializeToString(), weights=weights).run(feeds)
    for name, node in makers.items():
        if int(found[MARK + name]):
            return name, _said(node, weights, nan)
    return None


def _count(name: str, dtype: ir.DataType | None, nan: bool) -> list[onnx.NodeProto]:
    """Nodes that count in one tensor. IsInf and IsNaN take 16 bits in later opsets only."""
    nodes, mark = [], MARK + name
    if dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE):
        nodes.append(helper.make_node("Cast", [name], [f"{mark}/float"], to=onnx.TensorProto.FLOAT))
        name = f"{mark}/float"
    nodes.append(helper.make_node("IsNaN" if nan else "IsInf", [name], [f"{mark}/flag"]))
    nodes.append(helper.make_node("Cast", [f"{mark}/flag"], [f"{mark}/number"], to=onnx.TensorProto.INT32))
    nodes.append(helper.make_node("ReduceSum", [f"{mark}/number"], [mark], keepdims=0))
    return nodes


def _said(node: ir.Node, weights: Mapping[str, np.ndarray], nan: bool) -> str:
    """A node for a message, with the weight that has it from the start."""
    text = f"{node.name or node.outputs[0].name} ({node.op_type})"
    bad = np.isnan if nan else np.isinf
    for value in node.inputs:
        if value is None or value.const_value is None or not is_float(value):
            continue
        array = weights.get(value.name or "")
        if bad(np.asarray(value.const_value.numpy() if array is None else array, np.float32)).any():
            return f"{text}, whose weight {value.name} has it"
    return text
