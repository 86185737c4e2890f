"""Rules for the layer that sees the model's input: box, w^2, flat."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxplain.errors import UsageError
from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.bounds import bound, carried
from onnxplain.graph.node import Node, dims, rank
from onnxplain.graph.relevance import Portion, Relevance
from onnxplain.rules.linear import EPSILON, Layer, Modifier, Share, Term, linear, minus, plus, spread_bias, stabilised
from onnxplain.rules.registry import RuleFunction, rule
from onnxplain.vjp import bound_steps, lookup

MONTAVON = "Montavon et al. 2017, Explaining NonLinear Classification Decisions with Deep Taylor Decomposition"
LAPUSCHKIN = "Lapuschkin et al. 2019, Unmasking Clever Hans Predictors"


@rule("box", "linear", cite=MONTAVON + ", eq. 17 (z^B)", of=("layer", "input"))
def box(
    low: float | Sequence[float], high: float | Sequence[float], epsilon: float = EPSILON, of: str = "layer"
) -> RuleFunction:
    """z^B for inputs known to lie in [low, high]: R_j = sum_k (x_j w_jk - l_j w_jk+ - h_j w_jk-) / sum_i (…) R_k.

    low, high: one number, or one a channel (axis 1 of a Conv's input, the last axis of a Gemm's). of: whose bounds they
    are, the layer's input or the model's; the latter are carried through the scalings and shifts that lie between.
    Computed as (x - l) w+ + (x - h) w-, the same thing without cancellation: both summands are >= 0. Padding counts as
    x = l = h = 0, so border units share among fewer inputs.
    """
    lows, highs = np.atleast_1d(np.asarray(low, dtype=float)), np.atleast_1d(np.asarray(high, dtype=float))
    if (lows > highs).any():
        raise UsageError(f"rule box: low must not exceed high, not low={low}, high={high}.")

    def apply(op: Backward, node: Node, r: Relevance) -> Sequence[Portion]:
        layer = Layer.of(op, node, "box")
        x = node.inputs[layer.position]
        assert x is not None
        axis = layer.weights.channel_axis(node, layer.position)
        if of == "input":
            least, most = carried(op, x, axis, list(lows), list(highs), bound_steps())
        else:
            least, most = bound(op, x, axis, list(lows)), bound(op, x, axis, list(highs))

        def above(end: ir.Value) -> Modifier:
            return lambda op, v: op.once(("above", v, end), lambda: op.Sub(v, end))

        shares = [Share([Term(above(least), plus), Term(above(most), minus)])]
        return linear("box", shares, epsilon, zero_with_x=False)(op, node, r)  # x = 0 is no root here

    return apply


@rule("w_square", "linear", cite=MONTAVON + ", eq. 12", bias=("keep", "drop"))
def w_square(epsilon: float = EPSILON, bias: str = "keep") -> RuleFunction:
    """R_j = sum_k w_jk^2 / sum_i w_ik^2 R_k, whatever the input. bias: b^2 takes a share, or not."""

    def square(op: Backward, v: ir.Value) -> ir.Value:
        return op.once(("square", v), lambda: op.Mul(v, v))

    def apply(op: Backward, node: Node, r: Relevance) -> list[Portion]:
        layer = Layer.of(op, node, "w_square")
        b = square(op, layer.bias) if bias == "keep" and layer.bias is not None else None
        z = layer.forward(op, ones(op, layer.x), square(op, layer.w), b)
        s = r.value / stabilised(op, z, epsilon, known=True)
        if op.absorbed is not None:
            op.absorb("stabiliser", s * epsilon, node)
            if b is not None:
                op.absorb("bias", spread_bias(op, node, b) * s, node)
        return layer.portions(layer.back(op, square(op, layer.w), s), zero_with_x=False)

    return apply


def ones(op: Backward, x: ir.Value) -> ir.Value:
    """Ones in the shape of `x` for one row: constant, so that onnxruntime folds what is computed from them."""
    shape = [1 if i == op.stream_axis(x) else dim for i, dim in enumerate(dims(x))]
    dtype = op.real(x).dtype
    assert dtype is not None
    if all(isinstance(dim, int) for dim in shape):
        lengths = op.ints([dim for dim in shape if isinstance(dim, int)])
    else:
        lengths = op.Concat(
            *(op.ints([dim]) if isinstance(dim, int) else op.size(x, i) for i, dim in enumerate(shape)), axis=0
        )
    return op.once(("ones", x), lambda: op.Expand(op.constant(1.0, dtype), lengths))


@rule("flat", "linear", cite=LAPUSCHKIN)
def flat(epsilon: float = EPSILON) -> RuleFunction:
    """Every input of a unit gets the same: w = 1, x = 1, no bias. A box filter over the relevance."""

    def one(op: Backward, w: ir.Value) -> ir.Value:
        shape = dims(w)
        return op.once(("one", w), lambda: op.Expand(op.constant(1.0, w.dtype), op.ints([int(d) for d in shape])))  # type: ignore[arg-type]

    def apply(op: Backward, node: Node, r: Relevance) -> list[Portion]:
        layer = Layer.of(op, node, "flat")
        if layer.weights.full_window(node) and isinstance(dims(layer.x)[1], int):
            return layer.portions(_flat_conv(op, layer, r.value, epsilon), zero_with_x=False)
        w = one(op, layer.w)
        s = r.value / stabilised(op, layer.forward(op, ones(op, layer.x), w, None), epsilon, known=True)
        if op.absorbed is not None:
            op.absorb("stabiliser", s * epsilon, node)
        return layer.portions(layer.back(op, w, s), zero_with_x=False)

    return apply


def _flat_conv(op: Backward, layer: Layer, r: ir.Value, epsilon: float) -> ir.Value:
    """Sum the output channels, filter that one channel, spread it over the input channels: C M times cheaper."""
    node, channels = layer.node, dims(layer.x)[1]
    assert isinstance(channels, int)
    dtype = layer.w.dtype
    assert dtype is not None
    w = op.constant(np.ones((1, 1, *(int(d) for d in dims(layer.w)[2:]))), dtype)  # type: ignore[arg-type]
    sizes = [dim for dim in dims(layer.x)[2:] if isinstance(dim, int)]
    if len(sizes) == rank(layer.x) - 2:
        lengths = op.ints([1, 1, *sizes])
    else:
        lengths = op.Concat(op.ints([1, 1]), *(op.size(layer.x, 2 + i) for i in range(rank(layer.x) - 2)), axis=0)
    plane = op.once(("plane", layer.x), lambda: op.Expand(op.constant(1.0, dtype), lengths))
    count = op.once(("count", node.y), lambda: op.again(node, plane, w)) * float(channels)
    s = op.ReduceSum(r, [1], keepdims=1) / op.Add(count, epsilon)
    if op.absorbed is not None:
        op.absorb("stabiliser", s * epsilon, node)
    single = op.once(("single", layer.x), lambda: op.Slice(layer.x, [0], [1], [1]))
    found = lookup(node).vjp(op, node.with_inputs(single, w), s)[0]
    assert found is not None
    return op.expand(found, layer.x)
