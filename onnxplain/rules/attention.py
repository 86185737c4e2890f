"""Rules for what attention is made of: products of activations, softmax, layer normalisation.

Source of all: Achtibat et al. 2024, "AttnLRP: Attention-Aware Layer-Wise Relevance Propagation for Transformers".
"""

from __future__ import annotations

from onnxplain.errors import UnsupportedOp
from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.masks import HUGE
from onnxplain.graph.node import Node, rank
from onnxplain.graph.relevance import NOTHING, Portion, Relevance
from onnxplain.rules.linear import EPSILON, signed_epsilon, spread_bias, stabilised
from onnxplain.rules.registry import RuleFunction, rule
from onnxplain.vjp import lookup

CITE = "Achtibat et al. 2024, AttnLRP"


@rule("uniform", "product", "affine", "linear", cite=CITE + ", eq. 13 and 14", by_output=True)
def uniform(epsilon: float = EPSILON) -> RuleFunction:
    """Products of two activations: each operand gets half.

    For an elementwise product R / 2 each. For A B + C, a matrix product or a convolution whose kernel or bias is
    computed: C gets its part C R / O of the sum O, and of the rest each operand half, R_A = A * (R / (2 O) B^T) and
    R_B alike. An operand that no relevance can go on from (a constant, a mask) gets nothing and the other one all; the
    numerator of a quotient gets all.
    """

    def apply(op: Backward, node: Node, r: Relevance) -> list[Portion]:
        given = [i for i in range(len(node.inputs)) if op.receives(node.inputs[i])]
        entry = lookup(node)
        if entry.kind == "product":
            given = given if entry.commutes else given[:1]
            share = Relevance(r.value if len(given) < 2 else r.value * 0.5, r.zero_with)
            return [share if i in given else NOTHING for i in range(len(node.inputs))]
        z = op.real(node.y)
        s = r.value / stabilised(op, z, epsilon)
        if op.absorbed is not None:
            op.absorb("stabiliser", s * signed_epsilon(op, z, epsilon), node)
            if len(node.inputs) > 2 and node.inputs[2] is not None and 2 not in given:
                op.absorb("bias", s * spread_bias(op, node, op.real(node.inputs[2])), node)
        factors = [i for i in given if i < 2]
        halves = s * 0.5 if len(factors) == 2 else s
        gradients = list(entry.vjp(op, node, halves))
        if 2 in given and halves is not s:
            gradients[2] = entry.vjp(op, node, s)[2]
        shares: list[Portion] = []
        for i, (value, gradient) in enumerate(zip(node.inputs, gradients, strict=True)):
            if i not in given or value is None or gradient is None:
                shares.append(NOTHING if i not in given else None)
                continue
            part = op.unbroadcast(gradient, value)
            shares.append(Relevance(op.real(value) * part, frozenset([value])))
        return shares

    return apply


@rule("softmax_taylor", "softmax", cite=CITE + ", eq. 11")
def softmax_taylor() -> RuleFunction:
    """Deep Taylor decomposition of a softmax y along its axis: R_in = x * (R - y sum(R)).

    What is masked (x is -inf or the lowest float) gets nothing, also where a whole row is and y is not a number.
    """

    def apply(op: Backward, node: Node, r: Relevance) -> list[Portion]:
        if lookup(node).own_rule != "softmax_taylor":
            raise UnsupportedOp(
                f"{node}: rule softmax_taylor is for Softmax. Explain the tensor below (--explain {node.x.name})."
            )
        x = op.real(node.x)
        seen = op.once(("seen", node.x), lambda: op.Less(op.Abs(x), HUGE))
        y = op.once(("seen", node.y), lambda: op.Where(seen, op.real(node.y), 0.0))
        total = op.ReduceSum(r.value, [node.attr("axis", -1)], keepdims=1)
        share = op.Where(seen, x * (r.value - y * total), 0.0)
        if op.absorbed is not None:
            op.absorb("rule", r.value, node)
            op.absorb("rule", op.Neg(share), node)
        return [Relevance(share, frozenset([node.x])), *[None] * (len(node.inputs) - 1)]

    return apply


@rule("centre", "normalisation", cite=CITE + ", section 3.2 (layer normalisation)")
def centre(epsilon: float = EPSILON) -> RuleFunction:
    """LayerNormalization with its variance held fixed: linear in x, so x * (dy/dx)^T (R / (y + epsilon sign(y))).

    The mean takes its share; the scale's is by the identity rule, the bias absorbs its own.
    """

    def apply(op: Backward, node: Node, r: Relevance) -> list[Portion]:
        if lookup(node).own_rule != "centre":
            raise UnsupportedOp(
                f"{node}: rule centre is for LayerNormalization; use `--rule type:{node.op_type}=pass`."
            )
        x, y = op.real(node.x), op.real(node.y)
        axes = op.ints(range(node.attr("axis", -1) % rank(x), rank(x)))
        mean = op.once(("mean", node.y), lambda: op.ReduceMean(x, axes, keepdims=1))
        centred = op.once(("centred", node.y), lambda: op.Sub(x, mean))
        variance = op.once(("variance", node.y), lambda: op.ReduceMean(op.Mul(centred, centred), axes, keepdims=1))
        spread = op.once(("spread", node.y), lambda: op.Sqrt(op.Add(variance, node.attr("epsilon", 1e-5))))
        s = r.value / stabilised(op, y, epsilon)
        scale, bias = node.input(1), node.input(2)
        if op.absorbed is not None:
            op.absorb("stabiliser", s * signed_epsilon(op, y, epsilon), node)
            if bias is not None:
                op.absorb("bias", s * op.real(bias), node)
        s = s / spread if scale is None else s * op.real(scale) / spread
        result = x * (s - op.ReduceMean(s, axes, keepdims=1))
        return [Relevance(result, frozenset([node.x])), *[NOTHING] * (len(node.inputs) - 1)]

    return apply
