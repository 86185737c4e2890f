"""Shapley values and the regressions for them, in float64 without a model: efficiency, symmetry, closed forms."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from nets import normal

from onnxplain.errors import UsageError
from onnxplain.methods import METHODS
from onnxplain.methods.tensors import Tensors

SHAPLEY = ["exact_shapley", "shapley_sampling", "kernel_shap"]


class Table:
    """A `Run` in float64 without a model: y = f(x), x (S, features)."""

    per_unit, samples = True, True

    def __init__(self, function, size=7):
        self.function, self.size = function, size

    def batches(self, count, enough=None, what="looks"):
        return (slice(n, min(n + self.size, count)) for n in range(0, count, self.size))

    def score(self, points, seed):
        return self.function(points["x"]) * seed


def values(name, function, x, size=7, **options):
    """What a method of the registry gives a function in float64."""
    found = METHODS[name].function(Table(function, size), Tensors({"x": x[None]}), np.float64(1), **options)
    return getattr(found, "relevance", found)["x"][0]


def interacting(x):
    """Columns 0 and 3 play the same part, column 4 none."""
    return np.maximum(x[:, 0], x[:, 1]) * np.maximum(x[:, 3], x[:, 1]) + np.sin(3 * x[:, 2] * x[:, 0] * x[:, 3])


POINT = np.array([0.7, -0.4, 1.3, 0.7, 2.0])


@pytest.mark.parametrize("name", SHAPLEY)
def test_shapley_values_sum_to_the_change_of_the_score(name):
    for seed in range(3):
        options = {} if name == "exact_shapley" else {"random_seed": seed}
        if name == "kernel_shap":
            options["samples"] = 100  # fewer than the 126 coalitions
        point = np.concatenate([POINT, [0.3, -1.0]])
        change = interacting(point[None])[0] - interacting(np.full((1, 7), 0.2))[0]
        found = values(name, interacting, point, baseline=0.2, **options)
        np.testing.assert_allclose(found.sum(), change, rtol=1e-6)  # float64


@pytest.mark.parametrize("name", ["exact_shapley", "kernel_shap"])
def test_columns_that_play_the_same_part_have_the_same_value_and_one_without_a_part_none(name):
    found = values(name, interacting, POINT, baseline=0.2)
    np.testing.assert_allclose(found[0], found[3], rtol=1e-6)  # float64
    assert abs(found[4]) < 1e-9


def test_all_coalitions_give_kernel_shap_the_exact_values():
    exact = values("exact_shapley", interacting, POINT, baseline=0.2)
    np.testing.assert_allclose(values("kernel_shap", interacting, POINT, baseline=0.2), exact, rtol=1e-6, atol=1e-9)
    orders = [np.array(order) for order in itertools.permutations(range(5))]
    slow = np.zeros(5)
    for order in orders:  # by the definition
        for step, group in enumerate(order):
            points = np.full((2, 5), 0.2)
            for row, joined in enumerate((order[:step], order[: step + 1])):
                points[row, joined] = POINT[joined]
            slow[group] += np.diff(interacting(points))[0] / len(orders)
    np.testing.assert_allclose(exact, slow, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", SHAPLEY)
def test_the_larger_of_two_shares_by_hand(name):
    """max(x1, x2) at (3, 1) from 0: x1 brings 3 first or 2 second, x2 brings 1 or 0."""
    options = {"permutations": 4000} if name == "shapley_sampling" else {}
    found = values(name, lambda x: x.max(1), np.array([3.0, 1.0]), **options)
    atol = 4 * 0.5 / np.sqrt(4000) if options else 1e-9  # of half a unit of deviation
    np.testing.assert_allclose(found, [2.5, 0.5], atol=atol)


@pytest.mark.parametrize("name", ["shapley_sampling", "kernel_shap"])
def test_samples_approach_the_exact_values_within_their_standard_error(name):
    function = lambda x: np.tanh(x @ normal(9, 1, dtype=np.float64))[:, 0] + x[:, 0] * x[:, 5]  # noqa: E731
    x = normal(9, seed=2, dtype=np.float64)
    exact = values("exact_shapley", function, x)
    options = {"permutations": 400} if name == "shapley_sampling" else {"samples": 400}
    run, tensors = Table(function), Tensors({"x": x[None]})
    found = METHODS[name].function(run, tensors, np.float64(1), random_seed=1, **options)
    doubt = found.standard_error["x"][0]
    assert (np.abs(found.relevance["x"][0] - exact) < 4 * doubt + 1e-12).all()
    assert 0 < doubt.max() < 0.2 * np.abs(exact).max()


@pytest.mark.parametrize("name", [*SHAPLEY, "lime"])
def test_one_group_has_it_all(name):
    options = {"ridge": 0.0} if name == "lime" else {}
    np.testing.assert_allclose(
        values(name, interacting, POINT[:1].repeat(5), groups="inputs", **options).sum(),
        interacting(POINT[:1].repeat(5)[None])[0] - interacting(np.zeros((1, 5)))[0],
        rtol=1e-6,
    )


def test_lime_is_the_ridge_regression_of_its_samples():
    """The samples are numpy's of the documented seed; the normal equations by hand, the constant not penalised."""
    present = np.random.default_rng(3).random((70, 5)) < 0.5
    present[0] = True
    distance = 1 - present.sum(1) / np.maximum(np.sqrt(present.sum(1) * 5.0), 1e-30)
    weights = np.sqrt(np.exp(-(distance**2) / 0.3**2))
    scores = interacting(np.where(present, POINT, 0.2))
    centred = present - np.average(present, axis=0, weights=weights)
    matrix = (centred * weights[:, None]).T @ centred + 0.5 * np.eye(5)
    expected = np.linalg.solve(matrix, (centred * weights[:, None]).T @ scores)
    options = {"samples": 70, "kernel_width": 0.3, "ridge": 0.5, "random_seed": 3, "baseline": 0.2}
    for size in (70, 7):
        np.testing.assert_allclose(values("lime", interacting, POINT, size, **options), expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["kernel_shap", "lime"])
def test_groups_that_samples_cannot_tell_apart_are_refused(name):
    with pytest.raises(UsageError, match="samples=70 do not determine 20 groups: give at least 80"):
        values(name, interacting, np.ones(20), samples=70)
    with pytest.raises(UsageError, match=r"at most 1000, and there are 1001.*feature_ablation"):
        values(name, interacting, np.ones(1001), samples=70)
