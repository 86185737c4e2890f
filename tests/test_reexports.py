"""One network, written another way, gets the same map."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from nets import plain
from reexports import ARCHITECTURES, CLASSES, MEAN, STD, Forms, feeds, written

from onnxplain import Explainer
from onnxplain.subject import Subject

METHODS = ("gradient", "default", "epsilon", "epsilon_plus", "epsilon_gamma_box", "deep_taylor", "clrp")
SAME = 1e-4  # of the largest relevance: float32 sums in another order, through epsilon's denominators
FLOAT16 = 0.99  # correlation; epsilon divides by sums near 0, which carry the rounding of their summands (1e-3)
FLOAT16_EPSILON = 0.95

CASES = [(name, form) for name, architecture in ARCHITECTURES.items() for form in architecture.forms]


@pytest.fixture(scope="module")
def relevance(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("reexports")

    @functools.cache
    def subject(name: str, forms: Forms) -> Subject:
        path = Path(folder) / f"{name}{hash(forms)}.onnx"
        onnx.save(written(name, forms), path)
        return Subject.of(path, provider="cpu")

    @functools.cache
    def get(name: str, forms: Forms, method: str) -> np.ndarray:
        """Of the input, in the unit that the network itself sees."""
        bounds = None
        if len(ARCHITECTURES[name].shape) == 3:
            low, high = ([0.0] * 3, [1.0] * 3)
            if forms.normalisation == "outside":
                low, high = list(map(float, -MEAN / STD)), list(map(float, (1 - MEAN) / STD))
            bounds = (low, high)
        options = {} if method == "gradient" else {"composite": method, "bounds": bounds}
        explainer = Explainer(subject(name, forms), "gradient" if method == "gradient" else "lrp", **options)
        seed = np.random.default_rng(7).standard_normal((2, CLASSES)).astype(np.float32)
        found = explainer.run(feeds(name, forms), seed)["x.relevance"]
        if method == "gradient" and forms.normalisation == "inside":
            found = found * STD.reshape(1, 3, 1, 1)  # the chain rule
        return found

    return get


@pytest.mark.parametrize(
    "name, form, method",
    [(name, form, m) for name, form in CASES for m in (METHODS if ARCHITECTURES[name].relevance else METHODS[:1])],
)
def test_a_reexported_network_gets_the_same_map(relevance, name, form, method):
    forms = ARCHITECTURES[name].forms[form]
    expected, found = relevance(name, Forms(), method), relevance(name, forms, method)
    assert np.isfinite(expected).all() and np.isfinite(found).all()
    assert np.abs(expected).max() > 0
    if forms.inside == "float16":
        assert np.corrcoef(expected.ravel(), found.ravel())[0, 1] >= (
            FLOAT16_EPSILON if method == "epsilon" else FLOAT16
        )
    else:
        assert np.abs(found - expected).max() <= SAME * np.abs(expected).max()


@pytest.mark.parametrize("name, form", CASES)
def test_the_forms_answer_alike(name, form):
    """The premise, in plain onnxruntime."""
    forms = ARCHITECTURES[name].forms[form]
    tolerance = 0.02 if forms.inside == "float16" else 1e-5
    expected, found = (plain(written(name, f), feeds(name, f))["logits"] for f in (Forms(), forms))
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()
