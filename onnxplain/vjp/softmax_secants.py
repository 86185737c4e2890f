"""Secants of exponentials that are normalised: softmax and its kin."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.node import Node
from onnxplain.graph.walk import Gradient
from onnxplain.vjp.secants import secant
from onnxplain.vjp.softmax import axis

TINY = 1e-30  # stands for a gap of 0, where the factor is 1


def saturation(op: Backward, gap: ir.Value) -> ir.Value:
    """(1 - exp(-t)) / t for t = |gap|, 1 at 0; by tanh, which keeps its digits near 0."""
    t = op.Max(op.Abs(gap), TINY)
    half = op.Tanh(t * 0.5)
    return half * 2.0 / ((half + 1.0) * t)  # type: ignore[no-any-return]


def shares(op: Backward, x: ir.Value, other: ir.Value, totals: Sequence[ir.Value]) -> ir.Value:
    """w with delta ln sum exp x = sum w delta x: logarithmic mean of exp x over that of the sums; 0 <= w, sum w <= 1.

    By Rescale through exp, sum and ln, in a form that does not overflow. totals: ln sum exp of x and of the other.
    """
    weight = op.Exp(op.Sub(op.Max(x, other), op.Max(*totals)))
    return weight * saturation(op, op.Sub(x, other)) / saturation(op, op.Sub(*totals))  # type: ignore[no-any-return]


def log_total(op: Backward, x: ir.Value, largest: ir.Value, of: int) -> ir.Value:
    """ln sum exp x along an axis, from the logarithm of the softmax's largest entry."""
    return op.ReduceMax(x, [of], keepdims=1) - largest  # type: ignore[no-any-return]


Pair = tuple[ir.Value, ir.Value]
"""A tensor, and the same of the reference."""


def both(op: Backward, value: ir.Value) -> Pair:
    """The -inf of a mask as a huge number."""
    return op.bounded(value), op.bounded(op.reference(value))


def through_logarithms(op: Backward, q: ir.Value, x: Pair, totals: Sequence[ir.Value], of: int) -> ir.Value:
    """What ln y = x - ln sum exp x got, on to x."""
    return q - shares(op, *x, totals) * op.ReduceSum(q, [of], keepdims=1)  # type: ignore[no-any-return]


def through_softmax(op: Backward, m: ir.Value, x: Pair, y: Pair, of: int) -> ir.Value:
    """What y = exp(x - ln sum exp x) got, on to x: m (y - y') / (ln y - ln y') goes to ln y."""
    totals = [log_total(op, a, op.Log(op.ReduceMax(b, [of], keepdims=1)), of) for a, b in zip(x, y, strict=True)]
    gap = op.Sub(op.Sub(*x), op.Sub(*totals))
    return through_logarithms(op, m * op.Max(*y) * saturation(op, gap), x, totals, of)


@secant("Softmax")
def softmax(op: Backward, node: Node, m: ir.Value) -> list[Gradient]:
    """exp of a log-softmax.

    The paper and captum divide y - y' by x - x' entry by entry and subtract the mean, which sums to no difference.
    """
    y = op.real(node.y), op.real(op.reference(node.y))
    return [through_softmax(op, m, both(op, node.x), y, axis(node))]


@secant("LogSoftmax")
def log_softmax(op: Backward, node: Node, m: ir.Value) -> list[Gradient]:
    """x minus ln sum exp x."""
    of, x = axis(node), both(op, node.x)
    largest = [op.ReduceMax(op.real(y), [of], keepdims=1) for y in (node.y, op.reference(node.y))]
    totals = [log_total(op, a, b, of) for a, b in zip(x, largest, strict=True)]
    return [through_logarithms(op, m, x, totals, of)]
