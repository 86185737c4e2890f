"""Meaningful and extremal perturbation: slopes against differences, linear models whose best masks are known."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from nets import net, normal

from onnxplain import Explainer
from onnxplain.errors import UsageError
from onnxplain.methods.adam import Adam
from onnxplain.methods.masked_score import CoarseMask, MaskedScore, taken_away
from onnxplain.methods.meaningful_perturbation import variation_slope
from onnxplain.methods.smooth_masks import SmoothMask, area_slope
from onnxplain.methods.tensors import Tensors

SIDE = 16


class Squares:
    """A `Run` of F(x) = seed · sum of w x^2, by its formula in float64."""

    per_unit = True

    def __init__(self, w: np.ndarray):
        self.w, self.notes = w, []

    def score(self, points, seed):
        return float(seed.sum()) * (self.w * points["x"] ** 2).reshape(len(points["x"]), -1).sum(1)

    def relevance(self, points, seed):
        return Tensors({"x": float(seed.sum()) * 2 * self.w * points["x"]})

    def note(self, text, figure=None):
        self.notes.append(text)


def differences(function, at: np.ndarray, step: float = 1e-6) -> np.ndarray:
    slope = np.zeros(at.shape)
    for index in np.ndindex(at.shape):
        up, down = at.copy(), at.copy()
        up[index] += step
        down[index] -= step
        slope[index] = (function(up) - function(down)) / (2 * step)
    return slope


@pytest.mark.parametrize("shape", [(1, 2, 9, 7), (1, 9, 7, 3), (1, 11, 5), (1, 6)])
def test_the_slope_by_the_grid_is_the_central_difference(shape):
    """Through the enlargement, the masked input and the score, for pictures of both layouts, sequences and tables."""
    x, coarse = Tensors({"x": normal(*shape, dtype=np.float64)}), CoarseMask(shape, 3)
    run, seed = Squares(normal(*shape, seed=1, dtype=np.float64)), np.ones((1, 1))
    score = MaskedScore(run, x, taken_away(run, x, 0.3), seed, 0, 0)
    grid = np.random.default_rng(2).random((1, *coarse.shape))
    found = coarse.slope(score.slopes(Tensors({"x": coarse.mask(grid)}))["x"])
    expected = differences(lambda g: score.shares(Tensors({"x": coarse.mask(g)}))[0], grid)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)  # float64, step 1e-6


def test_over_a_moved_input_the_slope_goes_back_to_where_the_mask_is():
    """The shift's adjoint: <moved m, g> = <m, g moved back>, for a score linear in the mask."""
    w, x = normal(1, 1, 6, 8, dtype=np.float64), Tensors({"x": normal(1, 1, 6, 8, seed=1, dtype=np.float64)})

    class Linear(Squares):
        def score(self, points, seed):
            return (self.w * points["x"]).reshape(len(points["x"]), -1).sum(1)

        def relevance(self, points, seed):
            self.seen = points["x"]
            return Tensors({"x": np.broadcast_to(self.w, points["x"].shape)})

    run = Linear(w)
    score = MaskedScore(run, x, x * 0.0, np.ones((1, 1)), 3, 5)
    mask = np.random.default_rng(3).random((1, 1, 6, 8))
    slope = score.slopes(Tensors({"x": mask}))["x"]
    span = abs(float((w * x["x"]).sum()))
    np.testing.assert_allclose((slope * mask).sum(), (w * run.seen).sum() / span, rtol=1e-9)


@pytest.mark.parametrize("shape", [(1, 1, 8, 6), (1, 12, 3), (1, 5)])
def test_the_smooth_maximum_has_its_slope_and_is_at_least_the_grid_nearly(shape):
    smooth = SmoothMask(CoarseMask(shape, 12), 1.5)
    grid, weights = (np.random.default_rng(n).random((2, *smooth.coarse.shape)) for n in (0, 1))
    mask, derivatives = smooth.mask(grid)
    expected = differences(lambda g: (weights * smooth.mask(g)[0]).sum(), grid)
    np.testing.assert_allclose(smooth.slope(weights, derivatives), expected, rtol=1e-5, atol=1e-7)
    assert (mask > grid - 0.06).all() and mask.max() <= 1  # a smooth maximum is below by a few temperatures
    if len(shape) == 2:
        np.testing.assert_allclose(mask, grid)


def test_the_slope_of_the_variation_is_the_central_difference():
    grid = np.random.default_rng(0).random((1, 1, 5, 6))

    def variation(g: np.ndarray) -> float:
        down, right = np.diff(g, axis=2, append=g[:, :, -1:]), np.diff(g, axis=3, append=g[..., -1:])
        return float(((down**2 + right**2) ** 1.5).sum())

    np.testing.assert_allclose(variation_slope(grid, (2, 3), 3.0), differences(variation, grid), rtol=1e-5, atol=1e-8)


def test_the_slope_of_the_area_is_the_central_difference_and_zero_at_a_mask_of_that_area():
    masks = np.random.default_rng(0).random((2, 1, 4, 5))
    goals = [np.clip(np.arange(1, 21) - 20 * (1 - area), 0, 1) for area in (0.1, 0.43)]
    loss = lambda m: sum(np.square(np.sort(o.ravel()) - g).mean() for o, g in zip(m, goals, strict=True))  # noqa: E731
    np.testing.assert_allclose(area_slope(masks, [0.1, 0.43]), differences(loss, masks), rtol=1e-5, atol=1e-8)
    binary = (np.arange(20) % 4 == 0).astype(float).reshape(1, 1, 4, 5)
    np.testing.assert_allclose(area_slope(binary, [0.25]), 0, atol=1e-12)
    even = area_slope(np.full((1, 1, 4, 5), 0.5), [0.25])
    np.testing.assert_allclose(even, even.mean())  # no order among equals


def test_adam_takes_a_first_step_of_its_rate_and_finds_a_minimum():
    adam, at = Adam(0.1), Tensors({"x": np.array([[3.0, -2.0]])})
    first = adam.step(at * 2)["x"]
    np.testing.assert_allclose(first, [[-0.1, 0.1]], rtol=1e-6)
    for _ in range(300):
        at = at + adam.step(at * 2)
    assert np.abs(at["x"]).max() < 0.05


# -- linear models: F = w · x over baseline 0, so the share of a place is w x / F(x) --------------------------------


def linear_picture(folder, w: np.ndarray) -> str:
    path = folder / "m.onnx"
    text = f"g (float[N, 2, {SIDE}, {SIDE}] x) => (float[N, 2] y) {{ f = Flatten (x) y = MatMul (f, w) }}"
    onnx.save(net(text, w=np.stack([w.ravel(), -w.ravel()], 1).astype(np.float32)), path)
    return str(path)


@pytest.fixture
def blob(tmp_path):
    """A picture of ones whose score is the mean of a patch: rows 4 to 8, columns 8 to 14; where that is."""
    inside = np.zeros((2, SIDE, SIDE), bool)
    inside[:, 4:8, 8:14] = True
    return linear_picture(tmp_path, inside / inside.sum()), np.ones((1, 2, SIDE, SIDE), np.float32), inside[0]


PLAIN = {"jitter": 0, "baseline": 0.0}


@pytest.mark.parametrize("form", ["deletion", "preservation"])
def test_of_a_linear_model_goes_or_stays_what_weighs_more_than_its_area(form, blob):
    """Without variation each cell is by itself: its share of the score, 1 / 24 here, against its area, 1 / 256."""
    path, x, inside = blob
    options = {"form": form, "variation_weight": 0.0, "area_weight": 1.0, **PLAIN}
    found = Explainer(path, "meaningful_perturbation", **options).explain(x, 0)
    np.testing.assert_allclose(found.relevance, np.broadcast_to(inside, x.shape), atol=1e-6)
    left = "0%" if form == "deletion" else "100%"
    assert any(note.endswith(f"the mask leaves {left}") for note in found.notes)


def test_an_area_that_weighs_more_than_the_score_leaves_nothing(blob):
    path, x, _ = blob
    found = Explainer(path, "meaningful_perturbation", area_weight=20.0, **PLAIN).explain(x, 0)
    np.testing.assert_allclose(found.relevance, 0, atol=1e-6)


@pytest.mark.parametrize("form", ["deletion", "preservation"])
def test_an_extremal_mask_of_the_patchs_area_is_the_patch(form, blob):
    path, x, inside = blob
    options = {"form": form, "radius": 0.0, "areas": [float(inside.mean())], "steps": 300, **PLAIN}
    found = Explainer(path, "extremal_perturbation", **options).explain(x, 0)
    np.testing.assert_allclose(found.relevance[0, 0], inside, atol=0.02)  # the area's weight is finite


def test_extremal_masks_have_their_areas_and_larger_ones_keep_more(blob):
    path, x, inside = blob
    found = Explainer(path, "extremal_perturbation", areas=[0.05, 0.2], steps=300, **PLAIN).explain(x, 0)
    alone = [
        Explainer(path, "extremal_perturbation", areas=[area], steps=300, **PLAIN).explain(x, 0).relevance
        for area in (0.05, 0.2)
    ]
    np.testing.assert_allclose(found.relevance, np.mean(alone, 0), atol=1e-4)  # each area is searched by itself
    assert abs(alone[0].mean() - 0.05) < 0.03 and abs(alone[1].mean() - 0.2) < 0.03
    assert alone[1][0, 0][inside].mean() > 0.9 > alone[0][0, 0][inside].mean() > 0.3
    assert alone[1][0, 0][~inside].mean() < 0.15 and sum("of the input keeps" in note for note in found.notes) == 2


def test_jitter_and_its_random_seed_change_the_mask_and_nothing_else_does(blob):
    path, x, _ = blob
    ask = lambda **o: Explainer(path, "meaningful_perturbation", baseline=0.0, steps=20, **o).explain(x, 0).relevance  # noqa: E731
    np.testing.assert_array_equal(ask(random_seed=1), ask(random_seed=1))
    assert not np.array_equal(ask(random_seed=1), ask(random_seed=2))
    np.testing.assert_array_equal(ask(random_seed=1, jitter=0), ask(random_seed=2, jitter=0))


def test_a_score_that_nothing_moves_is_said(blob, tmp_path):
    path, x, _ = blob
    found = Explainer(path, "meaningful_perturbation", baseline=1.0).explain(x, 0)
    assert any("the same score" in note for note in found.notes) and not found.relevance.any()
    against = Explainer(path, "meaningful_perturbation", baseline=0.0, steps=3).explain(x, 1)
    assert any("speaks against the target" in note for note in against.notes)
    with pytest.raises(UsageError, match="areas is a list of numbers from"):
        Explainer(path, "extremal_perturbation", areas=[1.5])
