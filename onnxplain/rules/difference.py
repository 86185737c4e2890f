"""DeepLIFT: rules that follow the difference from a reference, in the place of what a unit is.

What travels backwards are multipliers: multiplier times difference, summed over a layer, is the difference of what is
explained (summation to delta). Shrikumar, Greenside and Kundaje 2017, "Learning Important Features Through Propagating
Activation Differences".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.node import Node
from onnxplain.graph.relevance import Portion, Relevance, values
from onnxplain.graph.walk import Arrived
from onnxplain.vjp.secants import secant_of


@dataclass(frozen=True)
class DifferenceRule:
    """A rule for every op that has a secant, printed by its name."""

    name: str
    apply: Callable[[Backward, Node, Arrived], Sequence[Portion]]

    def __call__(self, op: Backward, node: Node, r: Arrived) -> Sequence[Portion]:
        """Apply the rule. Raises UnsupportedOp."""
        return self.apply(op, node, r)

    def __str__(self) -> str:
        return self.name


def rescale(op: Backward, node: Node, r: Arrived) -> Sequence[Portion]:
    """Every op by its secant; section 3.5.1 and 3.5.2 of the paper: the linear rule and the rescale rule."""
    m = values(r) if isinstance(r, list) else r.value
    found = secant_of(node)(op, node, m)
    return [None if multiplier is None else Relevance(multiplier) for multiplier in found]


DIFFERENCE_RULES = {"rescale": DifferenceRule("rescale", rescale)}


def difference_rule(name: str, node: Node) -> DifferenceRule:
    """The rule of that name, for this node. Raises UnsupportedOp where its op has no secant."""
    secant_of(node)
    return DIFFERENCE_RULES[name]
