"""Activations with corners: Relu and its leaky kin, Clip, thresholds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxplain.graph import signs, streams
from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.bounds import MONOTONE
from onnxplain.graph.node import Node, constant
from onnxplain.graph.walk import Gradient
from onnxplain.vjp.registry import case, vjp


def positive(op: Backward, value: ir.Value) -> ir.Value:
    """value > 0, once for all users."""
    return op.once(("positive", value), lambda: op.Greater(value, 0.0))


def rises_with(node: Node, monotone: bool) -> ir.Value:
    """The tensor whose sign is that of x: y where the function keeps it (reading x costs ORT its fusions), else x."""
    return node.y if monotone else node.x


@vjp(
    "Relu",
    kind="activation",
    zero_at_zero=True,
    rectifies=True,
    zero_or_input=True,
    bounds=MONOTONE,
    streams=streams.elementwise,
    sign=signs.always,
    cases=[case(x=(2, 5), sample="away")],
)
def relu(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """g where y > 0. The mask is read from y: reading x costs onnxruntime its Conv+Relu fusion."""
    return [gated(op, node, g, positive(op, node.y))]


def gated(op: Backward, node: Node, g: ir.Value, condition: ir.Value) -> ir.Value:
    """g where the condition holds, else 0.

    As a product with 0 and 1, which leaves convolutions their blocked layout (measured on onnxruntime's CPU: a chain of
    them and Where takes 1.13 times as long); as Where behind an op whose derivative may be infinite, since 0 times
    infinity is not a number.
    """
    dtype = g.dtype
    assert dtype is not None
    if node.y in op.facts.unbounded:
        return op.Where(condition, g, 0.0)  # type: ignore[no-any-return]
    return g * op.once(("gate", condition, dtype), lambda: op.Cast(condition, to=int(dtype)))  # type: ignore[no-any-return]


def bounds(node: Node) -> tuple[ir.Value | float | None, ir.Value | float | None]:
    """Lower and upper bound of a Clip: inputs, or attributes before opset 11; None where open."""
    low, high = node.attr("min"), node.attr("max")
    return (node.input(1) if low is None else low), (node.input(2) if high is None else high)


def clip_sign(node: Node, known: Sequence[bool]) -> bool:
    """A lower bound >= 0; or an input and an upper bound that are."""
    low, high = (bound if isinstance(bound, float) else constant(bound) for bound in bounds(node))
    reaches = high is not None or node.input(2) is None
    above = high is None or bool(np.all(np.asarray(high) >= 0))
    return reaches and above and (known[0] or (low is not None and bool(np.all(np.asarray(low) >= 0))))


def clip_keeps_zero(node: Node) -> bool:
    """Whether 0 is known to lie between the ends."""
    ends = [(constant(value), sign) for value, sign in ((node.input(1), -1), (node.input(2), 1)) if value is not None]
    return all(end is not None and sign * float(end) >= 0 for end, sign in ends)


def clip_rectifies(node: Node) -> bool:
    """Whether it is clipped at 0 from below (Relu6)."""
    low = constant(node.input(1))
    return low is not None and float(low) == 0.0


@vjp(
    "Clip",
    kind="activation",
    zero_at_zero=clip_keeps_zero,
    rectifies=clip_rectifies,
    bounds=MONOTONE,
    broadcasts=True,
    streams=streams.elementwise,
    sign=clip_sign,
    cases=[
        case(x=(2, 5), low=np.array(-0.5), high=np.array(0.6)),
        case(x=(2, 5), low=np.array(-0.5)),
        case(x=(2, 5), low=None, high=np.array(0.6)),
        case(x=(2, 5), low=()),
        case(x=(2, 5), low=None, high=()),
        case(x=(2, 5), low=(), high=()),
        case(x=(2, 5), low=(), high=np.array(0.6), sample="above"),  # min > max: everything is max
        case(x=(2, 5), low=np.array(4.0), high=(), sample="above"),
        case(x=(2, 5)),
    ],
)
def clip(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """g strictly between the bounds (torch's relu6), outside it goes to a bound the model computes.

    y is min(max(x, low), high): where low reaches high, all of it is high's.
    The gate is read from y, as in Relu: reading x costs onnxruntime its Conv+Clip fusion.
    """
    low, high = bounds(node)
    y = node.y
    above = None if low is None else op.once(("above", y), lambda: op.Greater(y, low))
    below = None if high is None else op.once(("below", y), lambda: op.Less(y, high))
    gates = [gate for gate in (above, below) if gate is not None]
    if not gates:
        return [g, None, None][: len(node.inputs)]
    inside = gates[0] if len(gates) == 1 else op.once(("inside", y), lambda: op.And(*gates))
    to_low = to_high = None
    if above is not None and isinstance(low, ir.Value) and not op.is_constant(low):
        wins = op.Not(above) if below is None else op.And(below, op.Not(above))
        to_low = op.Where(wins, g, 0.0)
    if below is not None and isinstance(high, ir.Value) and not op.is_constant(high):
        to_high = op.Where(below, 0.0, g)
    return [gated(op, node, g, inside), to_low, to_high][: len(node.inputs)]


@vjp(
    "LeakyRelu",
    kind="activation",
    zero_at_zero=True,
    streams=streams.elementwise,
    sign=signs.first,
    cases=[case(x=(2, 5), sample="away"), case(x=(2, 5), alpha=0.3), case(x=(2, 5), alpha=-0.2, sample="away")],
)
def leaky_relu(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """alpha g where x <= 0."""
    alpha = node.attr("alpha", 0.01)
    return [op.Where(positive(op, rises_with(node, alpha > 0)), g, g * alpha)]


@vjp(
    "PRelu",
    kind="activation",
    zero_at_zero=True,
    broadcasts=True,
    streams=streams.elementwise,
    sign=signs.first,
    cases=[
        case(x=(2, 3, 4), slope=(3, 1), sample="away"),
        case(x=(2, 3), slope=(1,), sample="away"),
        case(x=(2, 3), slope=np.array([0.1, 0.2, -0.3]), sample="away"),
    ],
)
def prelu(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """As LeakyRelu with a slope that may vary and be computed; the slope gets g x where x <= 0."""
    slope = node.inputs[1]
    assert slope is not None
    above = positive(op, node.x)
    to_slope = None if op.is_constant(slope) else op.Where(above, 0.0, g * op.real(node.x))
    return [op.Where(above, g, g * op.real(slope)), to_slope]


def threshold_sign(node: Node, known: Sequence[bool]) -> bool:
    """Only what exceeds alpha is left."""
    return known[0] or node.attr("alpha", 1.0) >= 0


@vjp(
    "ThresholdedRelu",
    kind="activation",
    zero_at_zero=True,
    streams=streams.elementwise,
    sign=threshold_sign,
    cases=[case(x=(4, 5)), case(x=(4, 5), alpha=-0.3)],
)
def thresholded_relu(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """g where x > alpha."""
    alpha = node.attr("alpha", 1.0)
    passes = positive(op, node.y) if alpha >= 0 else op.Greater(node.x, alpha)
    return [op.Where(passes, g, 0.0)]


def shrink_sign(node: Node, known: Sequence[bool]) -> bool:
    """x - bias, taken from x > lambd, stays positive while bias <= lambd."""
    return known[0] and node.attr("bias", 0.0) <= node.attr("lambd", 0.5)


def shrink_keeps_zero(node: Node) -> bool:
    """Where 0 is not beyond a negative `lambd`."""
    return bool(node.attr("lambd", 0.5) >= 0 or node.attr("bias", 0.0) == 0)


@vjp(
    "Shrink",
    kind="activation",
    zero_at_zero=shrink_keeps_zero,
    streams=streams.elementwise,
    sign=shrink_sign,
    cases=[case(x=(4, 5)), case(x=(4, 5), lambd=0.7, bias=0.3), case(x=(4, 5), lambd=-0.1, bias=0.2)],
)
def shrink(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """g where |x| > lambd."""
    return [op.Where(op.Greater(op.Abs(node.x), node.attr("lambd", 0.5)), g, 0.0)]
