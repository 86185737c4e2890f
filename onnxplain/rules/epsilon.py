"""LRP-0 and LRP-epsilon: shares in proportion to contributions, over the layer's output.

Notation in all rules as in the papers: x the layer's input, w weights, b bias, z = w x + b, R relevance of the output.
The parts of a tensor are v+ = max(v, 0) and v- = min(v, 0).
"""

from __future__ import annotations

from onnxplain.rules.linear import EPSILON, Share, Term, linear, same
from onnxplain.rules.registry import RuleFunction, rule

BACH = "Bach et al. 2015, On Pixel-Wise Explanations for Non-Linear Classifier Decisions"


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
