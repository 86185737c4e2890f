"""Rules for what attention is made of: products of activations, softmax, layer normalisation.

Source of all: Achtibat et al. 2024, "AttnLRP: Attention-Aware Layer-Wise Relevance Propagation for Transformers".
"""

from __future__ import annotations

import onnx_ir as ir

from onnxplain.errors import UnsupportedOp
from onnxplain.graph.backward import Backward
from onnxplain.graph.node import Node, rank
from onnxplain.graph.walk import Gradient, Rule
from onnxplain.rules.linear import EPSILON, signed_epsilon, stabilised
from onnxplain.rules.registry import rule
from onnxplain.vjp import lookup

CITE = "Achtibat et al. 2024, AttnLRP"


@rule("uniform", "product", "linear", cite=CITE + ", eq. 13 and 14")
def uniform(epsilon: float = EPSILON) -> Rule:
    """Products of two activations: each operand gets half.

    For a matrix product O = A B: R_A = A * ((R / (2 O + epsilon sign(O))) B^T), and R_B alike. For an elementwise
    product R / 2 each. A constant operand gets nothing and the other one all.
    """

    def apply(op: Backward, node: Node, r: ir.Value | list[Gradient]) -> list[Gradient]:
        assert isinstance(r, ir.Value)
        free = [value for value in node.inputs if value is not None and not op.is_constant(value)]
        if node.op_type in ("Mul", "Div"):
            given = free[:1] if node.op_type == "Div" else free
            share = r if len(given) < 2 else r * 0.5
            return [share if value in given else None for value in node.inputs]
        z = op.real(node.y)
        double = op.once(("double", z), lambda: op.Mul(z, 2.0)) if len(free) == 2 else z
        s = r / stabilised(op, double, epsilon)
        if op.absorbed is not None:
            op.absorb("stabiliser", s * signed_epsilon(op, double, epsilon), node)
        parts = lookup(node).vjp(op, node, s)
        return [
            None if value is None or part is None else op.real(value) * op.unbroadcast(part, value)
            for value, part in zip(node.inputs, parts, strict=True)
        ]

    return apply


@rule("softmax_taylor", "softmax", cite=CITE + ", eq. 11")
def softmax_taylor() -> Rule:
    """Deep Taylor decomposition of a softmax y along its axis: R_in = x * (R - y sum(R)); -inf counts as 0."""

    def apply(op: Backward, node: Node, r: ir.Value | list[Gradient]) -> list[Gradient]:
        assert isinstance(r, ir.Value)
        if node.op_type != "Softmax":
            raise UnsupportedOp(
                f"{node}: rule softmax_taylor is for Softmax. Explain the tensor below (--explain {node.x.name})."
            )
        x, y = op.real(node.x), op.real(node.y)
        total = op.ReduceSum(r, [node.attr("axis", -1)], keepdims=1)
        finite = op.Where(op.Less(op.Abs(x), 1e30), x, 0.0)  # masks are -inf or the lowest float
        return [finite * (r - y * total), *[None] * (len(node.inputs) - 1)]

    return apply


@rule("centre", "normalisation", cite=CITE + ", section 3.2 (layer normalisation)")
def centre(epsilon: float = EPSILON) -> Rule:
    """LayerNormalization with its variance held fixed: linear in x, so x * (dy/dx)^T (R / (y + epsilon sign(y))).

    The mean takes its share; the scale's is by the identity rule, the bias absorbs its own.
    """

    def apply(op: Backward, node: Node, r: ir.Value | list[Gradient]) -> list[Gradient]:
        assert isinstance(r, ir.Value)
        if node.op_type != "LayerNormalization":
            raise UnsupportedOp(
                f"{node}: rule centre is for LayerNormalization; use `--rule type:{node.op_type}=pass`."
            )
        x, y = op.real(node.x), op.real(node.y)
        axes = op.ints(range(node.attr("axis", -1) % rank(x), rank(x)))
        mean = op.once(("mean", node.y), lambda: op.ReduceMean(x, axes, keepdims=1))
        centred = op.once(("centred", node.y), lambda: op.Sub(x, mean))
        variance = op.once(("variance", node.y), lambda: op.ReduceMean(op.Mul(centred, centred), axes, keepdims=1))
        spread = op.once(("spread", node.y), lambda: op.Sqrt(op.Add(variance, node.attr("epsilon", 1e-5))))
        s = r / stabilised(op, y, epsilon)
        scale, bias = node.input(1), node.input(2)
        if op.absorbed is not None:
            op.absorb("stabiliser", s * signed_epsilon(op, y, epsilon), node)
            if bias is not None:
                op.absorb("bias", s * op.real(bias), node)
        s = s / spread if scale is None else s * op.real(scale) / spread
        result = x * (s - op.ReduceMean(s, axes, keepdims=1))
        op.vanishing.add(result)
        return [result, *[None] * (len(node.inputs) - 1)]

    return apply
