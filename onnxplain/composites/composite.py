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
from onnxplain.vjp import Kind, lookup


@dataclass(frozen=True)
class Entry:
    """One line of a composite.

    given: by the user, who wants an error rather than silence where it does not fit. bounded: for places only where the
    bounds of the model's input say where the layer's input lies.
    """

    text: str
    matches: Callable[[Place], bool]
    rule: RuleCall
    given: bool = False
    bounded: bool = False


@dataclass(frozen=True)
class Composite:
    """Entries, then the base map by kind of op. relevance: False takes the derivative wherever nothing matches."""

    name: str
    entries: tuple[Entry, ...] = ()
    relevance: bool = True

    def __or__(self, other: Composite) -> Composite:
        """The entries of both, these first; name and base of the other."""
        return Composite(other.name, self.entries + other.entries, other.relevance)

    def rule_for(self, place: Place) -> Rule:
        """The rule of a node. Raises UnsupportedOp where there is none: never the gradient in silence."""
        entry_of_op = lookup(place.node)
        for entry in self.entries:
            if not entry.matches(place) or (entry.bounded and not place.bounded):
                continue
            if place.kind not in RULES[entry.rule.name].kinds:
                bilinear = (
                    place.kind == "product" and entry_of_op.kind == "linear"
                )  # "type:MatMul" means those with weights
                if entry.given and not (bilinear and entry.text.startswith("type:")):
                    raise UnsupportedOp(
                        f"{place.node}: the rule {entry.rule} ({entry.text}) is for "
                        f"{' and '.join(RULES[entry.rule.name].kinds)} ops, and this one is of kind {place.kind}."
                    )
                continue
            return entry.rule
        if not self.relevance:
            return entry_of_op.rule
        base = BASE.get(place.kind)
        if base is None:
            raise UnsupportedOp(
                f"{place.node}: no relevance rule for {place.node.op_type}. Use a gradient method (--method gradient), "
                f"give it one by `--rule type:{place.node.op_type}=…`, or attribute to its output (--attribute-to "
                f"{place.node.y.name})."
            )
        return base(place.node)

    def missed(self, place: Place) -> RuleCall | None:
        """The rule that the node would have, were the bounds of its input known; None where it has what is meant."""
        entry = next((e for e in self.entries if e.matches(place) and place.kind in RULES[e.rule.name].kinds), None)
        return entry.rule if entry is not None and entry.bounded and not place.bounded else None

    def check_given(self, places: Collection[Place]) -> None:
        """Raise UsageError for an entry of the user's that fits no node of the path."""
        for entry in self.entries:
            fits = RULES[entry.rule.name].kinds
            if entry.given and not any(entry.matches(place) and place.kind in fits for place in places):
                types = ", ".join(dict.fromkeys(place.node.op_type for place in places if place.kind in fits))
                raise UsageError(
                    f"rule {entry.text}={entry.rule} fits no node between the explained and the attributed tensors; "
                    f"{entry.rule.name} is for {types or 'none of them'}."
                )

    def text(self) -> list[str]:
        """The entries as the command line writes them."""
        return [f"{entry.text}={entry.rule}" for entry in self.entries]


def _norm_or_pass(node: Node) -> Rule:
    return RULES["centre"]() if node.op_type == "LayerNormalization" else RULES["pass"]()


def _softmax(node: Node) -> Rule:
    return RULES["softmax_taylor"]()


BASE: dict[Kind, Callable[[Node], Rule]] = {
    "linear": lambda node: RULES["epsilon"](),
    "sum": lambda node: RULES["add_abs"](),
    "mean": lambda node: RULES["norm"](),
    "product": lambda node: RULES["uniform"](),
    "affine": lambda node: RULES["pass"](),
    "routing": lambda node: lookup(node).rule,
    "activation": lambda node: RULES["pass"](),
    "softmax": _softmax,
    "normalisation": _norm_or_pass,
    "flat": lambda node: lookup(node).rule,
}
"""The rule of a node no entry matches, by kind: the same for every LRP composite."""


def by_type(**rules: RuleCall) -> Composite:
    """A rule for every node of an op type."""
    return Composite("by_type", tuple(Entry(f"type:{t}", has_type(t), r) for t, r in rules.items()))


def by_name(pattern: str, rule: RuleCall) -> Composite:
    """A rule for nodes whose name, or the name of whose output, matches a shell pattern."""
    return Composite("by_name", (Entry(f"name:{pattern}", has_name(pattern), rule),))


def first(rule: RuleCall, *types: str) -> Composite:
    """A rule for the linear nodes the input meets first (along the data, not in the order of the file)."""
    return Composite("first", (Entry("first", lambda p: p.first and (not types or p.node.op_type in types), rule),))


def last(rule: RuleCall, *types: str) -> Composite:
    """A rule for the linear nodes nearest to the explained tensor."""
    return Composite("last", (Entry("last", lambda p: p.last and (not types or p.node.op_type in types), rule),))


def has_type(op_type: str) -> Callable[[Place], bool]:
    """Whether a place is of an op type."""
    return lambda place: place.node.op_type == op_type


def has_name(pattern: str) -> Callable[[Place], bool]:
    """Whether a node's name, or that of one of its outputs, matches a shell pattern."""

    def matches(place: Place) -> bool:
        names = (place.node.name, *(value.name or "" for value in place.node.outputs))
        return any(fnmatch.fnmatchcase(name, pattern) for name in names)

    return matches
