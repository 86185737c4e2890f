"""Secants of normalisations: a value times a factor that its neighbours decide on."""

from __future__ import annotations

import onnx_ir as ir

from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.node import Node, rank
from onnxplain.graph.walk import Gradient
from onnxplain.vjp.normalisation import average, behind, column, mean_variance_axes, neighbours
from onnxplain.vjp.reduction_secants import magnitude_slope
from onnxplain.vjp.secants import NEAR, only_first, secant
from onnxplain.vjp.softmax import axis


def standardised(
    op: Backward, m: ir.Value, x: ir.Value, other: ir.Value, axes: list[int], epsilon: float, centre: bool = True
) -> ir.Value:
    """What z = d / s got, on to x, with d = x - mean (or x) and s = sqrt(mean d^2 + epsilon).

    delta z = delta d (1/s + 1/s') / 2 + (d + d') / 2 delta(1/s), and delta(1/s) = -delta(mean d^2) / (s s' (s + s')),
    where mean d^2 is quadratic: no quotient of small differences.
    """
    d, s = _spread(op, x, axes, epsilon, centre)
    d_other, s_other = _spread(op, other, axes, epsilon, centre)
    inverse = op.Reciprocal(s) + op.Reciprocal(s_other)
    slope = op.Neg(op.Reciprocal(s * s_other * (s + s_other)))
    return _joined(op, m, (d + d_other) * 0.5, inverse * 0.5, slope, axes, centre)


def _joined(
    op: Backward, m: ir.Value, d: ir.Value, inverse: ir.Value, slope: ir.Value, axes: list[int], centre: bool
) -> ir.Value:
    """d, inverse: half way. slope: delta(1/s) over the difference of the mean square."""
    r = m * inverse + d * (average(op, m * d, axes) * slope * 2.0)
    return r - average(op, r, axes) if centre else r  # type: ignore[no-any-return]


def _spread(op: Backward, x: ir.Value, axes: list[int], epsilon: float, centre: bool) -> tuple[ir.Value, ir.Value]:
    d = x - average(op, x, axes) if centre else x
    return d, op.Sqrt(average(op, d * d, axes) + epsilon)


def _pair(op: Backward, node: Node) -> tuple[ir.Value, ir.Value]:
    return op.real(node.x), op.real(op.reference(node.x))


@secant("LayerNormalization", "RMSNormalization")
def layer_normalization(op: Backward, node: Node, m: ir.Value) -> list[Gradient]:
    """Over `axis` and all behind it."""
    only_first(op, node)
    scale, centre = node.inputs[1], node.op_type == "LayerNormalization"
    assert scale is not None
    x, other = _pair(op, node)
    result = standardised(op, m * op.real(scale), x, other, behind(node), node.attr("epsilon", 1e-5), centre)
    return [result, *[None] * (len(node.inputs) - 1)]


@secant("InstanceNormalization")
def instance_normalization(op: Backward, node: Node, m: ir.Value) -> list[Gradient]:
    """Over the positions of each sample and channel."""
    only_first(op, node)
    scale, axes = node.inputs[1], list(range(2, rank(node.x)))
    assert scale is not None
    x, other = _pair(op, node)
    scaled = m * column(op, op.real(scale), len(axes))
    return [standardised(op, scaled, x, other, axes, node.attr("epsilon", 1e-5)), None, None]


@secant("GroupNormalization")
def group_normalization(op: Backward, node: Node, m: ir.Value) -> list[Gradient]:
    """Over groups of channels; the scale is per group (opset 18 to 20) or per channel."""
    only_first(op, node)
    scale, layout = node.inputs[1], [0, node.attr("num_groups"), -1]
    assert scale is not None
    x, other = (op.Reshape(value, layout) for value in _pair(op, node))
    if node.version >= 21:
        grouped = op.Reshape(m * column(op, op.real(scale), rank(node.x) - 2), layout)
    else:
        grouped = op.Reshape(m, layout) * column(op, op.real(scale), 1)
    result = standardised(op, grouped, x, other, [2], node.attr("epsilon", 1e-5))
    return [op.reshaped(op.Reshape(result, op.target_shape(node.x)), op.stream_shape(node.x)), None, None]


@secant("MeanVarianceNormalization")
def mean_variance_normalization(op: Backward, node: Node, m: ir.Value) -> list[Gradient]:
    """The divisor is the deviation + 1e-9: delta(1/s) = -delta v / (s s' (deviation + deviation'))."""
    axes, spreads = mean_variance_axes(node), []
    for value in _pair(op, node):
        d, deviation = _spread(op, value, axes, 0.0, True)
        spreads.append((d, deviation, op.Reciprocal(deviation + 1e-9)))
    (d, deviation, inverse), (d_other, deviation_other, inverse_other) = spreads
    both = deviation + deviation_other
    slope = op.Neg(inverse * inverse_other / op.Where(op.Equal(both, 0.0), 1.0, both))
    return [_joined(op, m, (d + d_other) * 0.5, (inverse + inverse_other) * 0.5, slope, axes, True)]


@secant("LpNormalization")
def lp_normalization(op: Backward, node: Node, m: ir.Value) -> list[Gradient]:
    """x / n: delta(1/n) = -delta n / (n n'). A vector of zeros has the other's norm, two of them give nothing."""
    axes, first = [axis(node)], node.attr("p", 2) == 1
    lengths = [(op.ReduceL1 if first else op.ReduceL2)(value, axes, keepdims=1) for value in _pair(op, node)]
    some, both = op.Greater(op.Max(*lengths), 0.0), op.Greater(op.Min(*lengths), 0.0)
    n, n_other = (op.Where(both, length, op.Where(some, op.Max(*lengths), 1.0)) for length in lengths)
    middle = op.midpoint(node.x)
    direction = magnitude_slope(op, node.x) if first else middle * 2.0 / (n + n_other)
    inverse = (op.Reciprocal(n) + op.Reciprocal(n_other)) * 0.5
    crossed = op.Where(both, op.ReduceSum(m * middle, axes, keepdims=1) / (n * n_other), 0.0)
    return [op.Where(some, m * inverse - crossed * direction, 0.0)]


@secant("LRN")
def lrn(op: Backward, node: Node, m: ir.Value) -> list[Gradient]:
    """x s^-beta: the factor by Rescale in s, whose sum of squares over neighbouring channels is quadratic."""
    alpha, beta, size = node.attr("alpha", 1e-4), node.attr("beta", 0.75), node.attr("size")
    seen = neighbours(node)
    sums = [op.Conv(value * value, seen) * (alpha / size) + node.attr("bias", 1.0) for value in _pair(op, node)]
    factors = [op.Pow(s, -beta) for s in sums]
    gap = op.Sub(*sums)
    near = op.Less(op.Abs(gap), NEAR)
    slope = op.Where(near, op.Pow(sums[0], -beta - 1.0) * -beta, op.Sub(*factors) / op.Where(near, 1.0, gap))
    middle = op.midpoint(node.x)
    crossed = op.Conv(m * middle * slope, seen.swapaxes(0, 1))
    return [m * op.Add(*factors) * 0.5 + middle * crossed * (2.0 * alpha / size)]
