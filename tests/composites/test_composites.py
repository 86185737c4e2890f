"""Composites: their options, as laws over the registry and from outside."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from nets import compiled, normal, relu_net
from support import run

from onnxplain import Explainer
from onnxplain.cli import main
from onnxplain.composites import COMPOSITES, parse_composite
from onnxplain.errors import OnnxplainError, UnknownName, UsageError

BOUNDS = [-3.0], [3.0]
WITH_OPTIONS = [(name, option) for name, entry in COMPOSITES.items() for option in entry.options]


@pytest.mark.parametrize("name", COMPOSITES)
def test_the_defaults_are_the_composite_itself(name):
    entry = COMPOSITES[name]
    for bounds in (None, BOUNDS):
        assert entry.make(bounds, **entry.options).text() == entry.make(bounds).text()
    assert entry.make(None).name == name


@pytest.mark.parametrize(("name", "option"), WITH_OPTIONS)
def test_every_option_acts_and_is_in_the_name(name, option):
    entry, value = COMPOSITES[name], 0.125
    changed = entry.make(None, **{option: value})
    assert changed.text() != entry.make(None).text()
    assert changed.name == f"{name}({option}={value})"


@pytest.mark.parametrize("name", COMPOSITES)
def test_what_an_option_may_not_be_is_said(name):
    with pytest.raises(UnknownName, match=f"option of the composite {name}"):
        parse_composite(f"{name}(nosuch=1)")
    for option in COMPOSITES[name].options:
        with pytest.raises(UsageError, match=f"composite {name}: {option} is a number"):
            parse_composite(f"{name}({option}=much)")


@pytest.mark.parametrize(
    "text", ["nosuch", "nosuch(gamma=1)", "epsilon(", "epsilon(0.1)", "epsilon(epsilon=1,epsilon=2)"]
)
def test_what_is_no_composite_is_an_error_of_one_line(text):
    with pytest.raises(OnnxplainError) as caught:
        parse_composite(text)
    assert isinstance(caught.value, UsageError) and "\n" not in str(caught.value)


def test_an_option_is_what_the_rules_with_it_are(tmp_path):
    feeds = {"x": normal(1, 2, 6, 6), "logits.seed": np.eye(4, dtype=np.float32)[:1]}
    found = []
    for folder, options in (
        ("a", {"composite": "epsilon_gamma_box(gamma=0.5,epsilon=0.1)"}),
        (
            "b",
            {
                "composite": "epsilon_gamma_box",
                "rules": ("type:Conv=gamma(gamma=0.5)", "type:Gemm=epsilon(epsilon=0.1)"),
            },
        ),
    ):
        (tmp_path / folder).mkdir()
        found.append(run(compiled(relu_net(), tmp_path / folder, "lrp", **options).proto, feeds)["x.relevance"])
    np.testing.assert_array_equal(*found)


def test_a_composite_with_options_goes_through_the_command_line_into_files_and_provenance(tmp_path):
    onnx.save(relu_net(batch="N"), tmp_path / "net.onnx")
    np.save(tmp_path / "x.npy", normal(1, 2, 6, 6))
    text = "epsilon_gamma_box(gamma=0.1)"
    main(["compile", str(tmp_path / "net.onnx"), "--composite", text, "-o", str(tmp_path / "lrp.onnx")])
    (kept,) = [p.value for p in onnx.load(tmp_path / "lrp.onnx").metadata_props if p.key == "onnxplain"]
    assert text in kept and json.loads(kept)
    out = tmp_path / "out"
    main(
        ["run", str(tmp_path / "net.onnx"), "--input", str(tmp_path / "x.npy"), "--composite", text, "--out", str(out)]
    )
    assert all(set("()=,").isdisjoint(path.name) for path in out.rglob("*"))


def test_a_composite_that_wants_bounds_says_what_it_does_without_whatever_its_options(tmp_path):
    onnx.save(relu_net(), tmp_path / "net.onnx")
    notes = Explainer(tmp_path / "net.onnx", "lrp", composite="epsilon_gamma_box(gamma=0.1)").notes
    assert any("bounds are not known" in note for note in notes)
