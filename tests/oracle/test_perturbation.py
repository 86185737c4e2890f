"""Perturbation methods against captum's, on the same windows, groups, orders and coalitions."""

from __future__ import annotations

import copy
import itertools
import warnings

import numpy as np
import pytest
import torch

from onnxplain import Explainer
from onnxplain.methods.feature_groups import partition
from onnxplain.methods.kernel_shap import paired
from onnxplain.methods.tensors import Tensors

from .laws import difference

pytestmark = pytest.mark.oracle

CLOSE = 1e-4  # ours float32, theirs float64: a fall is the difference of two scores many times as large
TARGETS = [1, 0]


@pytest.fixture
def net(network):
    """(model in float64, path, x float32 (2, …))."""
    model, path = network("small_cnn")
    (x,) = model.example(2).values()
    return copy.deepcopy(model).double(), path, x


def ours(path, x, method, **options):
    explainer = Explainer(path, method, provider="cpu", **options)
    return np.concatenate([explainer.explain(x.numpy()[n : n + 1], t).relevance for n, t in enumerate(TARGETS)])


def feature_mask(x, patch):
    """Our groups as captum takes them."""
    groups = partition(Tensors({"x": x.numpy()[:1]}), "auto", patch, 7)
    return torch.from_numpy(np.broadcast_to(groups.numbers["x"], (1, *x.shape[1:])).copy()), groups


def per_group(relevance, groups, how):
    """One number for each group of each row: captum has the group's value at each element, ours share it."""
    numbers = np.broadcast_to(groups.numbers["x"], (1, *relevance.shape[1:])).reshape(-1)
    sums = np.stack([np.bincount(numbers, row.reshape(-1), groups.count) for row in relevance])
    return sums / groups.sizes if how == "mean" else sums


@pytest.mark.parametrize("window, stride", [(4, 2), (5, 3), (3, 3)])
def test_occlusion_equals_captums(net, window, stride):
    from captum.attr import Occlusion

    model, path, x = net
    channels = x.shape[1]
    expected = Occlusion(model).attribute(
        x.double(), (channels, window, window), strides=(channels, stride, stride), baselines=0.1, target=TARGETS
    )
    found = ours(path, x, "occlusion", patch=window, stride=stride, baseline=0.1)
    assert difference(found, expected.detach().numpy()) < CLOSE


@pytest.mark.parametrize("patch", [5, [1, 4, 0]])
def test_feature_ablation_equals_captums(net, patch):
    from captum.attr import FeatureAblation

    model, path, x = net
    mask, _ = feature_mask(x, patch)
    expected = FeatureAblation(model).attribute(x.double(), baselines=0.1, target=TARGETS, feature_mask=mask)
    found = ours(path, x, "feature_ablation", patch=patch, baseline=0.1)
    assert difference(found, expected.detach().numpy()) < CLOSE


def test_exact_shapley_values_equal_captums(net):
    from captum.attr import ShapleyValues

    model, path, x = net
    side = -(-x.shape[2] // 2)
    mask, groups = feature_mask(x, side)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = ShapleyValues(model).attribute(x.double(), baselines=0.1, target=TARGETS, feature_mask=mask)
    found = ours(path, x, "exact_shapley", patch=side, baseline=0.1)
    expected = per_group(expected.detach().numpy(), groups, "mean")
    assert difference(per_group(found, groups, "sum"), expected) < CLOSE


def test_shapley_sampling_equals_captums_with_the_same_orders(net):
    from captum.attr import ShapleyValueSampling

    model, path, x = net
    mask, groups = feature_mask(x, 8)
    generator = np.random.default_rng(3)
    orders = [generator.permutation(groups.count) for _ in range(5)]
    captums = ShapleyValueSampling(model)
    rows = []
    for n, target in enumerate(TARGETS):
        captums.permutation_generator = lambda count, samples: iter(orders)
        rows.append(
            captums.attribute(
                x[n : n + 1].double(), baselines=0.1, target=target, feature_mask=mask, n_samples=len(orders)
            ).numpy()
        )
    found = ours(path, x, "shapley_sampling", patch=8, baseline=0.1, permutations=5, random_seed=3)
    expected = per_group(np.concatenate(rows), groups, "mean")
    assert difference(per_group(found, groups, "sum"), expected) < CLOSE


class LeastSquares:
    """What captum fits: coefficients of a weighted linear model, here without scikit-learn."""

    def fit(self, train_data, **_):
        z, y, weights = (torch.cat(parts).double().numpy() for parts in zip(*train_data, strict=True))
        root = np.sqrt(weights.reshape(-1, 1))
        z = np.column_stack([z, np.ones(len(z))])
        self.coefficients = np.linalg.lstsq(root * z, root[:, 0] * y.reshape(-1), rcond=None)[0][:-1]
        return {"train_time": 0.0}

    def representation(self):
        return torch.from_numpy(self.coefficients)


def test_kernel_shap_equals_captums_on_the_same_coalitions(net):
    """Captum weighs both ends with 1e6 in place of the constraint; it is given our coalitions."""
    from captum.attr import KernelShap

    model, path, x = net
    mask, groups = feature_mask(x, 8)
    samples = 400
    drawn = [z for z, _ in itertools.islice(paired(np.random.default_rng(3), groups.count), samples)]
    every = [np.ones(groups.count, bool), np.zeros(groups.count, bool), *drawn]

    def coalitions(*_, **__):
        yield from (torch.from_numpy(z[None].astype(np.float64)) for z in every)

    captums = KernelShap(model)
    captums.perturb_func, captums.interpretable_model = coalitions, LeastSquares()
    rows = [
        captums.attribute(
            x[n : n + 1].double(), baselines=0.1, target=target, feature_mask=mask, n_samples=len(every)
        ).numpy()
        for n, target in enumerate(TARGETS)
    ]
    found = ours(path, x, "kernel_shap", patch=8, baseline=0.1, samples=samples, random_seed=3)
    expected = per_group(np.concatenate(rows), groups, "mean")
    assert difference(per_group(found, groups, "sum"), expected) < 10 * CLOSE  # their weight is finite
