"""Copies: the same values under another name, of another type, with some left out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxplain.errors import UnsupportedOp
from onnxplain.graph import bounds, signs, streams
from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.node import Node, constant, is_float
from onnxplain.graph.walk import Gradient
from onnxplain.vjp.registry import case, vjp


@vjp(
    "Identity",
    kind="routing",
    mask="carries",
    bounds=bounds.UNCHANGED,
    head="through",
    linear=True,
    streams=streams.elementwise,
    sign=signs.first,
    cases=[case(x=(2, 3))],
)
def identity(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """The same tensor under another name."""
    return [g]


def cast_silent(node: Node) -> Sequence[int]:
    """A float cut to a whole number moves in steps, and so does a truth value; the type CastLike copies is no data."""
    whole = node.y.dtype is not None and node.y.dtype.is_integer()
    steps = node.y.dtype == ir.DataType.BOOL or (is_float(node.x) and whole)
    return range(len(node.inputs)) if steps else range(1, len(node.inputs))


@vjp(
    "Cast",
    kind="routing",
    mask="carries",
    bounds=bounds.UNCHANGED,
    converts=True,
    head="through",
    silent=cast_silent,
    linear=True,
    streams=streams.elementwise,
    sign=signs.first,
    cases=[case(x=(2, 3), to=int(ir.DataType.DOUBLE))],
)
@vjp(
    "CastLike", kind="routing", silent=cast_silent, linear=True, streams=streams.elementwise, sign=signs.first,
    cases=[case(x=(2, 3), like=np.array([1.0]))],
)  # fmt: skip
def cast(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """Between floats g, in the precision relevance has at x; from integers nothing."""
    return [gradient_at(op, node.x, g), *[None] * (len(node.inputs) - 1)]


def gradient_at(op: Backward, x: ir.Value, g: ir.Value) -> Gradient:
    """`g` in the type relevance has at `x`: float64 over float64, float32 over other floats, none over integers."""
    if not is_float(x):
        return None
    dtype = ir.DataType.DOUBLE if x.dtype == ir.DataType.DOUBLE else ir.DataType.FLOAT
    value: ir.Value = g if g.dtype == dtype else op.Cast(g, to=int(dtype))
    return value


@vjp(
    "Dropout",
    kind="routing",
    bounds=bounds.UNCHANGED,
    silent=(1, 2),
    linear=True,
    streams=streams.elementwise,
    sign=signs.first,
    cases=[case(x=(2, 3)), case(x=(2, 3), ratio=np.array(0.3), outputs=2)],
)
def dropout(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """Nothing is dropped when a model answers."""
    training = node.input(2)
    if training is not None and (constant(training) is None or bool(np.any(constant(training)))):
        raise UnsupportedOp(f"{node}: Dropout in training mode is random. Export the model for inference.")
    return [g, *[None] * (len(node.inputs) - 1)]
