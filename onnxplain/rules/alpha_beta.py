"""Positive and negative contributions apart: alpha-beta, and z+ with the positive ones only."""

from __future__ import annotations

from collections.abc import Sequence

from onnxplain.errors import UsageError
from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.node import Node
from onnxplain.graph.relevance import Portion, Relevance
from onnxplain.rules.linear import EPSILON, Modifier, Share, Term, linear, minus, plus, same
from onnxplain.rules.registry import RuleFunction, rule
from onnxplain.rules.stacked import stacked, stacks

BACH = "Bach et al. 2015, On Pixel-Wise Explanations for Non-Linear Classifier Decisions"
MONTAVON = "Montavon et al. 2017, Explaining NonLinear Classification Decisions with Deep Taylor Decomposition"


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


@rule("z_plus", "linear", cite=MONTAVON + ", eq. 15", form=("full", "fast"), bias=("keep", "drop"))
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
