"""Perturbation methods against the packages of their authors: lime, shap, DIANNA's RISE, on the same samples."""

from __future__ import annotations

import itertools

import dianna.methods.rise_image
import numpy as np
import pytest
import shap
import skimage.data
import sklearn.datasets
import sklearn.inspection
from lime.lime_base import LimeBase
from lime.lime_image import LimeImageExplainer
from lime.wrappers.scikit_image import SegmentationAlgorithm
from nets import repository, sample
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import Ridge
from sklearn.metrics.pairwise import pairwise_distances

from onnxplain import Explainer
from onnxplain.evaluate.permutation_importance import permutation_importance
from onnxplain.methods.feature_groups import partition
from onnxplain.methods.masks import GridMasks
from onnxplain.methods.tensors import Tensors
from onnxplain.subject import Subject

from .laws import difference

pytestmark = pytest.mark.oracle

CLOSE = 1e-4  # scores are float32; a coefficient is a difference of many of them
SAMPLES, SEED = 400, 3


@pytest.fixture(scope="module")
def digits():
    """(subject, one digit (1, 1, 28, 28), its scores by forward pass)."""
    subject = Subject.of(repository("digits_cnn"), provider="cpu")
    (name,) = Explainer(subject, "rise").explained
    return subject, sample("digits_cnn")[:1], lambda x: subject.forward({"input": x.astype(np.float32)}, [name])[name]


def coins(count: int) -> np.ndarray:
    """The samples that our lime draws, the first with all groups present."""
    present = np.random.default_rng(SEED).random((SAMPLES, count)) < 0.5
    present[0] = True
    return present


class OurCoins:
    """In place of lime's random state: what it draws is what we drew."""

    def __init__(self, count: int):
        self._present = coins(count)

    def randint(self, low, high=None, size=None):
        return 0 if size is None else self._present.astype(int).ravel()


def test_lime_equals_the_lime_package_on_the_same_samples(digits):
    """Its picture has three channels; the digit's one is told it three times. hide_color 0 is our baseline."""
    subject, x, score = digits
    features = partition(Tensors({"x": x}), "auto", 7, 7)
    segments = features.numbers["x"].squeeze()
    absent = [n for n in range(features.count) if not x[0, 0][segments == n].any()]  # the same when absent: no group
    kept = np.setdiff1d(np.arange(features.count), absent)
    joined = np.searchsorted(kept, segments)
    joined[np.isin(segments, absent)] = 0  # black in any case: whichever group they are in
    lime = LimeImageExplainer(random_state=np.random.RandomState(0), feature_selection="none")
    lime.random_state = lime.base.random_state = OurCoins(len(kept))
    found = lime.explain_instance(
        np.repeat(x[0, 0][:, :, None], 3, 2), lambda batch: score(batch[:, None, :, :, 0]), labels=(3,),
        top_labels=None, hide_color=0, num_samples=SAMPLES, segmentation_fn=lambda picture: joined,
        model_regressor=Ridge(alpha=1),
    )  # fmt: skip
    theirs = np.zeros(features.count)
    for group, value in found.local_exp[3]:
        theirs[kept[group]] = value
    ours = Explainer(subject, "lime", patch=7, samples=SAMPLES, random_seed=SEED).explain(x, 3).relevance
    assert difference(np.bincount(segments.ravel(), ours.ravel()), theirs) < CLOSE


def test_lime_of_a_table_equals_the_regression_of_the_lime_package():
    """Its tabular explainer draws values by its own; what it fits to samples is `LimeBase`."""
    subject, x = Subject.of(repository("iris_mlp"), provider="cpu"), sample("iris_mlp")[:1]
    (name,) = Explainer(subject, "lime").explained
    present = coins(4)
    scores = subject.forward({"X": np.where(present, x, 1.5).astype(np.float32)}, [name])[name]
    distances = pairwise_distances(present, present[:1], metric="cosine").ravel()
    base = LimeBase(lambda d: np.sqrt(np.exp(-(d**2) / 0.25**2)), random_state=0)
    found = base.explain_instance_with_data(present, scores, distances, 1, 4, feature_selection="none")
    theirs = np.array([value for _, value in sorted(found[1])])
    options = {"baseline": 1.5, "samples": SAMPLES, "random_seed": SEED}
    assert difference(Explainer(subject, "lime", **options).explain(x, 1).relevance[0], theirs) < CLOSE


def test_quickshift_superpixels_are_those_that_lime_takes():
    picture = skimage.data.astronaut()[100:164, 180:244]
    segments = SegmentationAlgorithm("quickshift", kernel_size=4, max_dist=200, ratio=0.2, random_seed=0)
    theirs = segments((picture - picture.min()) / (picture.max() - picture.min()))
    x = np.moveaxis(picture[None].astype(np.float64), 3, 1) * 3 - 100  # in whatever unit
    ours = partition(Tensors({"x": x}), "quickshift", None, 7).numbers["x"].squeeze()
    pairs = set(zip(ours.ravel().tolist(), theirs.ravel().tolist(), strict=True))
    assert len(pairs) == len(np.unique(ours)) == len(np.unique(theirs)) >= 3


def test_kernel_shap_over_a_background_equals_shaps_kernel_explainer():
    """Of four columns every coalition is looked at, on both sides."""
    subject, x = Subject.of(repository("iris_mlp"), provider="cpu"), sample("iris_mlp")
    (name,) = Explainer(subject, "lime").explained
    rows, asked = x[:2] + 0.4, x[2:3]
    theirs = shap.KernelExplainer(
        lambda batch: subject.forward({"X": batch.astype(np.float32)}, [name])[name].astype(np.float64), rows
    ).shap_values(asked, silent=True, l1_reg=False)
    ours = Explainer(subject, "kernel_shap", baseline="background", background=rows).explain(asked, [0, 1, 2])
    assert difference(ours.relevance, np.moveaxis(theirs[0], 1, 0)) < CLOSE


def test_shapley_values_of_many_groups_equal_shaps_on_the_same_coalitions(digits):
    """16 groups: shap draws coalitions by itself and weighs ends as a constraint, both near the exact values."""
    subject, x, score = digits
    features = partition(Tensors({"x": x}), "auto", 7, 7)
    absent = Tensors({"x": np.zeros_like(x)})

    def of_presence(z):
        return score(features.points(Tensors({"x": x}), absent, z > 0.5)["x"])[:, 3].astype(np.float64)

    count = features.count
    theirs = shap.KernelExplainer(of_presence, np.zeros((1, count))).shap_values(
        np.ones((1, count)), silent=True, nsamples=20000, l1_reg=False
    )[0]
    ours = Explainer(subject, "kernel_shap", patch=7, samples=20000).explain(x, 3)
    per_group = np.bincount(features.numbers["x"].ravel(), ours.relevance.ravel())
    assert difference(per_group, theirs) < 0.02  # two sets of samples: ours tells an error of 0.01 of the largest


@pytest.mark.parametrize("probability, cells", [(0.5, 7), (0.3, 4)])
def test_rise_of_the_paper_equals_diannas_with_the_same_masks(digits, probability, cells, monkeypatch):
    subject, x, score = digits
    masks = GridMasks(x.shape, cells, probability, [SEED, 0]).draw(SAMPLES)

    def ours_drawn(shape, p_keep, count, resolution):
        assert (tuple(shape), p_keep, count, resolution) == ((28, 28), probability, SAMPLES, cells)
        return np.moveaxis(masks, 1, 3)

    monkeypatch.setattr(dianna.methods.rise_image, "generate_interpolated_float_masks_for_image", ours_drawn)
    peer = dianna.methods.rise_image.RISEImage(SAMPLES, cells, probability, axis_labels=("channels", "y", "x"))
    theirs = peer.explain(score, x[0], labels=[3])
    options = {"masks": SAMPLES, "probability": probability, "cells": cells, "offset": "none", "random_seed": SEED}
    found = Explainer(subject, "rise", **options).explain(x, 3).relevance
    assert difference(found[:, 0], theirs) < CLOSE


@pytest.mark.parametrize("probability", [0.5, 0.2])
def test_our_masks_are_drawn_like_diannas(probability):
    """Mean, spread and how far neighbours go together: the paper's enlarging and shifting."""
    side, cells, count = 28, 7, 4000
    theirs = dianna.methods.rise_image.generate_interpolated_float_masks_for_image(
        (side, side), probability, count, cells
    )
    ours = GridMasks((1, 1, side, side), cells, probability, [0]).draw(count)
    for steps in range(0, 8, 2):
        pair = [
            np.corrcoef(m[..., side // 2, side // 2].ravel(), m[..., side // 2, side // 2 + steps].ravel())[0, 1]
            for m in (ours.reshape(count, side, side), np.asarray(theirs).reshape(count, side, side))
        ]
        assert abs(pair[0] - pair[1]) < 0.08  # of 4000: 0.016 each, and dianna's edges are another interpolation
    assert abs(ours.mean() - np.asarray(theirs).mean()) < 0.02 and abs(ours.std() - np.asarray(theirs).std()) < 0.03


def test_every_order_gives_exact_shapley_values(digits):
    """Against the definition over permutations, with the scores taken by hand."""
    subject, x, score = digits
    features = partition(Tensors({"x": x}), "auto", 14, 7)
    absent = Tensors({"x": np.zeros_like(x)})
    values = np.zeros(4)
    for order in itertools.permutations(range(4)):
        present = np.zeros((5, 4), bool)
        for step, group in enumerate(order):
            present[step + 1 :, group] = True
        scores = score(features.points(Tensors({"x": x}), absent, present)["x"])[:, 3].astype(np.float64)
        values[list(order)] += np.diff(scores) / 24
    found = Explainer(subject, "exact_shapley", patch=14).explain(x, 3).relevance
    assert difference(np.bincount(features.numbers["x"].ravel(), found.ravel()), values) < CLOSE


def test_permutation_importance_equals_scikit_learns_but_for_the_orders_drawn():
    """Of breast cancer's logistic regression, its held-out rows told as its own classes."""
    subject = Subject.of(repository("bc_logreg"), provider="cpu")
    x = sklearn.datasets.load_breast_cancer().data.astype(np.float32)
    (name,) = subject.resolved.explained

    class Model(ClassifierMixin, BaseEstimator):
        classes_ = np.array([0, 1])

        def fit(self, x, y): ...

        def predict(self, x):
            return subject.forward({"X": x.astype(np.float32)}, [name])[name].argmax(1)

    labels = sklearn.datasets.load_breast_cancer().target
    theirs = sklearn.inspection.permutation_importance(
        Model(), x, labels, scoring="accuracy", n_repeats=40, random_state=0
    )
    ours = permutation_importance(subject, x, labels, repeats=40)
    doubt = np.hypot(ours.standard_error["X"], theirs.importances_std / np.sqrt(40))
    assert ours.goodness > 0.9 and (np.abs(ours.mean["X"] - theirs.importances_mean) <= 4.5 * doubt + 1e-9).all()
    assert np.argmax(ours.mean["X"]) == np.argmax(theirs.importances_mean)
