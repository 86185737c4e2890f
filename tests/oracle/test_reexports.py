"""One torch network, exported in several ways, gets the same map. tests/test_reexports.py has the forms torch lacks."""

from __future__ import annotations

import numpy as np
import pytest

from . import ours
from .laws import difference

pytestmark = pytest.mark.oracle

SAME = 1e-4  # of the largest relevance: float32 sums in another order, through epsilon's denominators
BOUNDS = ((-3.0,) * 3, (3.0,) * 3)
COMPOSITES = ("default", "epsilon", "epsilon_gamma_box", "clrp")
FORMS = {
    "opset 13": {"opset": 13},  # LayerNormalization decomposed
    "opset 21": {"opset": 21, "dynamo": True},
    "batch norms kept": {"keep_batchnorm": True},
    "dynamo": {"dynamo": True},
    "fixed batch": {"dynamic": False},
}
NETWORKS = {
    "small_cnn": ("opset 13", "opset 21"),
    "resnet50": ("batch norms kept",),
    "vit": ("opset 13", "opset 21", "fixed batch"),
    "bert": ("opset 13", "opset 21"),
    "lstm": ("opset 13", "dynamo"),
}
CASES = [
    (name, form, method)
    for name, forms in NETWORKS.items()
    for form in forms
    for method in (("gradient",) if name == "lstm" else ("gradient", *COMPOSITES))
]


@pytest.mark.parametrize("name, form, method", CASES)
def test_a_reexported_network_gets_the_same_map(network, name, form, method):
    def relevance(**options) -> np.ndarray:
        model, path = network(name, **options)
        x = {key: value.numpy() for key, value in model.example(1 if form == "fixed batch" else 2, 1).items()}
        seed = np.zeros((len(next(iter(x.values()))), classes(model)), np.float32)
        seed[:, 3] = 1
        if method == "gradient":
            return ours.ours(path, "gradient", x, seed)
        return ours.ours(path, "lrp", x, seed, composite=method, bounds=None if name == "bert" else BOUNDS)

    assert difference(relevance(**FORMS[form]), relevance()) < SAME


def classes(model) -> int:
    """Of the last layer."""
    return [module for module in model.modules() if hasattr(module, "out_features")][-1].out_features
