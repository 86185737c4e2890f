"""Which rule where. A composite maps nodes to rules, the first match wins; composites join with `|`.

epsilon_gamma_box = first(box(low, high), "Conv") | by_type(Conv=gamma(0.25), Gemm=epsilon())
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Collection
from dataclasses import dataclass

from onnxplain.composites.places import Place
from onnxplain.errors import UnsupportedOp, UsageError
from onnxplain.graph.node import Node
from onnxplain.graph.walk import Rule
from onnxplain.rules import RULES, RuleCall
from onnxplain.rules.difference import difference_rule
from onnxplain.vjp import Kind, lookup


@dataclass(frozen=True)
class Assignment:
    """One line of a composite.

    by_user: given by the user, who wants an error rather than silence where it does not fit. bounded: for places only
    where the bounds of the model's input say where the layer's input lies.
    """

    text: str
    matches: Callable[[Place], bool]
    rule: RuleCall
    by_user: bool = False
    bounded: bool = False


@dataclass(frozen=True)
class Composite:
    """Entries, then the base map by kind of op. relevance: False takes the derivative wherever nothing matches.

    differences: the rule that follows the difference from a reference there instead (`rules.difference`).
    """

    name: str
    assignments: tuple[Assignment, ...] = ()
    relevance: bool = True
    differences: str = ""

    def __or__(self, other: Composite) -> Composite:
        """The assignments of both, these first; name and base of the other."""
        return Composite(other.name, self.assignments + other.assignments, other.relevance, other.differences)

    def rule_for(self, place: Place) -> Rule:
        """The rule of a node. Raises UnsupportedOp where there is none: never the gradient in silence."""
        op_entry = lookup(place.node)
        for assignment in self.assignments:
            if not assignment.matches(place) or (assignment.bounded and not place.bounded):
                continue
            if place.kind not in RULES[assignment.rule.name].kinds:
                bilinear = (
                    place.kind == "product" and op_entry.kind == "linear"
                )  # "type:MatMul" means those with weights
                if assignment.by_user and not (bilinear and assignment.text.startswith("type:")):
                    raise UnsupportedOp(
                        f"{place.node}: the rule {assignment.rule} ({assignment.text}) is for "
                        f"{' and '.join(RULES[assignment.rule.name].kinds)} ops, and this one is of kind {place.kind}."
                    )
                continue
            return assignment.rule
        if self.differences:
            return difference_rule(self.differences, place.node)
        if not self.relevance:
            return op_entry.rule
        rule = base_rule(place.node, place.kind)
        if rule is None:
            raise UnsupportedOp(
                f"{place.node}: no relevance rule for {place.node.op_type}. Use a gradient method (--method gradient), "
                f"give it one by `--rule type:{place.node.op_type}=…`, or attribute to its output (--attribute-to "
                f"{place.node.y.name})."
            )
        return rule

    def missed(self, place: Place) -> RuleCall | None:
        """The rule that the node would have, were the bounds of its input known; None where it has what is meant."""
        assignment = next(
            (e for e in self.assignments if e.matches(place) and place.kind in RULES[e.rule.name].kinds), None
        )
        return assignment.rule if assignment is not None and assignment.bounded and not place.bounded else None

    def check_assignments(self, places: Collection[Place]) -> None:
        """Raise UsageError for an assignment of the user's that fits no node of the path."""
        for assignment in self.assignments:
            fits = RULES[assignment.rule.name].kinds
            if assignment.by_user and not any(assignment.matches(place) and place.kind in fits for place in places):
                types = ", ".join(dict.fromkeys(place.node.op_type for place in places if place.kind in fits))
                raise UsageError(
                    f"rule {assignment.text}={assignment.rule} fits no node between the explained and the attributed "
                    f"tensors; {assignment.rule.name} is for {types or 'none of them'}."
                )

    def text(self) -> list[str]:
        """The assignments as the command line writes them."""
        return [f"{assignment.text}={assignment.rule}" for assignment in self.assignments]


BASE: dict[Kind, str] = {
    "linear": "epsilon",
    "sum": "add_abs",
    "mean": "norm",
    "product": "uniform",
    "affine": "pass",
    "activation": "pass",
    "softmax": "softmax_taylor",
    "normalisation": "pass",
}
"""The rule of a node that no assignment matches, by kind: the same for every LRP composite."""
DERIVATIVE: tuple[Kind, ...] = ("routing", "flat")
"""Kinds for which the derivative is the rule: what moves values moves their relevance."""


def base_rule(node: Node, kind: Kind) -> Rule | None:
    """The rule of a node, of this kind where it stands, that no assignment matches; None where there is none."""
    entry = lookup(node)
    if kind in DERIVATIVE:
        return entry.rule
    name = entry.own_rule if entry.own_rule and kind == entry.kind else BASE.get(kind)
    return RULES[name]() if name else None


def by_type(**rules: RuleCall) -> Composite:
    """A rule for every node of an op type."""
    return Composite("by_type", tuple(Assignment(f"type:{t}", has_type(t), r) for t, r in rules.items()))


def by_name(pattern: str, rule: RuleCall) -> Composite:
    """A rule for nodes whose name, or the name of whose output, matches a shell pattern."""
    return Composite("by_name", (Assignment(f"name:{pattern}", has_name(pattern), rule),))


def first(rule: RuleCall, *types: str) -> Composite:
    """A rule for the linear nodes the input meets first (along the data, not in the order of the file)."""
    return Composite(
        "first", (Assignment("first", lambda p: p.first and (not types or p.node.op_type in types), rule),)
    )


def last(rule: RuleCall, *types: str) -> Composite:
    """A rule for the linear nodes nearest to the explained tensor."""
    return Composite("last", (Assignment("last", lambda p: p.last and (not types or p.node.op_type in types), rule),))


def has_type(op_type: str) -> Callable[[Place], bool]:
    """Whether a place is of an op type."""
    return lambda place: place.node.op_type == op_type


def has_name(pattern: str) -> Callable[[Place], bool]:
    """Whether a node's name, or that of one of its outputs, matches a shell pattern."""

    def matches(place: Place) -> bool:
        names = (place.node.name, *(value.name or "" for value in place.node.outputs))
        return any(fnmatch.fnmatchcase(name, pattern) for name in names)

    return matches
