"""Arithmetic on several tensors, copies and casts, and functions that are no activations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxplain.graph import bounds, signs, streams
from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.node import Node
from onnxplain.graph.walk import Gradient
from onnxplain.vjp.facts import Kind
from onnxplain.vjp.registry import case, vjp

PAIRS = [case(a=(2, 3, 4), b=(3, 1)), case(a=(2, 3), b=(2, 3)), case(a=(3,), b=(2, 1)), case(a=(), b=(2, 3))]
SEVERAL = [case(a=(2, 3), b=(3,), c=(2, 1)), case(a=(2, 3))]


def shifted(index: int) -> Kind:
    """With constants a sum is a shift and a product a scaling."""
    return "affine"


@vjp(
    "Add",
    kind="sum",
    commutes=True,
    mask="adds",
    bounds=bounds.MONOTONE,
    alone=shifted,
    broadcasts=True,
    streams=streams.elementwise,
    sign=signs.every,
    cases=PAIRS,
)
@vjp(
    "Sum",
    kind="sum",
    commutes=True,
    mask="adds",
    alone=shifted,
    broadcasts=True,
    streams=streams.elementwise,
    sign=signs.every,
    cases=SEVERAL,
)
def add(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """Everyone gets g."""
    return [g] * len(node.inputs)


@vjp(
    "Sub",
    kind="sum",
    mask="carries",
    bounds=bounds.MONOTONE,
    alone=shifted,
    broadcasts=True,
    streams=streams.elementwise,
    cases=PAIRS,
)
def sub(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """g to the first, -g to the second."""
    return [g, None if op.is_constant(node.inputs[1]) else -g]


@vjp(
    "Mean",
    kind="sum",
    commutes=True,
    alone=shifted,
    broadcasts=True,
    streams=streams.elementwise,
    sign=signs.every,
    cases=SEVERAL,
)
def mean(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """Everyone gets an equal part of g."""
    n = len(node.inputs)
    return [g / float(n) if n > 1 else g] * n


def product_sign(node: Node, known: Sequence[bool]) -> bool:
    """When both factors are, or for a square."""
    return all(known) or node.inputs[0] is node.inputs[1]


@vjp(
    "Mul",
    kind="product",
    zero_at_zero=True,
    commutes=True,
    mask="carries",
    bounds=bounds.MONOTONE,
    alone=shifted,
    broadcasts=True,
    streams=streams.elementwise,
    sign=product_sign,
    cases=PAIRS,
)
def mul(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """Each gets g times the other."""
    a, b = node.x, node.inputs[1]
    assert b is not None
    return [None if op.is_constant(a) else g * op.real(b), None if op.is_constant(b) else g * op.real(a)]


@vjp(
    "Div",
    kind="product",
    zero_at_zero=True,
    mask="carries",
    bounds=bounds.NUMERATOR,
    alone=lambda index: "affine" if index == 0 else "other",
    unbounded=True,
    broadcasts=True,
    streams=streams.elementwise,
    sign=signs.every,
    cases=[case(a=(2, 3, 4), b=(3, 1), sample="away"), case(a=(3,), b=(2, 1), sample="away")],
)
def div(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """y = a / b: g / b to a, -g y / b to b."""
    b = node.inputs[1]
    assert b is not None
    share = g / op.real(b)
    return [share, None if op.is_constant(b) else -(share * op.real(node.y))]


@vjp(
    "Mod",
    kind="other",
    unbounded=True,
    broadcasts=True,
    streams=streams.elementwise,
    sign=signs.first,
    cases=[case(a=(2, 3, 4), b=(3, 1), fmod=1, sample="away")],
)
def mod(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """fmod: y = a - n b with n = trunc(a / b), a whole number that does not move: g to a, -n g to b."""
    b = node.inputs[1]
    assert b is not None
    if op.is_constant(b):
        return [g, None]
    n = op.Round((op.real(node.x) - op.real(node.y)) / op.real(b))
    return [g, -(g * n)]


@vjp(
    "Max",
    kind="routing",
    mask="carries",
    alone=lambda index: "activation",
    broadcasts=True,
    streams=streams.elementwise,
    sign=signs.some,
    cases=[
        case(a=(2, 3, 4), b=(3, 1)),
        case(a=(2, 3), b=(2, 3), c=(3,)),
        case(a=(2, 3)),
        case(a=(2, 5), b=np.array(0.0)),
    ],
)
@vjp(
    "Min",
    kind="routing",
    mask="carries",
    alone=lambda index: "activation",
    broadcasts=True,
    streams=streams.elementwise,
    sign=signs.every,
    cases=[case(a=(2, 3, 4), b=(3, 1)), case(a=(2, 3), b=(2, 3), c=(3,)), case(a=(2, 5), b=np.array(0.0))],
)
def extreme(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """All of g to the first input that equals y."""
    shares: list[Gradient] = []
    left = g
    for value in node.inputs[:-1]:
        assert value is not None
        wins = op.Equal(op.real(value), op.real(node.y))
        shares.append(op.Where(wins, left, 0.0))
        left = op.Where(wins, 0.0, left)
    return [*shares, left]


def where_sign(node: Node, known: Sequence[bool]) -> bool:
    """When both branches are."""
    return known[1] and known[2]


@vjp(
    "Where",
    kind="routing",
    mask="carries",
    silent=(0,),
    broadcasts=True,
    streams=streams.elementwise,
    sign=where_sign,
    cases=[
        case(condition=np.array([[True], [False]]), a=(2, 3), b=(3,)),
        case(condition=np.array([True, False, True]), a=(2, 1), b=(2, 3)),
        case(condition=np.array([[[True, False, True]], [[False, False, True]]]), a=(1, 3), b=()),
    ],
)
def where(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """g to the branch that was taken."""
    condition, a, b = node.inputs
    to_a = None if op.is_constant(a) else op.Where(condition, g, 0.0)
    to_b = None if op.is_constant(b) else op.Where(condition, 0.0, g)
    return [None, to_a, to_b]


@vjp(
    "Neg",
    kind="activation",
    zero_at_zero=True,
    mask="carries",
    bounds=bounds.MONOTONE,
    linear=True,
    streams=streams.elementwise,
    cases=[case(x=(2, 3))],
)
def neg(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """-g."""
    return [-g]


@vjp("Floor", "Ceil", "Round", "Sign", kind="flat", streams=streams.elementwise, sign=signs.first,
     cases=[case(x=(2, 5))])  # fmt: skip
def flat(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """Steps: the derivative is 0 wherever there is one."""
    return [None]
