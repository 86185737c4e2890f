"""Ops that write values at positions of a tensor: ScatterElements, ScatterND."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxplain.errors import UnsupportedOp
from onnxplain.graph import index_streams, streams
from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.node import Node, axes_of, dims, rank
from onnxplain.graph.walk import Gradient
from onnxplain.vjp.lengths import joined
from onnxplain.vjp.registry import case, vjp


def _scatter_sign(node: Node, known: list[bool]) -> bool:
    return known[0] and known[2]


def _additive(node: Node) -> bool:
    reduction = node.attr("reduction", "none")
    if reduction not in ("none", "add"):
        raise UnsupportedOp(f"{node}: no derivative for reduction={reduction}; none and add have one.")
    return bool(reduction == "add")


def streamed(op: Backward, value: ir.Value, axis: int | None, g: ir.Value) -> ir.Value:
    """`value` stretched along one axis to the length g has there; unchanged where streams are the batch."""
    if axis is None or dims(value)[axis] == dims(g)[axis]:
        return value
    lengths = [op.size(g, axis) if i == axis else op.ints([1]) for i in range(rank(value))]
    return op.Expand(value, joined(op, lengths))  # type: ignore[no-any-return]


@vjp(
    "ScatterElements",
    kind="routing",
    mask="carries",
    silent=(1,),
    linear=True,
    streams=streams.across(streams.attribute("axis", 0), 1, 2),
    sign=_scatter_sign,  # type: ignore[arg-type]
    cases=[
        case(x=(2, 5), index=np.array([[0, -1], [2, 1]]), updates=(2, 2), axis=1),
        case(x=(1, 5), index=np.array([[0, -1, 2]]), updates=(1, 3), axis=-1),
        case(x=(4, 3), index=np.array([[0, 3, 1], [0, 1, 1]]), updates=(2, 3), reduction="add"),
    ],
)
def scatter_elements(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """What was written gets its value; what was overwritten gets nothing."""
    x, index, updates = node.inputs[:3]
    assert x is not None and index is not None
    axis = axes_of([node.attr("axis", 0)], rank(x))[0]
    index = streamed(op, index, op.stream_axis(node.y), g)
    picked = None if op.is_constant(updates) else op.GatherElements(g, index, axis=axis)
    if _additive(node) or op.is_constant(x):
        return [None if op.is_constant(x) else g, None, picked]
    nothing = op.Expand(op.constant(0.0, g.dtype), op.shape(index))  # type: ignore[arg-type]
    return [op.ScatterElements(g, index, nothing, axis=axis), None, picked]


@vjp(
    "ScatterND",
    kind="routing",
    mask="carries",
    silent=(1,),
    linear=True,
    streams=index_streams.scatter_nd,
    sign=_scatter_sign,  # type: ignore[arg-type]
    cases=[
        case(x=(5, 3), index=np.array([[1], [4]]), updates=(2, 3)),
        case(x=(3, 4), index=np.array([[0, 1], [2, 3], [0, 0]]), updates=(3,)),
        case(x=(5, 1, 3), index=np.array([[1], [1]]), updates=(2, 1, 3), reduction="add"),
    ],
)
def scatter_nd(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """What was written gets its value; what was overwritten gets nothing."""
    x, index, updates = node.inputs[:3]
    assert x is not None and index is not None
    written = op.GatherND(g, index)
    picked = None if op.is_constant(updates) else written
    if _additive(node) or op.is_constant(x):
        return [None if op.is_constant(x) else g, None, picked]
    nothing = op.Expand(op.constant(0.0, g.dtype), op.shape(written))  # type: ignore[arg-type]
    return [op.ScatterND(g, index, nothing), None, picked]
