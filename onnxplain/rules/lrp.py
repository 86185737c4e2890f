"""The LRP rules for layers with weights, and for averages.

Notation as in the papers: x the layer's input, w weights, b bias, z = w x + b, R relevance of the output. The parts of
a tensor are v+ = max(v, 0) and v- = min(v, 0).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxplain.errors import UnsupportedOp, UsageError
from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.bounds import bound, carried
from onnxplain.graph.node import Node, constant, dims, rank
from onnxplain.graph.relevance import NOTHING, Portion, Relevance
from onnxplain.rules.linear import (
    EPSILON,
    Layer,
    Modifier,
    Share,
    Term,
    linear,
    minus,
    plus,
    same,
    signed_epsilon,
    spread_bias,
    stabilised,
)
from onnxplain.rules.registry import RuleFunction, rule
from onnxplain.rules.stacked import stacked, stacks
from onnxplain.vjp import Kind, lookup

BACH = "Bach et al. 2015, On Pixel-Wise Explanations for Non-Linear Classifier Decisions"
MONTAVON_2017 = "Montavon et al. 2017, Explaining NonLinear Classification Decisions with Deep Taylor Decomposition"
MONTAVON_2019 = "Montavon et al. 2019, Layer-Wise Relevance Propagation: An Overview"
ZENNIT = "Anders et al. 2021, Software for Dataset-wide XAI (zennit)"
LAPUSCHKIN = "Lapuschkin et al. 2019, Unmasking Clever Hans Predictors"


@rule("zero", "linear", cite=BACH + ", eq. 56", by_output=True)
def zero() -> RuleFunction:
    """LRP-0: R_j = sum_k x_j w_jk / z_k R_k; units with z = 0 pass nothing on."""
    return linear("zero", [Share([Term(bias=same)])], epsilon=0.0)


@rule(
    "epsilon",
    "linear",
    cite=BACH + ", eq. 58",
    by_output=True,
    bias=("keep", "drop"),
    stabiliser=("signed", "unsigned"),
)
def epsilon(epsilon: float = EPSILON, bias: str = "keep", stabiliser: str = "signed") -> RuleFunction:
    """R_j = sum_k x_j w_jk / (z_k + epsilon sign(z_k)) R_k.

    epsilon: unit of z; absorbs weak and contradictory evidence. bias: keep it in z (it absorbs its share) or drop it.
    stabiliser: `unsigned` adds +epsilon whatever the sign of z, as LXT does.
    """
    share = Share([Term(bias=same if bias == "keep" else None)])
    return linear("epsilon", [share], epsilon, signed=stabiliser == "signed")


@rule("gamma", "linear", cite=MONTAVON_2019 + ", eq. 10.10", form=("generalised", "positive"))
def gamma(gamma: float = 0.25, epsilon: float = EPSILON, form: str = "generalised") -> RuleFunction:
    """Favour positive contributions: every weight w becomes w + gamma max(w, 0).

    R_j = sum_k x_j (w_jk + gamma w_jk+) / sum_i x_i (w_ik + gamma w_ik+) R_k, for x >= 0. The generalised form treats
    units with z >= 0 and z < 0 and inputs of either sign alike (Andeol et al. 2021); `positive` is the formula as it
    stands, with the bias unscaled. gamma: no unit; 0 is LRP-epsilon, larger is sparser.
    """
    if gamma < 0:
        raise UsageError(f"rule gamma: gamma is at least 0, not {gamma}.")

    def boosted(part: Modifier, name: str) -> Modifier:
        def modify(op: Backward, v: ir.Value) -> ir.Value:
            return op.once((name, gamma, v), lambda: op.Add(v, op.Mul(part(op, v), gamma)))

        return modify

    up, down = boosted(plus, "boosted up"), boosted(minus, "boosted down")
    if form == "positive":
        return linear("gamma", [Share([Term(same, up, same)])], epsilon)
    shares = [
        Share([Term(plus, up, up), Term(minus, down)], where="positive"),
        Share([Term(plus, down, down), Term(minus, up)], where="negative"),
    ]
    return linear("gamma", shares, epsilon)


@rule("alpha_beta", "linear", cite=BACH + ", eq. 60", bias=("split", "shared", "drop"))
def alpha_beta(alpha: float = 2.0, beta: float = 1.0, epsilon: float = EPSILON, bias: str = "split") -> RuleFunction:
    """Positive and negative contributions apart: R_j = sum_k (alpha (x_j w_jk)+ / z_k+ - beta (x_j w_jk)- / z_k-) R_k.

    alpha - beta = 1, both at least 0. bias: `split` puts b+ into z+ and b- into z- (zennit), `shared` all of b into
    both (iNNvestigate), `drop` none. A unit without positive (negative) contributions loses its alpha (beta) share to
    the stabiliser; the ledger shows it.
    """
    if alpha < 0 or beta < 0 or abs(alpha - beta - 1) > 1e-9:
        raise UsageError(f"rule alpha_beta: alpha - beta = 1 with both at least 0, not alpha={alpha:g}, beta={beta:g}.")
    with_bias: dict[str, tuple[Modifier | None, Modifier | None]] = {
        "split": (plus, minus),
        "shared": (same, same),
        "drop": (None, None),
    }
    up, down = with_bias[bias]
    sure = bias != "shared"
    shares = [Share([Term(plus, plus, up), Term(minus, minus)], alpha, nonnegative=sure)]
    if not beta:
        return linear("alpha_beta", shares, epsilon)
    shares.append(Share([Term(plus, minus, down), Term(minus, plus)], -beta))
    apart = linear("alpha_beta", shares, epsilon)

    def apply(op: Backward, node: Node, r: Relevance) -> Sequence[Portion]:
        if sure and op.absorbed is None and stacks(op, node):
            return stacked(op, node, r.value, (alpha, up), (-beta, down), epsilon)
        return apart(op, node, r)

    return apply


@rule("z_plus", "linear", cite=MONTAVON_2017 + ", eq. 15", form=("full", "fast"), bias=("keep", "drop"))
def z_plus(epsilon: float = EPSILON, form: str = "full", bias: str = "keep") -> RuleFunction:
    """Positive contributions only: R_j = sum_k (x_j w_jk)+ / sum_i (x_i w_ik)+ R_k.

    full: inputs of either sign are split too (zennit's ZPlus). fast: only the weights are clamped, as CLRP's code and
    excitation backprop's do; right for x >= 0, sign-flipped otherwise. bias: keep it in the denominator, where it takes
    its share (full: b+; fast: b, as captum's Alpha1_Beta0_Rule), or drop it, as the CLRP paper does.
    """
    if form == "full":
        up = plus if bias == "keep" else None
        return linear("z_plus", [Share([Term(plus, plus, up), Term(minus, minus)], nonnegative=True)], epsilon)
    return linear("z_plus", [Share([Term(same, plus, same if bias == "keep" else None)])], epsilon)


@rule("box", "linear", cite=MONTAVON_2017 + ", eq. 17 (z^B)", of=("layer", "input"))
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
        axis = channel_axis(node, x)
        if of == "input":
            least, most = carried(op, x, axis, list(lows), list(highs))
        else:
            least, most = bound(op, x, axis, list(lows)), bound(op, x, axis, list(highs))

        def above(end: ir.Value) -> Modifier:
            return lambda op, v: op.once(("above", v, end), lambda: op.Sub(v, end))

        shares = [Share([Term(above(least), plus), Term(above(most), minus)])]
        return linear("box", shares, epsilon, zero_with_x=False)(op, node, r)  # x = 0 is no root here

    return apply


def channel_axis(node: Node, x: ir.Value) -> int:
    """The axis of a linear node's input along which its weights differ: the channels, or the features."""
    if node.op_type == "Gemm":
        turned = node.attr("transA", 0) if x is node.inputs[0] else 1 - node.attr("transB", 0)
        return 0 if turned else 1
    if node.op_type == "MatMul":
        return rank(x) - 1 if x is node.inputs[0] or rank(x) < 2 else rank(x) - 2
    return 1


@rule("w_square", "linear", cite=MONTAVON_2017 + ", eq. 12", bias=("keep", "drop"))
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
        if node.op_type == "Conv" and node.attr("group", 1) == 1 and isinstance(dims(layer.x)[1], int):
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
    count = op.once(("count", node.y), lambda: op.again(node, plane, w, None)) * float(channels)
    s = op.ReduceSum(r, [1], keepdims=1) / op.Add(count, epsilon)
    if op.absorbed is not None:
        op.absorb("stabiliser", s * epsilon, node)
    single = op.once(("single", layer.x), lambda: op.Slice(layer.x, [0], [1], [1]))
    found = lookup(node).vjp(op, node.with_inputs(single, w), s)[0]
    assert found is not None
    return op.expand(found, layer.x)


EVERY: tuple[Kind, ...] = (
    "linear", "mean", "sum", "product", "affine", "activation", "softmax", "normalisation", "other",
)  # fmt: skip


KEEP_ZERO = {
    "Relu",
    "LeakyRelu",
    "PRelu",
    "ThresholdedRelu",
    "Elu",
    "Selu",
    "Celu",
    "Gelu",
    "Swish",
    "HardSwish",
    "Mish",
}
KEEP_ZERO |= {"Tanh", "Softsign", "Erf", "Shrink", "Neg", "Mul", "Div", "LRN", "LpNormalization", "RMSNormalization"}
"""Ops that are passed through and whose output is zero wherever their input is."""


def keeps_zero(node: Node) -> bool:
    """Whether f(0) = 0, which a sigmoid or a BatchNormalization does not have."""
    if node.op_type == "Clip":
        low, high = constant(node.input(1)), constant(node.input(2))
        return (low is None or float(low) <= 0) and (high is None or float(high) >= 0)
    return node.op_type in KEEP_ZERO


@rule("pass", *EVERY, cite=MONTAVON_2019)
def pass_through() -> RuleFunction:
    """R_in = R_out, for elementwise functions, scalings, normalisations; to the first operand that can receive it."""

    def apply(op: Backward, node: Node, r: Relevance) -> list[Portion]:
        given = [i for i, value in enumerate(node.inputs) if op.receives(value)]
        x = node.inputs[given[0]]
        assert x is not None
        lengths = zip(dims(r.value), op.stream_shape(x), strict=False)
        same_shape = rank(r.value) == rank(x) and all(
            a == b for a, b in lengths if isinstance(a, int) and isinstance(b, int)
        )
        if not same_shape and not lookup(node).broadcasts:
            raise UnsupportedOp(
                f"{node}: rule pass needs an output of the input's shape, here {dims(node.y)} from {dims(x)}."
            )
        r = _where_it_counts(op, node, given[0], r)
        own = r.zero_also_with(x) if node.y in r.zero_with and keeps_zero(node) else r
        return [own if i == given[0] else NOTHING for i in range(len(node.inputs))]

    return apply


def _where_it_counts(op: Backward, node: Node, index: int, r: Relevance) -> Relevance:
    """What falls on entries that a mask multiplies by 0 is lost to the mask, as where a Where leaves them out."""
    mask = node.inputs[1 - index] if node.op_type == "Mul" else None
    numbers = constant(mask)
    if mask is None or (numbers is not None and numbers.all()):
        return r
    out = op.once(("zero", mask), lambda: op.Equal(mask, op.constant(0, mask.dtype)))  # type: ignore[arg-type]
    if op.absorbed is not None:
        op.absorb("bias", op.Where(out, r.value, 0.0), node)
    return r.but(op.Where(out, 0.0, r.value))


@rule("norm", "mean", "sum", "affine", "linear", cite=ZENNIT + ", Norm", by_output=True)
def norm(epsilon: float = EPSILON) -> RuleFunction:
    """Shares proportional to the input's part in the output: x_j (dz_k/dx_j) / z_k R_k. For averages and sums.

    Constants take their part as well, which the ledger books as bias.
    """

    def apply(op: Backward, node: Node, r: Relevance) -> list[Portion]:
        z = op.bounded(node.y)
        s = r.value / stabilised(op, z, epsilon, known=op.is_nonnegative(node.y))
        if op.absorbed is not None:
            op.absorb(
                "stabiliser", s * (epsilon if op.is_nonnegative(node.y) else signed_epsilon(op, z, epsilon)), node
            )
        result: list[Portion] = []
        for value, part in zip(node.inputs, lookup(node).vjp(op, node, s), strict=True):
            if value is None or part is None:
                result.append(None)
                continue
            share = op.bounded(value) * part
            if op.receives(value):
                result.append(Relevance(share, frozenset([value])))
            else:
                op.absorb("bias", share, node)
                result.append(NOTHING)
        return result

    return apply
