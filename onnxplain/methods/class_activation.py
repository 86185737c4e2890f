"""Class activation maps out of gradients: one compiled graph each, that ends at a feature map or is weighed there."""

from __future__ import annotations

from onnxplain.methods.registry import METHODS, Form, OnePass


def _add(name: str, doc: str, cite: str, signed: bool = False, **forms: Form) -> None:
    METHODS.add(name, OnePass(name, doc, cite, signed=signed, forms=forms or {"": Form("seed", name)}, maps=True))


_add(
    "cam",
    "CAM: a feature map's channels summed, each with the head's weight; for a linear head after a global pool.",
    "Zhou et al. 2016, Learning Deep Features for Discriminative Localization, eq. 2",
    signed=True,
)
_add(
    "grad_cam",
    "Grad-CAM: a feature map's channels summed, each with the mean of its gradient; the positive part.",
    "Selvaraju et al. 2017, Grad-CAM: Visual Explanations from Deep Networks via Gradient-Based Localization",
)
_add(
    "hires_cam",
    "HiResCAM: gradient times activation, summed over a feature map's channels, with its sign.",
    "Draelos and Carin 2020, Use HiResCAM instead of Grad-CAM for Faithful Explanations of CNNs",
    signed=True,
)
_add(
    "x_grad_cam",
    "XGrad-CAM: Grad-CAM with gradients weighted by the activations; the positive part.",
    "Fu et al. 2020, Axiom-based Grad-CAM: Towards Accurate Visualization and Explanation of CNNs",
)
_add(
    "layer_cam",
    "LayerCAM: the positive gradient of each position times its activation, summed over channels; the positive part.",
    "Jiang et al. 2021, LayerCAM: Exploring Hierarchical Class Activation Maps for Localization",
)
_add(
    "grad_cam_plus_plus",
    "Grad-CAM++: Grad-CAM with positive gradients weighted by higher derivatives of exp(score); the positive part.",
    "Chattopadhyay et al. 2018, Grad-CAM++: Improved Visual Explanations for Deep Convolutional Networks",
    paper=Form("seed", "grad_cam_plus_plus"),
    code=Form("seed", "grad_cam_plus_plus_code"),
)
_add(
    "layer_gradient",
    "Derivative of the explained score with respect to a feature map, all its channels; the last map by default.",
    "Selvaraju et al. 2017, Grad-CAM: Visual Explanations from Deep Networks via Gradient-Based Localization, eq. 1",
    signed=True,
    **{"": Form("seed", "feature_map")},
)
METHODS.add(
    "guided_grad_cam",
    OnePass(
        "guided_grad_cam",
        "Guided backprop times the Grad-CAM of the last feature map, bilinear between its positions.",
        "Selvaraju et al. 2017, Grad-CAM: Visual Explanations from Deep Networks, section 3.2",
        composite="guided_backprop",
        forms={"": Form("seed_twice", "weighed_by_grad_cam", ("derivative", ""))},
        weighed=True,
    ),
)
