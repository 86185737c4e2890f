"""Averages and sums: shares in proportion to what each input gave."""

from __future__ import annotations

from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.node import Node
from onnxplain.graph.relevance import NOTHING, Portion, Relevance
from onnxplain.rules.linear import EPSILON, signed_epsilon, stabilised
from onnxplain.rules.registry import RuleFunction, rule
from onnxplain.vjp import lookup

ZENNIT = "Anders et al. 2021, Software for Dataset-wide XAI (zennit)"


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
