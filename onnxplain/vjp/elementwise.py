"""One derivative each: activations, and arithmetic on several tensors."""

from __future__ import annotations

import onnx_ir as ir

from onnxplain.graph import signs, streams
from onnxplain.graph.backward import Backward
from onnxplain.graph.node import Node
from onnxplain.graph.walk import Gradient
from onnxplain.vjp.registry import case, vjp


@vjp("Relu", kind="activation", streams=streams.elementwise, sign=signs.always, cases=[case(x=(2, 5), sample="away")])
def relu(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """g where y > 0. The mask is read from y: reading x costs onnxruntime its Conv+Relu fusion."""
    return [op.Where(positive(op, node.y), g, 0.0)]


def positive(op: Backward, y: ir.Value) -> ir.Value:
    """y > 0, once for all users."""
    return op.once(("positive", y), lambda: op.Greater(y, 0.0))


@vjp("Sigmoid", kind="activation", streams=streams.elementwise, sign=signs.always, cases=[case(x=(2, 5))])
def sigmoid(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """dy/dx = y (1 - y)."""
    y = node.y
    return [g * y * (1.0 - y)]


@vjp(
    "Add",
    kind="sum",
    broadcasts=True,
    streams=streams.elementwise,
    sign=signs.every,
    cases=[case(a=(2, 3, 4), b=(3, 1)), case(a=(2, 3), b=(2, 3)), case(a=(3,), b=(2, 1))],
)
def add(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """Both get g."""
    return [g, g]


@vjp(
    "Mul",
    kind="product",
    broadcasts=True,
    streams=streams.elementwise,
    sign=signs.every,
    cases=[case(a=(2, 3, 4), b=(3, 1)), case(a=(2, 3), b=(2, 3)), case(a=(), b=(2, 3))],
)
def mul(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """Each gets g times the other."""
    a, b = node.inputs
    return [None if op.is_constant(a) else g * b, None if op.is_constant(b) else g * a]
