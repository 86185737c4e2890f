"""Feature groups that are said by names of columns, and frequency bands."""

from __future__ import annotations

import numpy as np
import pytest
from nets import net, normal
from test_perturbation import EXACT, linear, saved

from onnxplain import Explainer
from onnxplain.errors import UnknownName, UsageError
from onnxplain.methods.frequency_bands import with_bands
from onnxplain.methods.named_groups import numbered
from onnxplain.recipes import Recipe

COLUMNS = ["age", "color_red", "color_green", "size_s", "size_m"]
GROUPING = [name for name in EXACT if name != "occlusion"]


def test_a_pattern_names_a_group_and_every_other_column_is_one_by_itself():
    assert numbered(["color_*", "size_*"], COLUMNS) == (2, 0, 0, 1, 1)
    assert numbered(["age"], COLUMNS) == (0, 2, 3, 4, 5)
    with pytest.raises(UnknownName, match=r"colour_\*"):
        numbered(["colour_*"], COLUMNS)
    with pytest.raises(UsageError, match=r"both color_\* and \*_red name the column color_red"):
        numbered(["color_*", "*_red"], COLUMNS)


@pytest.mark.parametrize("name", GROUPING)
def test_groups_by_name_are_groups_by_number(name, tmp_path):
    path, _ = linear(tmp_path)
    x, options = normal(2, 5, seed=1), EXACT[name]
    named = Explainer(path, name, columns=COLUMNS, groups=["color_*", "size_*"], **options).explain(x, 1).relevance
    numbers = Explainer(path, name, groups=[2, 0, 0, 1, 1], **options).explain(x, 1).relevance
    np.testing.assert_array_equal(named, numbers)
    assert (named[:, 1] == named[:, 2]).all() and (named[:, 3] == named[:, 4]).all()


def test_names_need_columns_that_are_known(tmp_path):
    path, _ = linear(tmp_path)
    with pytest.raises(UsageError, match=r"groups: color_\* are names of columns, and those of x are not known"):
        Explainer(path, "exact_shapley", groups=["color_*"])


def test_inputs_of_one_column_are_grouped_by_their_names(tmp_path):
    text = """g (float[N, 1] age, float[N, 1] color_red, float[N, 1] color_green) => (float[N, 3] y) {
        x = Concat <axis = 1> (age, color_red, color_green) y = MatMul (x, w)
    }"""
    w, x = normal(3, 3), normal(2, 3, seed=1)
    path = saved(net(text, w=w), tmp_path)
    feeds = {name: x[:, n : n + 1] for n, name in enumerate(["age", "color_red", "color_green"])}
    found = Explainer(path, "feature_ablation", groups=["color_*"], kind="classification").explain(feeds, 1)
    share = x * w[:, 1]
    both = share[:, 1:].sum(1, keepdims=True)
    for name, expected in (("age", share[:, :1]), ("color_red", both), ("color_green", both)):
        np.testing.assert_allclose(found.relevances[name], expected, rtol=1e-4, atol=1e-5)


def test_a_recipe_holds_groups_by_name(tmp_path):
    recipe = Recipe("exact_shapley", {"groups": ["color_*", "size_*"]})
    (tmp_path / "r.toml").write_text(recipe.toml())
    assert Recipe.read(tmp_path / "r.toml") == recipe and recipe.options["groups"] == ("color_*", "size_*")
    assert Recipe("exact_shapley", {"groups": "['color_*','size_*']"}) == recipe


# -- frequency bands -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("points", [16, 15])
def test_the_bands_of_a_signal_sum_to_it(points):
    x, absent = normal(1, 2, points), normal(1, 2, points, seed=1)
    bins = points // 2 + 1
    alone = with_bands(x, absent * 0, np.eye(bins, dtype=bool)[:, None], 2)
    np.testing.assert_allclose(alone.sum(0), x[0], rtol=1e-5, atol=1e-6)  # float32
    both = with_bands(x, absent, np.arange(bins)[None, None] < 3, 2)
    spectrum = np.where(np.arange(bins) < 3, np.fft.rfft(x), np.fft.rfft(absent))
    np.testing.assert_allclose(np.fft.rfft(both), spectrum, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", GROUPING)
@pytest.mark.parametrize("shape, time", [((16,), 1), ((2, 16), 2), ((16, 6), 1)])
def test_of_a_linear_model_a_band_has_weight_times_its_part_of_the_signal(name, shape, time, tmp_path):
    size = int(np.prod(shape))
    declared = ", ".join(map(str, shape))
    text = f"g (float[N, {declared}] x) => (float[N, 3] y) {{ f = Flatten (x) y = MatMul (f, w) }}"
    w, x = normal(size, 3), normal(2, *shape, seed=1)
    explainer = Explainer(saved(net(text, w=w), tmp_path), name, groups="bands", patch=2, **EXACT[name])
    found = explainer.explain(x, 1)
    assert list(found.relevances) == ["x.spectrum"] and found.relevance.shape == spectrum(x, time).shape
    band = np.arange(9).reshape([-1 if axis == time else 1 for axis in range(x.ndim)]) // 2
    for number in range(5):
        part = np.fft.irfft(np.where(band == number, spectrum(x, time), 0), n=16, axis=time)
        expected = part.reshape(2, -1) @ w[:, 1]
        relevance = np.where(band == number, found.relevance, 0).reshape(2, -1)
        value = relevance.max(1) + relevance.min(1) if name == "feature_ablation" else relevance.sum(1)
        np.testing.assert_allclose(value, expected, rtol=1e-3, atol=1e-4)  # float32 scores


def spectrum(x, time):
    return np.fft.rfft(x, axis=time)


def test_bands_are_drawn_saved_and_of_signals_alone(tmp_path):
    text = "g (float[N, 2, 16] x) => (float[N, 3] y) { f = Flatten (x) y = MatMul (f, w) }"
    path = saved(net(text, w=normal(32, 3)), tmp_path)
    found = Explainer(path, "kernel_shap", groups="bands").explain(normal(2, 2, 16), [0, 1])
    archive = np.load(found.save(tmp_path / "e.npz"))
    assert archive["x.spectrum.relevance"].shape == (4, 2, 9) and found.panels()
    picture = "g (float[N, 3, 8, 8] x) => (float[N, 3] y) { f = Flatten (x) y = MatMul (f, w) }"
    explainer = Explainer(saved(net(picture, w=normal(192, 3)), tmp_path), "lime", groups="bands")
    with pytest.raises(UsageError, match="bands are of a signal over time"):
        explainer.explain(normal(1, 3, 8, 8), 1)
