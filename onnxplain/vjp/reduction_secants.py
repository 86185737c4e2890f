"""Secants of reductions over axes: sums of squares and magnitudes, and logarithms of sums."""

from __future__ import annotations

import onnx_ir as ir

from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.node import Node
from onnxplain.graph.walk import Gradient
from onnxplain.vjp.reduction import back, rest
from onnxplain.vjp.secants import secant
from onnxplain.vjp.softmax_secants import both, saturation, shares


@secant("ReduceLogSumExp")
def log_sum_exp(op: Backward, node: Node, m: ir.Value) -> list[Gradient]:
    """m times the shares."""
    totals = [back(op, node, op.real(value)) for value in (node.y, op.reference(node.y))]
    return [back(op, node, m) * shares(op, *both(op, node.x), totals), *rest(node)]


@secant("ReduceSumSquare")
def sum_square(op: Backward, node: Node, m: ir.Value) -> list[Gradient]:
    """delta x^2 = (x + x') delta x."""
    return [back(op, node, m) * 2.0 * op.midpoint(node.x), *rest(node)]


@secant("ReduceL2")
def root_sum_square(op: Backward, node: Node, m: ir.Value) -> list[Gradient]:
    """delta y = delta y^2 / (y + y'); 0 where both vectors are."""
    both = op.real(node.y) + op.real(op.reference(node.y))
    share = m / op.Where(op.Equal(both, 0.0), 1.0, both)
    return [back(op, node, share) * 2.0 * op.midpoint(node.x), *rest(node)]


@secant("ReduceL1")
def sum_magnitude(op: Backward, node: Node, m: ir.Value) -> list[Gradient]:
    """delta |x| = (x + x') / (|x| + |x'|) delta x; 0 where both are."""
    return [back(op, node, m) * magnitude_slope(op, node.x), *rest(node)]


def magnitude_slope(op: Backward, x: ir.Value) -> ir.Value:
    """(|x| - |x'|) / (x - x')."""
    both = op.Abs(op.real(x)) + op.Abs(op.real(op.reference(x)))
    return op.midpoint(x) * 2.0 / op.Where(op.Equal(both, 0.0), 1.0, both)  # type: ignore[no-any-return]


@secant("ReduceLogSum")
def log_sum(op: Backward, node: Node, m: ir.Value) -> list[Gradient]:
    """delta ln s = delta s / L with L the logarithmic mean of the sums."""
    y, other = op.real(node.y), op.real(op.reference(node.y))
    slope = op.Exp(-op.Max(y, other)) / saturation(op, y - other)
    return [op.expand(back(op, node, m * slope), node.x), *rest(node)]
