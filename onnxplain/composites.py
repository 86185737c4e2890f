"""Which rule where. A composite maps nodes to rules, the first match wins; composites join with `|`.

epsilon_gamma_box = first(box(low, high), "Conv") | by_type(Conv=gamma(0.25), Gemm=epsilon())
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any

from onnxplain.errors import UnknownName, UnsupportedOp, UsageError
from onnxplain.graph.backward import Backward
from onnxplain.graph.bounds import steps_from_input
from onnxplain.graph.node import Node, is_float
from onnxplain.graph.walk import Rule
from onnxplain.registry import Registry
from onnxplain.rules import RULES, RuleCall, parse_rule
from onnxplain.rules.contrast import contrast, opposite
from onnxplain.vjp import OPS, Kind, lookup
from onnxplain.vjp.linear import weight_and_bias

CONVOLUTIONS = ("Conv", "ConvTranspose")
DENSE = ("Gemm", "MatMul")


@dataclass(frozen=True)
class Place:
    """A node with what is around it.

    kind: what it is here. first, last: whether it is a first or a last linear node of the path. top: whether no linear
    node lies between it and the explained tensor. bounded: whether bounds of the model's input say where a first
    node's input lies.
    """

    node: Node
    kind: Kind
    first: bool
    last: bool
    top: bool = False
    bounded: bool = False


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


def kind_of(op: Backward, node: Node) -> Kind:
    """The kind of a node where it stands.

    A sum or product of which one operand only can receive relevance is a shift or scaling (affine), as it is where an
    exporter fused it into a normalisation; Max(x, 0) is a Relu. A MatMul or Conv without constant weights is a product.
    """
    kind = lookup(node).kind
    if kind != "flat" and not any(is_float(y) or y.dtype is None for y in node.outputs):
        return "routing"  # integers on their way to a look-up: which token it is stays what it was
    if kind == "linear" and weight_and_bias(op, node) is None:
        return "product"
    if kind == "routing" and not lookup(node).routes(node):
        return "other"  # a scatter that adds is a sum, and its shares are not known here
    alone = lookup(node).alone
    given = [i for i, value in enumerate(node.inputs) if op.receives(value)] if alone is not None else []
    return alone(given[0]) if alone is not None and len(given) == 1 else kind


def places(op: Backward, path: Collection[Node]) -> dict[Node, Place]:
    """Place of every node of a path (last node first)."""
    kinds = {node: kind_of(op, node) for node in path}
    below: set[Any] = set()  # tensors computed through a linear node
    first = set()
    for node in reversed(list(path)):
        behind = any(value in below for value in node.inputs)
        if kinds[node] == "linear":
            if not behind:
                first.add(node)
            behind = True
        if behind:
            below.update(node.outputs)
    above: set[Any] = set()  # tensors that reach the explained one through a linear node
    last, top = set(), set()
    for node in path:
        ahead = any(value in above for value in node.outputs)
        if not ahead:
            top.add(node)
        if kinds[node] == "linear":
            if not ahead:
                last.add(node)
            ahead = True
        if ahead:
            above.update(node.inputs)
    return {
        node: Place(node, kinds[node], node in first, node in last, node in top, node in first and _bounded(op, node))
        for node in path
    }


def _bounded(op: Backward, node: Node) -> bool:
    layer = weight_and_bias(op, node)
    x = node.inputs[layer[0]] if layer is not None else None
    return x is not None and steps_from_input(op, x) is not None


def by_type(**rules: RuleCall) -> Composite:
    """A rule for every node of an op type."""
    return Composite("by_type", tuple(Entry(f"type:{t}", _has_type(t), r) for t, r in rules.items()))


def by_name(pattern: str, rule: RuleCall) -> Composite:
    """A rule for nodes whose name, or the name of whose output, matches a shell pattern."""
    return Composite("by_name", (Entry(f"name:{pattern}", _has_name(pattern), rule),))


def first(rule: RuleCall, *types: str) -> Composite:
    """A rule for the linear nodes the input meets first (along the data, not in the order of the file)."""
    return Composite("first", (Entry("first", lambda p: p.first and (not types or p.node.op_type in types), rule),))


def last(rule: RuleCall, *types: str) -> Composite:
    """A rule for the linear nodes nearest to the explained tensor."""
    return Composite("last", (Entry("last", lambda p: p.last and (not types or p.node.op_type in types), rule),))


def _has_type(op_type: str) -> Callable[[Place], bool]:
    return lambda place: place.node.op_type == op_type


def _has_name(pattern: str) -> Callable[[Place], bool]:
    def matches(place: Place) -> bool:
        names = (place.node.name, *(value.name or "" for value in place.node.outputs))
        return any(fnmatch.fnmatchcase(name, pattern) for name in names)

    return matches


def parse_entries(texts: Iterable[str]) -> Composite:
    """`type:Conv=flat`, `name:fc*=epsilon(epsilon=0.1)`, `first=box(low=-2.1,high=2.6)`, `last=…` as entries."""
    entries = []
    for text in texts:
        where, equals, rule_text = text.partition("=")
        where = where.strip()
        if not equals:
            raise UsageError(f"cannot read the rule {text!r}; write type:Conv=…, name:fc*=…, first=… or last=….")
        rule = parse_rule(rule_text)
        what, _, argument = where.partition(":")
        if what == "type":
            if argument not in OPS:
                raise UnknownName("op type with a derivative", argument, OPS)
            matches = _has_type(argument)
        elif what == "name":
            matches = _has_name(argument)
        elif where == "first":
            matches = _is_first
        elif where == "last":
            matches = _is_last
        else:
            raise UsageError(f"cannot read {where!r} in {text!r}; write type:Conv=…, name:fc*=…, first=… or last=….")
        entries.append(Entry(where, matches, rule, given=True))
    return Composite("given", tuple(entries))


def _is_first(place: Place) -> bool:
    return place.first


def _is_last(place: Place) -> bool:
    return place.last


# ---------------------------------------------------------------------------------------------------------------------
# The composites of the literature. Each takes the input's bounds (low, high), or None where they are not known.

Bounds = tuple[list[float], list[float]] | None


@dataclass(frozen=True)
class CompositeEntry:
    """What is registered of a composite.

    make(bounds) builds it. without_bounds: what stands in for its box, and where, if the bounds are not known; "": it
    wants no bounds.
    """

    name: str
    make: Callable[[Bounds], Composite]
    doc: str
    cite: str
    without_bounds: str = ""


COMPOSITES: Registry[CompositeEntry] = Registry("composite")


def composite(
    name: str, cite: str, without_bounds: str = ""
) -> Callable[[Callable[[Bounds], Composite]], CompositeEntry]:
    """Register a composite. without_bounds: as in CompositeEntry."""

    def register(make: Callable[[Bounds], Composite]) -> CompositeEntry:
        def named(bounds: Bounds) -> Composite:
            made = make(bounds)
            return Composite(name, made.entries, made.relevance)

        doc = (make.__doc__ or "").strip().split("\n")[0]
        return COMPOSITES.add(name, CompositeEntry(name, named, doc, cite, without_bounds))

    return register


def _layers(convolution: RuleCall, dense: RuleCall) -> Composite:
    return by_type(**dict.fromkeys(CONVOLUTIONS, convolution), **dict.fromkeys(DENSE, dense))


def _first_box(bounds: Bounds, other: RuleCall, *types: str) -> Composite:
    """Box in the first layer, in the unit of the model's input; another rule where that does not say the layer's."""
    otherwise = first(other, *types)
    if bounds is None:
        return otherwise
    box = RULES["box"](low=bounds[0], high=bounds[1], of="input")
    (entry,) = first(box, *types).entries
    return Composite("first", (replace(entry, bounded=True),)) | otherwise


ZENNIT = "Anders et al. 2021, Software for Dataset-wide XAI (zennit)"


@composite("none", cite="the derivative of every op")
def no_rules(bounds: Bounds) -> Composite:
    """Every op by its derivative: the gradient."""
    return Composite("none", relevance=False)


@composite("default", cite=ZENNIT + ", EpsilonPlusFlat; for pictures only")
def default(bounds: Bounds) -> Composite:
    """As epsilon_plus_flat, but flat only in a first convolution: in a dense layer it tells no feature from another."""
    return first(RULES["flat"](), *CONVOLUTIONS) | _layers(RULES["z_plus"](), RULES["epsilon"]())


@composite("epsilon", cite="Bach et al. 2015")
def all_epsilon(bounds: Bounds) -> Composite:
    """LRP-epsilon in every layer with weights."""
    return _layers(RULES["epsilon"](), RULES["epsilon"]())


@composite("epsilon_plus", cite=ZENNIT + ", EpsilonPlus")
def epsilon_plus(bounds: Bounds) -> Composite:
    """z+ in convolutions, epsilon in dense layers."""
    return _layers(RULES["z_plus"](), RULES["epsilon"]())


@composite("epsilon_plus_flat", cite=ZENNIT + ", EpsilonPlusFlat")
def epsilon_plus_flat(bounds: Bounds) -> Composite:
    """Flat in the first layer, z+ in convolutions, epsilon in dense layers."""
    return first(RULES["flat"]()) | _layers(RULES["z_plus"](), RULES["epsilon"]())


@composite("epsilon_alpha2_beta1", cite=ZENNIT + ", EpsilonAlpha2Beta1")
def epsilon_alpha2_beta1(bounds: Bounds) -> Composite:
    """Alpha 2 beta 1 in convolutions, epsilon in dense layers."""
    return _layers(RULES["alpha_beta"](), RULES["epsilon"]())


@composite("epsilon_alpha2_beta1_flat", cite=ZENNIT + ", EpsilonAlpha2Beta1Flat")
def epsilon_alpha2_beta1_flat(bounds: Bounds) -> Composite:
    """Flat in the first layer, alpha 2 beta 1 in convolutions, epsilon in dense layers."""
    return first(RULES["flat"]()) | _layers(RULES["alpha_beta"](), RULES["epsilon"]())


@composite("epsilon_gamma_box", cite=ZENNIT + ", EpsilonGammaBox", without_bounds="gamma in the first convolution")
def epsilon_gamma_box(bounds: Bounds) -> Composite:
    """Box in the first convolution (gamma if bounds are unknown), gamma 0.25 in the others, epsilon in dense layers."""
    return _first_box(bounds, RULES["gamma"](), *CONVOLUTIONS) | _layers(RULES["gamma"](), RULES["epsilon"]())


@composite(
    "deep_taylor",
    cite="Montavon et al. 2017, Deep Taylor Decomposition",
    without_bounds="w_square in the first layer",
)
def deep_taylor(bounds: Bounds) -> Composite:
    """Box in the first layer (w^2 where the bounds are unknown), z+ without bias elsewhere."""
    plus = RULES["alpha_beta"](alpha=1.0, beta=0.0, bias="drop")
    return _first_box(bounds, RULES["w_square"]()) | _layers(plus, plus)


@composite("clrp", cite="Gu, Yang and Tresp 2018, section 3.1", without_bounds="z_plus in the first convolution")
def clrp(bounds: Bounds) -> Composite:
    """Box in the first convolution (z+ where the bounds are unknown), z+ elsewhere, biases bypassed in both."""
    plus = RULES["z_plus"](bias="drop")
    return _first_box(bounds, plus, *CONVOLUTIONS) | _layers(plus, plus)


@composite("guided_backprop", cite="Springenberg et al. 2015")
def guided_backprop(bounds: Bounds) -> Composite:
    """The derivative, with negative gradients stopped at every Relu that is on."""
    return Composite("", by_type(Relu=RULES["guided"](), Clip=RULES["guided"]()).entries, relevance=False)


@composite("deconvnet", cite="Zeiler and Fergus 2014")
def deconvnet(bounds: Bounds) -> Composite:
    """The derivative, with negative gradients stopped at every Relu whether on or off."""
    return Composite("", by_type(Relu=RULES["deconvnet"](), Clip=RULES["deconvnet"]()).entries, relevance=False)


LAST_RULES: dict[str, Callable[[RuleCall], RuleCall]] = {"contrast": contrast, "opposite": opposite}
"""What CLRP2 makes of the rule of the last linear node."""
