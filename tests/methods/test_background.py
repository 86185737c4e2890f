"""Rows of data as a baseline: the answer over a background is the mean of the answers over its rows."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from onnxplain import Explainer
from onnxplain.cli import main
from onnxplain.errors import InputError, UsageError
from onnxplain.inputs import load, load_settings
from onnxplain.inputs.background import Background
from onnxplain.methods import METHODS, Looped
from onnxplain.methods.background import BACKGROUND_WORDS
from onnxplain.recipes import Recipe
from onnxplain.subject import Subject

IRIS = Path(__file__).parents[2] / "models/iris_mlp/1/model.onnx"
ROWS = np.random.default_rng(0).normal(2, 1.5, (3, 4)).astype(np.float32)
X = np.random.default_rng(1).normal(3, 1, (2, 4)).astype(np.float32)
DRAWN = {"expected_gradients", "rise"}  # which draw a row for each sample: equal in the mean only
SEARCHED = {"meaningful_perturbation", "extremal_perturbation"}  # the best mask over all rows is no mean of masks
WITH = [
    name
    for name, method in METHODS.items()
    if isinstance(method, Looped)
    and not method.of_trees
    and any(set(BACKGROUND_WORDS) <= set(option.choices) for option in method.options.values())
]


@pytest.fixture(scope="module")
def iris():
    return Subject.of(IRIS)


def answer(subject, name, **options):
    return Explainer(subject, name, **options).explain(X, [0, 1]).relevance


@pytest.mark.parametrize("name", [name for name in WITH if name not in DRAWN | SEARCHED])
def test_the_answer_over_a_background_is_the_mean_over_its_rows(name, iris):
    found = answer(iris, name, baseline="background", background=ROWS)
    alone = [answer(iris, name, baseline=[float(v) for v in row]) for row in ROWS]
    # both add up float32 looks in float64; their order differs
    np.testing.assert_allclose(found, np.mean(alone, 0), rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", WITH)
def test_a_background_of_one_row_is_a_baseline_and_so_is_the_mean_of_several(name, iris):
    told = answer(iris, name, baseline=[float(v) for v in ROWS[0]])
    np.testing.assert_array_equal(answer(iris, name, baseline="background", background=ROWS[:1]), told)
    mean = ROWS.astype(np.float64).mean(0).astype(np.float32)
    told = answer(iris, name, baseline=[float(v) for v in mean])
    np.testing.assert_array_equal(answer(iris, name, baseline="background_mean", background=ROWS), told)


@pytest.mark.parametrize("name", sorted(DRAWN))
def test_drawn_rows_give_the_mean_over_all_in_the_long_run(name, iris):
    options = {"expected_gradients": {"samples": 3000, "noise": 0.0}, "rise": {"masks": 6000}}[name]
    found = answer(iris, name, baseline="background", background=ROWS, **options)
    alone = [answer(iris, name, baseline=[float(v) for v in row], **options) for row in ROWS]
    scale = np.abs(np.mean(alone, 0)).max()
    np.testing.assert_allclose(found, np.mean(alone, 0), atol=0.1 * scale)  # three standard errors of these counts


def test_relevance_over_a_background_sums_to_the_change_of_the_score_from_its_mean(iris):
    explainer = Explainer(iris, "integrated_gradients", baseline="background", steps=400, background=ROWS)
    found = explainer.explain(X, 0)
    before = iris.forward({iris.inputs[0].name: ROWS}, [found.explained])[found.explained][:, 0].mean()
    sums = found.relevance.reshape(len(X), -1).sum(1)
    np.testing.assert_allclose(sums, found.scores[:, 0] - before, rtol=2e-3)  # the kinks of the Relus over 400 steps
    assert not any("does not sum" in note for note in found.notes)


def test_provenance_names_the_rows(iris):
    found = Explainer(iris, "kernel_shap", baseline="background", background=ROWS).explain(X, 0)
    again = Background.of(ROWS.copy(), iris.inputs, {})
    assert found.provenance["background"] == {"rows": 3, "sha256": again.sha256}
    other = Background.of(ROWS + 1, iris.inputs, {})
    assert other.sha256 != again.sha256
    assert "background" not in Explainer(iris, "kernel_shap").explain(X, 0).provenance


def test_a_background_is_asked_for_and_given(iris):
    with pytest.raises(UsageError, match="kernel_shap: no background is given"):
        Explainer(iris, "kernel_shap", baseline="background")
    with pytest.raises(UsageError, match="kernel_shap: a background is given, and no option asks for it"):
        Explainer(iris, "kernel_shap", background=ROWS)
    assert Recipe("rise", {"baseline": "background_mean"}).background == "required"
    assert Recipe("rise").background == "none"


def test_the_command_line_reads_it_from_a_file_or_as_model_toml_says(iris, tmp_path):
    rows, out = tmp_path / "rows.csv", tmp_path / "out"
    names = ",".join(load_settings(IRIS.parents[1] / "model.toml").columns("x"))
    np.savetxt(rows, ROWS, delimiter=",", header=names, comments="", fmt="%.9g")
    shutil.copytree(IRIS.parents[1], tmp_path / "iris")
    settings = tmp_path / "iris/model.toml"
    flowers = str(IRIS.parents[1] / "samples/flowers.csv")
    words = ["--method", "kernel_shap", "--option", "baseline=background"]
    assert not main(["run", str(tmp_path / "iris"), flowers, *words, "--background", str(rows), "--out", str(out)])
    told = next(out.glob("**/*.npz")).read_bytes()
    shutil.rmtree(out)
    shutil.copy(rows, tmp_path / "iris")
    settings.write_text('background = "rows.csv"\n' + settings.read_text())
    assert not main(["run", str(tmp_path / "iris"), flowers, *words, "--out", str(out)])
    assert next(out.glob("**/*.npz")).read_bytes() == told
    bulk = ["--engine", "local", "--workers", "1", "--out", str(tmp_path / "bulk")]
    assert not main(["run", str(tmp_path / "iris"), flowers, *words, *bulk])
    x = load([flowers], iris.inputs, columns={iris.inputs[0].name: names.split(",")}).feeds
    expected = Explainer(iris, "kernel_shap", baseline="background", background=ROWS).explain(x).relevance
    with np.load(next((tmp_path / "bulk").glob("**/*.npz"))) as partition:
        found = partition["X.relevance"]
    np.testing.assert_allclose(found.reshape(expected.shape), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows, why", [(np.zeros((0, 4)), "one row or more"), (np.zeros((2, 5)), r"")])
def test_a_background_has_the_inputs_rows(rows, why, iris):
    with pytest.raises(InputError, match=why):
        Explainer(iris, "rise", baseline="background", background=rows.astype(np.float32))
