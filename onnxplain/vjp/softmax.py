"""Softmax and its kin: every value of an axis decides on all of them."""

from __future__ import annotations

import onnx_ir as ir

from onnxplain.graph import signs, streams
from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.node import Node, axes_of, rank
from onnxplain.graph.walk import Gradient
from onnxplain.vjp.registry import case, vjp


def axis(node: Node) -> int:
    """The one axis, counted from the front."""
    return axes_of([node.attr("axis", -1)], rank(node.x))[0]


SOFTMAX_CASES = [case(x=(2, 5)), case(x=(2, 3, 4), axis=1), case(x=(2, 3, 4), axis=-3), case(x=(2, 3), opset=13)]


@vjp(
    "Softmax",
    kind="softmax",
    head="cut",
    own_rule="softmax_taylor",
    streams=streams.keeps(lambda n: [axis(n)]),
    sign=signs.always,
    cases=SOFTMAX_CASES,
)
def softmax(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """y (g - sum g y)."""
    gy = g * op.real(node.y)
    return [gy - op.real(node.y) * op.ReduceSum(gy, [axis(node)], keepdims=1)]


@vjp("LogSoftmax", kind="softmax", head="cut", streams=streams.keeps(lambda n: [axis(n)]), cases=SOFTMAX_CASES)
def log_softmax(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """g - exp(y) sum g."""
    return [g - op.Exp(op.real(node.y)) * op.ReduceSum(g, [axis(node)], keepdims=1)]


@vjp("Hardmax", kind="flat", streams=streams.keeps(lambda n: [axis(n)]), sign=signs.always, cases=[case(x=(2, 5))])
def hardmax(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """A step."""
    return [None]
