"""Secants of exponentials that are normalised: softmax and its kin."""

from __future__ import annotations

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


def shares(op: Backward, x: ir.Value, total: ir.Value, total_other: ir.Value) -> ir.Value:
    """w with delta ln sum exp x = sum w delta x: logarithmic mean of exp x over that of the sums; 0 <= w, sum w <= 1.

    By Rescale through exp, sum and ln, in a form that does not overflow. total: ln sum exp x.
    """
    top = op.Max(op.bounded(x), op.bounded(op.reference(x)))
    weight = op.Exp(op.Sub(top, op.Max(total, total_other)))
    return weight * saturation(op, op.difference(x)) / saturation(op, op.Sub(total, total_other))  # type: ignore[no-any-return]


def log_total(op: Backward, x: ir.Value, largest: ir.Value, of: int) -> ir.Value:
    """ln sum exp x along an axis, from the logarithm of the softmax's largest entry."""
    return op.ReduceMax(op.bounded(x), [of], keepdims=1) - largest  # type: ignore[no-any-return]


def through_logarithms(op: Backward, node: Node, q: ir.Value, totals: list[ir.Value]) -> ir.Value:
    """What ln y = x - ln sum exp x got, on to x."""
    w = op.once(("shares", node.y), lambda: shares(op, node.x, *totals))
    return q - w * op.ReduceSum(q, [axis(node)], keepdims=1)  # type: ignore[no-any-return]


@secant("Softmax")
def softmax(op: Backward, node: Node, m: ir.Value) -> list[Gradient]:
    """exp of a log-softmax: m (y - y') / (ln y - ln y') goes to ln y.

    The paper and captum divide y - y' by x - x' entry by entry and subtract the mean, which sums to no difference.
    """
    y, other = op.real(node.y), op.real(op.reference(node.y))
    of = axis(node)
    totals = [
        log_total(op, x, op.Log(op.ReduceMax(p, [of], keepdims=1)), of)
        for x, p in ((node.x, y), (op.reference(node.x), other))
    ]
    gap = op.difference(node.x) - op.Sub(*totals)
    return [through_logarithms(op, node, m * op.Max(y, other) * saturation(op, gap), totals)]


@secant("LogSoftmax")
def log_softmax(op: Backward, node: Node, m: ir.Value) -> list[Gradient]:
    """x minus ln sum exp x."""
    of = axis(node)
    pairs = ((node.x, node.y), (op.reference(node.x), op.reference(node.y)))
    totals = [log_total(op, x, op.ReduceMax(op.real(y), [of], keepdims=1), of) for x, y in pairs]
    return [through_logarithms(op, node, m, totals)]
