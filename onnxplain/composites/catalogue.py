"""The composites of the literature, by name. Each takes the input's bounds (low, high), or None where unknown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from onnxplain.composites.composite import Composite, by_type, first
from onnxplain.registry import Registry
from onnxplain.rules import RULES, RuleCall
from onnxplain.rules.contrast import contrast, opposite

CONVOLUTIONS = ("Conv", "ConvTranspose")
DENSE = ("Gemm", "MatMul")
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
