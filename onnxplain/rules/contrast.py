"""CLRP2's contrast: the relevance of a unit minus that of its opposite, by linearity in one pass below it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.node import Node
from onnxplain.graph.relevance import Portion, Relevance, common
from onnxplain.rules.linear import negated
from onnxplain.rules.registry import RuleCall
from onnxplain.vjp import weight_and_bias

CITE = "Gu, Yang and Tresp 2018, Understanding Individual Decisions of CNNs via Contrastive Backpropagation, section 4"


def opposite(base: RuleCall) -> RuleCall:
    """`base` with the layer's weights negated: what speaks against the unit."""

    def apply(op: Backward, node: Node, r: Relevance) -> Sequence[Portion]:
        found = weight_and_bias(op, node)
        if found is None:
            return base(op, node, r)  # raises: no constant weights
        inputs = list(node.inputs)
        w = inputs[found[1]]
        assert w is not None
        inputs[found[1]] = negated(op, w)
        return base(op, node.with_inputs(*inputs), r)

    return RuleCall(f"opposite {base.name}", base.options, apply)


def contrast(base: RuleCall) -> RuleCall:
    """Relevance by `base` with W minus relevance by `base` with -W, both of the same R (CLRP2)."""
    against = opposite(base)

    def apply(op: Backward, node: Node, r: Relevance) -> Sequence[Portion]:
        result: list[Portion] = []
        for up, down in zip(base(op, node, r), _on_the_other_side(op, node, r, against), strict=True):
            if isinstance(up, Relevance) and isinstance(down, Relevance):
                result.append(Relevance(up.value - down.value, common([up, down])))
            else:
                result.append(up)
        return result

    return RuleCall(f"contrast {base.name}", base.options, apply)


def _on_the_other_side(op: Backward, node: Node, r: Relevance, rule: RuleCall) -> Sequence[Portion]:
    """`rule`, with what it takes in and absorbs booked with the other sign, since its result is subtracted."""
    if op.absorbed is None:
        return rule(op, node, r)
    books, op.absorbed = op.absorbed, {}
    result = rule(op, node, r)
    taken = {**op.absorbed, "in": [r.value]}
    op.absorbed = books
    for column, amounts in taken.items():
        for amount in amounts:
            op.absorb(column, op.Neg(amount), node)
    return result


LAST_LAYER_RULES: dict[str, Callable[[RuleCall], RuleCall]] = {"contrast": contrast, "opposite": opposite}
"""What a pass may make of the rule of the last linear node, by the names that methods use."""
DERIVATIVE = "derivative"
"""The name of a pass in which every node has its derivative, whatever the composite says."""
