"""The methods that one compiled graph answers by itself."""

from __future__ import annotations

from typing import Any

from onnxplain.methods.registry import METHODS, Form, OnePass

CLRP_PAPER = "Gu, Yang and Tresp 2018, Understanding Individual Decisions of CNNs via Contrastive Backpropagation"
DEEP_LIFT = (
    "Shrikumar, Greenside and Kundaje 2017, Learning Important Features Through Propagating Activation Differences"
)


def _add(name: str, doc: str, cite: str, composite: str, form: Form | dict[str, Form], **more: Any) -> None:
    forms = form if isinstance(form, dict) else {"": form}
    METHODS.add(name, OnePass(name, doc, cite, composite=composite, forms=forms, **more))


_add(
    "gradient",
    "Derivative of the explained score with respect to the input; times the embedding for tokens.",
    "Baehrens et al. 2010, How to Explain Individual Classification Decisions",
    "none",
    Form("seed", "gradient"),
)
_add(
    "saliency",
    "Absolute value of the gradient; a picture's map takes the maximum over channels.",
    "Simonyan et al. 2014, Deep Inside Convolutional Networks",
    "none",
    Form("seed", "absolute"),
    channels="max",
    signed=False,
)
_add(
    "sensitivity",
    "Squared gradient: sensitivity analysis.",
    "Montavon et al. 2018, Methods for Interpreting and Understanding Deep Neural Networks, eq. 3",
    "none",
    Form("seed", "square"),
    signed=False,
)
_add(
    "gradient_x_input",
    "Gradient times input: simple Taylor decomposition at zero.",
    "Montavon et al. 2018, Methods for Interpreting and Understanding Deep Neural Networks, section 4",
    "none",
    Form("seed", "times_input"),
)
_add(
    "deconvnet",
    "DeconvNet: a Relu passes positive signals back, whatever it did on the way forward.",
    "Zeiler and Fergus 2014, Visualizing and Understanding Convolutional Networks",
    "deconvnet",
    Form("seed", "gradient"),
)
_add(
    "guided_backprop",
    "Guided backprop: a Relu passes positive signals back where it was on.",
    "Springenberg et al. 2015, Striving for Simplicity: The All Convolutional Net",
    "guided_backprop",
    Form("seed", "gradient"),
)
_add(
    "lrp",
    "Layer-wise relevance propagation by a composite of rules.",
    "Bach et al. 2015, On Pixel-Wise Explanations; Montavon et al. 2019, LRP: An Overview",
    "default",
    Form("seed_times_output", "as_it_is"),
)
_add(
    "clrp1",
    "Contrastive LRP: the target's relevance minus that of the same score spread over all other classes.",
    CLRP_PAPER + ", section 4.1",
    "clrp",
    {
        "paper": Form("against_others", "positive"),
        "code": Form("magnitude_and_others", "normalised_difference", ("", "")),
    },
    signed=False,
)
_add(
    "clrp2",
    "Contrastive LRP: the target's relevance minus that of the same unit with negated last weights.",
    CLRP_PAPER + ", section 4.2",
    "clrp",
    {
        "paper": Form("seed_times_magnitude", "positive", ("contrast",)),
        "code": Form("magnitude_twice", "normalised_difference", ("", "opposite")),
    },
    signed=False,
)
_add(
    "deep_lift",
    "DeepLIFT by the rescale rule: multipliers of the difference from a baseline, times that difference.",
    DEEP_LIFT + ", section 3.5.2",
    "rescale",
    Form("seed", "times_difference"),
    reference=True,
)
_add(
    "deep_lift_reveal_cancel",
    "DeepLIFT by the RevealCancel rule: what is for a unit and what is against it go through its activation apart.",
    DEEP_LIFT + ", section 3.5.3",
    "reveal_cancel",
    Form("seed", "times_difference"),
    reference=True,
)
