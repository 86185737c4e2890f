"""LRP-gamma: positive weights count for more."""

from __future__ import annotations

import onnx_ir as ir

from onnxplain.errors import UsageError
from onnxplain.graph.backward_builder import Backward
from onnxplain.rules.linear import EPSILON, Modifier, Share, Term, linear, minus, plus, same
from onnxplain.rules.registry import RuleFunction, rule

MONTAVON = "Montavon et al. 2019, Layer-Wise Relevance Propagation: An Overview"


@rule("gamma", "linear", cite=MONTAVON + ", eq. 10.10", form=("generalised", "positive"))
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
