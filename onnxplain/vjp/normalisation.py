"""Normalisations: what a value becomes depends on its neighbours."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from onnxplain.errors import UnsupportedOp
from onnxplain.graph import bounds, signs, streams
from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.node import Node, axes_of, dims, rank
from onnxplain.graph.streams import CONSTANT, UNPROVEN, Axis, AxisRule
from onnxplain.graph.walk import Gradient
from onnxplain.vjp.registry import case, vjp
from onnxplain.vjp.softmax import axis


def within(touched: Callable[[Node], Sequence[int]]) -> AxisRule:
    """As `streams.keeps`, where the batch is in the first input only."""
    keeps = streams.keeps(touched)

    def rule(node: Node, axes: Sequence[Axis]) -> Axis | Sequence[Axis]:
        return keeps(node, axes) if all(axis == CONSTANT for axis in axes[1:]) else UNPROVEN

    return rule


def behind(node: Node) -> list[int]:
    """`axis` and all behind it."""
    return list(range(axis(node), rank(node.x)))


def average(op: Backward, value: ir.Value, axes: list[int]) -> ir.Value:
    """The mean over axes that stay."""
    result: ir.Value = op.ReduceMean(value, axes, keepdims=1)
    return result


def standardised(
    op: Backward, x: ir.Value, axes: list[int], epsilon: float, centre: bool = True
) -> tuple[ir.Value, ir.Value]:
    """z = (x - mean) inv and inv = 1 / sqrt(variance + epsilon), over axes; without `centre` the mean counts as 0."""
    x = op.real(x)
    d = x - average(op, x, axes) if centre else x
    inv = op.Reciprocal(op.Sqrt(average(op, d * d, axes) + epsilon))
    return d * inv, inv


def unstandardise(
    op: Backward, g: ir.Value, z: ir.Value, inv: ir.Value, axes: list[int], centre: bool = True
) -> ir.Value:
    """What z got, on to x: inv (g - mean(g) - z mean(g z))."""
    r = g - z * average(op, g * z, axes)
    if centre:
        r = r - average(op, g, axes)
    result: ir.Value = r * inv
    return result


def summed(op: Backward, value: ir.Value) -> ir.Value:
    """(N, C, …) summed over all but the channels: what a parameter (C) gets."""
    result: ir.Value = op.ReduceSum(value, [0, *range(2, rank(value))], keepdims=0)
    return result


def scale_and_bias(op: Backward, node: Node, g: ir.Value, z: ir.Value) -> list[Gradient]:
    """To the computed ones among scale (C) and bias (C) of y = scale z + bias. g, z (N, C, …)."""
    scale, bias = node.inputs[1], node.inputs[2]
    return [
        None if op.is_constant(scale) else summed(op, g * z),
        None if op.is_constant(bias) else summed(op, g),
    ]


def column(op: Backward, vector: ir.Value, behind: int) -> ir.Value:
    """(C) as (C, 1, …) with so many ones."""
    if not behind:
        return vector
    return op.once(("column", vector, behind), lambda: op.Unsqueeze(vector, list(range(1, 1 + behind))))


@vjp(
    "LayerNormalization",
    kind="normalisation",
    own_rule="centre",
    broadcasts=True,
    streams=within(behind),
    cases=[
        case(x=(2, 3, 4), scale=(4,), bias=(4,)),
        case(x=(2, 3, 4), scale=(3, 4), axis=-2, epsilon=0.1, outputs=3),
        case(x=(2, 3, 4), scale=(3, 4), bias=(3, 4), axis=1),
        case(x=(2, 4), scale=(1,)),
    ],
)
@vjp(
    "RMSNormalization",
    kind="normalisation",
    zero_at_zero=True,
    broadcasts=True,
    streams=within(behind),
    cases=[
        case(x=(2, 3, 4), scale=(4,), opset=23),
        case(x=(2, 3, 4), scale=(3, 4), axis=-2, epsilon=0.1, opset=23),
        case(x=(2, 4), scale=(1,), opset=23),
    ],
)
def layer_normalization(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """y = scale z + bias with z standardised over `axis` and all behind it (RMS: not centred)."""
    scale, bias, axes, centre = node.inputs[1], node.input(2), behind(node), node.op_type == "LayerNormalization"
    assert scale is not None
    z, inv = standardised(op, node.x, axes, node.attr("epsilon", 1e-5), centre)
    to_x = unstandardise(op, g * op.real(scale), z, inv, axes, centre)
    others = [None if op.is_constant(scale) else g * z, None if op.is_constant(bias) else g]
    return [to_x, *others[: len(node.inputs) - 1]]


@vjp(
    "InstanceNormalization",
    kind="normalisation",
    streams=streams.batch_first,
    cases=[
        case(x=(2, 3, 4, 5), scale=(3,), bias=(3,)),
        case(x=(2, 3, 5), scale=(3,), bias=(3,), epsilon=0.1),
        case(x=(2, 3, 5), scale=(3,), bias=(3,), constant=("scale",)),
    ],
)
def instance_normalization(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """Standardised over the positions of each sample and channel."""
    scale = node.inputs[1]
    assert scale is not None
    axes = list(range(2, rank(node.x)))
    z, inv = standardised(op, node.x, axes, node.attr("epsilon", 1e-5))
    to_x = unstandardise(op, g * column(op, op.real(scale), len(axes)), z, inv, axes)
    return [to_x, *scale_and_bias(op, node, g, z)]


@vjp(
    "GroupNormalization",
    kind="normalisation",
    streams=streams.batch_first,
    cases=[
        case(x=(2, 6, 3, 2), scale=(2,), bias=(2,), num_groups=2),
        case(x=(2, 6, 3, 2), scale=(3,), bias=(3,), constant=("bias",), num_groups=3),
        case(x=(2, 6, 3, 2), scale=(6,), bias=(6,), num_groups=3, opset=21),
        case(x=(2, 6, 5), scale=(6,), bias=(6,), num_groups=6, epsilon=0.1, opset=21),
        case(x=(2, 6, 5), scale=(6,), bias=(6,), constant=("scale",), num_groups=1, opset=21),
    ],
)
def group_normalization(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """Standardised over groups of channels; the scale is per group (opset 18 to 20) or per channel."""
    scale, x = node.inputs[1], node.x
    assert scale is not None
    layout, spatial = [0, node.attr("num_groups"), -1], rank(x) - 2
    z, inv = standardised(op, op.Reshape(op.real(x), layout), [2], node.attr("epsilon", 1e-5))

    def whole(value: ir.Value) -> ir.Value:
        return op.reshaped(op.Reshape(value, op.target_shape(x)), op.stream_shape(x))

    if node.version >= 21:
        parameters = scale_and_bias(op, node, g, whole(z)) if any_computed(op, node) else [None, None]
        g = op.Reshape(g * column(op, op.real(scale), spatial), layout)
    else:
        g = op.Reshape(g, layout)
        parameters = scale_and_bias(op, node, g, z)
        g = g * column(op, op.real(scale), 1)
    return [whole(unstandardise(op, g, z, inv, [2])), *parameters]


def any_computed(op: Backward, node: Node) -> bool:
    """Whether a parameter is no constant."""
    return not all(op.is_constant(value) for value in node.inputs[1:])


@vjp(
    "BatchNormalization",
    kind="normalisation",
    bounds=bounds.MONOTONE,
    linear=True,
    streams=streams.batch_first,
    cases=[
        case(x=(2, 3, 4), scale=(3,), bias=(3,), mean=(3,), var=(3,), sample="positive"),
        case(x=(2, 3), scale=(3,), bias=(3,), mean=(3,), var=(3,), sample="positive", epsilon=0.1),
        case(x=(2, 3, 2, 2), scale=(3,), bias=(3,), mean=(3,), var=(3,), sample="positive", constant=("mean", "scale")),
    ],
)
def batch_normalization(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """y = factor (x - mean) + bias with factor = scale / sqrt(var + epsilon), a number per channel."""
    if node.attr("training_mode", 0):
        raise UnsupportedOp(f"{node}: BatchNormalization in training mode. Export the model for inference.")
    scale, _, mean, variance = node.inputs[1:5]
    assert scale is not None and mean is not None and variance is not None
    inv = op.once(
        ("inv", variance, node.attr("epsilon", 1e-5)),
        lambda: op.Reciprocal(op.Sqrt(op.Add(op.real(variance), node.attr("epsilon", 1e-5)))),
    )
    factor = op.once(("factor", scale, inv), lambda: op.Mul(op.real(scale), inv))
    spatial = rank(node.x) - 2
    to_x = None if op.is_constant(node.x) else g * column(op, factor, spatial)
    if not any_computed(op, node):
        return [to_x, *[None] * 4]
    total = summed(op, g)
    weighted = summed(op, g * (op.real(node.x) - column(op, op.real(mean), spatial))) * inv
    gradients = [weighted, total, -(total * factor), weighted * factor * inv * -0.5]
    return [to_x, *(None if op.is_constant(v) else r for v, r in zip(node.inputs[1:5], gradients, strict=True))]


def neighbours(node: Node) -> np.ndarray:
    """The band of ones that sums over the channels each channel sees, as the kernel of a 1x1 convolution."""
    channels, size = dims(node.x)[1], node.attr("size")
    if not isinstance(channels, int):
        raise UnsupportedOp(
            f"{node}: the derivative of LRN needs the number of channels, which this model leaves open."
        )
    distance = np.arange(channels)[None, :] - np.arange(channels)[:, None]
    sees = (-((size - 1) // 2) <= distance) & (distance <= size // 2)
    band: np.ndarray = sees.astype(float).reshape(channels, channels, *[1] * (rank(node.x) - 2))
    return band


@vjp(
    "LRN",
    kind="normalisation",
    zero_at_zero=True,
    streams=streams.batch_first,
    sign=signs.first,
    cases=[
        case(x=(2, 7, 3, 2), size=5, alpha=0.3, beta=0.6, bias=1.5),
        case(x=(2, 3, 2, 2), size=9, alpha=0.9),
        case(x=(2, 5, 2, 1), size=1, alpha=0.9),
    ],
)
def lrn(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """y = x s^-beta with s = bias + alpha / size times the sum of squares over `size` neighbouring channels.

    dx_i = g_i s_i^-beta - 2 alpha beta / size x_i times the sum of g y / s over the channels that see i. Both sums are
    1x1 convolutions with a band of ones; channel c sees c - floor((size - 1) / 2) to c + ceil((size - 1) / 2).
    """
    alpha, beta, size = node.attr("alpha", 1e-4), node.attr("beta", 0.75), node.attr("size")
    x, y, seen = op.real(node.x), op.real(node.y), neighbours(node)
    s = op.Conv(x * x, seen) * (alpha / size) + node.attr("bias", 1.0)
    crossed = op.Conv(g * y / s, seen.swapaxes(0, 1))
    return [g * op.Pow(s, -beta) - x * crossed * (2 * alpha * beta / size)]


@vjp(
    "LpNormalization",
    kind="normalisation",
    zero_at_zero=True,
    streams=streams.keeps(lambda n: [axis(n)]),
    sign=signs.first,
    cases=[case(x=(2, 5)), case(x=(2, 3, 4), axis=1, p=1, sample="away"), case(x=(2, 3, 4), axis=-2, p=2)],
)
def lp_normalization(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """y = x / n: (g - n' sum g y) / n, with n' = y (p = 2) or the sign of x (p = 1); 0 where n is."""
    x, y, axes = op.real(node.x), op.real(node.y), [axis(node)]
    norm = (op.ReduceL1 if node.attr("p", 2) == 1 else op.ReduceL2)(x, axes, keepdims=1)
    direction = op.Sign(x) if node.attr("p", 2) == 1 else y
    r = (g - direction * op.ReduceSum(g * y, axes, keepdims=1)) / norm
    return [op.Where(op.Greater(norm, 0.0), r, 0.0)]


def mean_variance_axes(node: Node) -> list[int]:
    """The batch is among them by default."""
    return axes_of(node.attr("axes", (0, 2, 3)), rank(node.x))


@vjp(
    "MeanVarianceNormalization",
    kind="normalisation",
    streams=streams.keeps(mean_variance_axes),
    cases=[case(x=(2, 3, 2, 2)), case(x=(2, 3, 4), axes=[-1]), case(x=(2, 3, 4), axes=[1, 2])],
)
def mean_variance_normalization(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """y = (x - mean) / (deviation + 1e-9): as standardised, y itself being z."""
    axes = mean_variance_axes(node)
    x = op.real(node.x)
    d = x - average(op, x, axes)
    inv = op.Reciprocal(op.Sqrt(average(op, d * d, axes)) + 1e-9)
    return [unstandardise(op, g, op.real(node.y), inv, axes)]
