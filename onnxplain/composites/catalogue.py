"""The composites of the literature, by name. Each takes the input's bounds (low, high), or None where unknown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from onnxplain.composites.composite import Composite, by_type, first
from onnxplain.options import call_text, checked, options_of, parse_call
from onnxplain.registry import Registry
from onnxplain.rules import RULES, RuleCall
from onnxplain.rules.linear import EPSILON
from onnxplain.vjp import OPS, of_family
from onnxplain.vjp.facts import never

Bounds = tuple[list[float], list[float]] | None


@dataclass(frozen=True)
class CompositeEntry:
    """What is registered of a composite.

    function: (bounds, options) -> composite. without_bounds: what stands in for its box, and where, if the bounds are
    not known; "": it wants no bounds.
    """

    name: str
    function: Callable[..., Composite]
    doc: str
    cite: str
    without_bounds: str = ""

    @property
    def options(self) -> dict[str, Any]:
        """Option names with defaults."""
        return options_of(self.function, without=("bounds",))

    def make(self, bounds: Bounds, **options: Any) -> Composite:
        """The composite with these options. Raises UnknownName, UsageError."""
        full = checked(f"composite {self.name}", self.options, options, {})
        made = self.function(bounds, **full)
        return Composite(call_text(self.name, options), made.assignments, made.relevance, made.differences)


COMPOSITES: Registry[CompositeEntry] = Registry("composite")


def composite(name: str, cite: str, without_bounds: str = "") -> Callable[[Callable[..., Composite]], CompositeEntry]:
    """Register a composite: a function of the bounds, whose further arguments are its options.

    without_bounds: as in CompositeEntry.
    """

    def register(function: Callable[..., Composite]) -> CompositeEntry:
        doc = (function.__doc__ or "").strip().split("\n")[0]
        return COMPOSITES.add(name, CompositeEntry(name, function, doc, cite, without_bounds))

    return register


def parse_composite(text: str) -> tuple[CompositeEntry, dict[str, Any]]:
    """`epsilon_gamma_box(gamma=0.1)` or `epsilon` as entry and options. Raises UnknownName, UsageError."""
    name, options = parse_call("composite", text)
    entry = COMPOSITES[name]
    checked(f"composite {name}", entry.options, options, {})
    return entry, options


def _layers(convolution: RuleCall, dense: RuleCall) -> Composite:
    families = {"convolution": convolution, "dense": dense}
    return by_type(**{op_type: rule for family, rule in families.items() for op_type in of_family(family)})


def _rectifiers(rule: RuleCall) -> Composite:
    """A rule for every activation that can be a Relu; it looks whether it is one."""
    return by_type(**{op_type: rule for op_type, op in OPS.items() if op.rectifies is not never})


def _first_box(bounds: Bounds, other: RuleCall, *types: str) -> Composite:
    """Box in the first layer, in the unit of the model's input; another rule where that does not say the layer's."""
    otherwise = first(other, *types)
    if bounds is None:
        return otherwise
    box = RULES["box"](low=bounds[0], high=bounds[1], of="input")
    (assignment,) = first(box, *types).assignments
    return Composite("first", (replace(assignment, bounded=True),)) | otherwise


ZENNIT = "Anders et al. 2021, Software for Dataset-wide XAI (zennit)"


@composite("none", cite="the derivative of every op")
def no_rules(bounds: Bounds) -> Composite:
    """Every op by its derivative: the gradient."""
    return Composite("none", relevance=False)


@composite("default", cite=ZENNIT + ", EpsilonPlusFlat; for pictures only")
def default(bounds: Bounds, epsilon: float = EPSILON) -> Composite:
    """As epsilon_plus_flat, but flat only in a first convolution: in a dense layer it tells no feature from another."""
    return first(RULES["flat"](), *of_family("convolution")) | _layers(
        RULES["z_plus"](), RULES["epsilon"](epsilon=epsilon)
    )


@composite("epsilon", cite="Bach et al. 2015")
def all_epsilon(bounds: Bounds, epsilon: float = EPSILON) -> Composite:
    """LRP-epsilon in every layer with weights."""
    everywhere = RULES["epsilon"](epsilon=epsilon)
    return _layers(everywhere, everywhere)


@composite("epsilon_plus", cite=ZENNIT + ", EpsilonPlus")
def epsilon_plus(bounds: Bounds, epsilon: float = EPSILON) -> Composite:
    """z+ in convolutions, epsilon in dense layers."""
    return _layers(RULES["z_plus"](), RULES["epsilon"](epsilon=epsilon))


@composite("epsilon_plus_flat", cite=ZENNIT + ", EpsilonPlusFlat")
def epsilon_plus_flat(bounds: Bounds, epsilon: float = EPSILON) -> Composite:
    """Flat in the first layer, z+ in convolutions, epsilon in dense layers."""
    return first(RULES["flat"]()) | _layers(RULES["z_plus"](), RULES["epsilon"](epsilon=epsilon))


@composite("epsilon_alpha2_beta1", cite=ZENNIT + ", EpsilonAlpha2Beta1")
def epsilon_alpha2_beta1(bounds: Bounds, epsilon: float = EPSILON) -> Composite:
    """Alpha 2 beta 1 in convolutions, epsilon in dense layers."""
    return _layers(RULES["alpha_beta"](), RULES["epsilon"](epsilon=epsilon))


@composite("epsilon_alpha2_beta1_flat", cite=ZENNIT + ", EpsilonAlpha2Beta1Flat")
def epsilon_alpha2_beta1_flat(bounds: Bounds, epsilon: float = EPSILON) -> Composite:
    """Flat in the first layer, alpha 2 beta 1 in convolutions, epsilon in dense layers."""
    return first(RULES["flat"]()) | _layers(RULES["alpha_beta"](), RULES["epsilon"](epsilon=epsilon))


@composite("epsilon_gamma_box", cite=ZENNIT + ", EpsilonGammaBox", without_bounds="gamma in the first convolution")
def epsilon_gamma_box(bounds: Bounds, gamma: float = 0.25, epsilon: float = EPSILON) -> Composite:
    """Box in the first convolution (gamma if bounds are unknown), gamma in the others, epsilon in dense layers."""
    return _first_box(bounds, RULES["gamma"](gamma=gamma), *of_family("convolution")) | _layers(
        RULES["gamma"](gamma=gamma), RULES["epsilon"](epsilon=epsilon)
    )


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
    return _first_box(bounds, plus, *of_family("convolution")) | _layers(plus, plus)


@composite("guided_backprop", cite="Springenberg et al. 2015")
def guided_backprop(bounds: Bounds) -> Composite:
    """The derivative, with negative gradients stopped at every Relu that is on."""
    return Composite("", _rectifiers(RULES["guided"]()).assignments, relevance=False)


@composite("deconvnet", cite="Zeiler and Fergus 2014")
def deconvnet(bounds: Bounds) -> Composite:
    """The derivative, with negative gradients stopped at every Relu whether on or off."""
    return Composite("", _rectifiers(RULES["deconvnet"]()).assignments, relevance=False)


DEEP_LIFT = "Shrikumar, Greenside and Kundaje 2017, DeepLIFT"


@composite("rescale", cite=DEEP_LIFT + ", section 3.5.2")
def rescale(bounds: Bounds) -> Composite:
    """Multipliers of differences: the linear rule, the rescale rule, and exact secants of all else."""
    return Composite("rescale", relevance=False, differences="rescale")


@composite("reveal_cancel", cite=DEEP_LIFT + ", section 3.5.3")
def reveal_cancel(bounds: Bounds) -> Composite:
    """As rescale, but a layer with weights and its activation are one: positive and negative parts apart."""
    return Composite("reveal_cancel", relevance=False, differences="reveal_cancel")
