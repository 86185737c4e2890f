"""Class activation maps that look from outside: Eigen-CAM, EigenGrad-CAM and Score-CAM, by their equations."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from nets import net, normal, relu_net, repository, sample

from onnxplain import Explainer
from onnxplain.compile import Request
from onnxplain.errors import UsageError
from onnxplain.subject import Subject

X = normal(3, 2, 6, 6)
CLOSE = {"rtol": 1e-4, "atol": 1e-5}  # float32 activations and gradients, some forty terms a sum


def saved(model: onnx.ModelProto, folder) -> str:
    path = folder / "m.onnx"
    onnx.save(model, path)
    return str(path)


def values(path: str, name: str, x: np.ndarray = X) -> np.ndarray:
    return Explainer(path, "gradient", keep=name).explain(x, 0).kept[name].astype(np.float64)


def principal(maps: np.ndarray, centred: bool = False) -> np.ndarray:
    """ReLU(A v) of each row (N, C, H, W), by LAPACK's singular value decomposition; (N, 1, H, W)."""
    found = []
    for row in maps:
        a = row.reshape(len(row), -1).T
        b = a - a.mean(0) if centred else a
        projected = b @ np.linalg.svd(b)[2][0]
        projected *= 1 if projected @ a.sum(1) >= 0 else -1
        found.append(np.maximum(projected, 0).reshape(1, *row.shape[1:]))
    return np.array(found)


@pytest.mark.parametrize("layer", ["r2", "c2", "r1"])
@pytest.mark.parametrize("centred", [False, True])
def test_eigen_cam_is_the_first_singular_vector_of_the_activations(layer, centred, tmp_path):
    path = saved(relu_net(), tmp_path)
    found = Explainer(path, "eigen_cam", centred=centred, attribute_to=layer).explain(X, 1)
    np.testing.assert_allclose(found.relevances[layer], principal(values(path, layer), centred), **CLOSE)


@pytest.mark.parametrize("centred", [False, True])
def test_eigen_grad_cam_is_that_of_gradient_times_activation(centred, tmp_path):
    """Above the last feature map of this net all is linear, so the gradient is a row of the head's weights."""
    path = saved(relu_net(), tmp_path)
    found = Explainer(path, "eigen_grad_cam", centred=centred).explain(X, [1, 3])
    w = normal(4, 45, seed=5).astype(float).reshape(4, 5, 3, 3)
    products = np.concatenate([w[k] * values(path, "r2") for k in (1, 3)])
    np.testing.assert_allclose(found.relevance, principal(products, centred), **CLOSE)


def test_eigen_cam_asks_for_no_class_and_cuts_nothing_off_above_a_relu(tmp_path):
    path = saved(relu_net(), tmp_path)
    found = Explainer(path, "eigen_cam").explain(X, [0, 1]).relevance
    np.testing.assert_array_equal(found[:3], found[3:])
    largest = [np.linalg.norm(a.reshape(5, -1), 2) for a in values(path, "r2")]
    np.testing.assert_allclose(np.sqrt((found[:3] ** 2).sum((1, 2, 3))), largest, rtol=1e-5)  # float32


@pytest.mark.parametrize("name", ["eigen_cam", "eigen_grad_cam", "score_cam"])
def test_the_channels_may_lie_behind_the_positions(name, tmp_path):
    text = """g (float[N, 2, 6, 6] x) => (float[N, 4] y) {
        c = Conv (x, w1) r = Relu (c) t = Transpose <perm = [0, 2, 3, 1]> (r)
        f = ReduceMean <keepdims = 0> (t, axes) y = MatMul (f, w2)
    }"""
    model = net(text, w1=normal(5, 2, 3, 3), w2=normal(5, 4), axes=np.array([1, 2]))
    path = saved(model, tmp_path)
    front, behind = (Explainer(path, name, attribute_to=layer).explain(X, 1).relevance for layer in ("r", "t"))
    assert front.shape == (3, 1, 4, 4) and behind.shape == (3, 4, 4, 1)
    np.testing.assert_allclose(behind[..., 0], front[:, 0], **CLOSE)


@pytest.mark.parametrize("name", ["eigen_cam", "score_cam"])
def test_no_derivative_is_asked_for(name, tmp_path):
    text = """g (float[N, 2, 6, 6] x) => (float[N, 4] y) {
        c = Conv (x, w1) r = Relu (c) f = ReduceMean <keepdims = 0> (r, axes) h = MatMul (f, w2) o = Ceil (h)
        y = Add (h, o)
    }"""
    path = saved(net(text, w1=normal(5, 2, 3, 3), w2=normal(5, 4), axes=np.array([2, 3])), tmp_path)
    assert np.isfinite(Explainer(path, name, attribute_to="r").explain(X, 1).relevance).all()


def test_a_map_of_nothing_is_nothing(tmp_path):
    path = saved(relu_net(bias=False), tmp_path)
    for name in ("eigen_cam", "eigen_grad_cam", "score_cam"):
        assert not Explainer(path, name).explain(0 * X, 1).relevance.any()


# -- Score-CAM --------------------------------------------------------------------------------------------------------


def bilinear(small: np.ndarray, side: int) -> np.ndarray:
    """(h, w) at half-pixel centres, edges held, (side, side)."""
    matrices = []
    for of in small.shape:
        centres = np.clip((np.arange(side) + 0.5) * of / side - 0.5, 0, of - 1)
        matrices.append(np.maximum(1 - np.abs(centres[:, None] - np.arange(of)), 0))
    return matrices[0] @ small @ matrices[1].T


def by_hand(path: str, layer: str, k: int, weights: str, channels=None, baselines=(0.0,)) -> np.ndarray:
    """One run of the model for each channel of each row, and for each baseline, over which scores are averaged."""
    subject, maps = Subject.of(path, Request(keep=(layer,))), []

    def score(x: np.ndarray) -> float:
        return float(subject.forward({"x": x.astype(np.float32)})["logits"][0, k])

    for n, row in enumerate(values(path, layer)):
        x, chosen = X[n : n + 1], [c for c in range(len(row)) if np.ptp(row[c]) > 0]
        chosen = [c for c in chosen if channels is None or c in channels[n]]
        large = [bilinear(row[c], 6) for c in chosen]
        masks = [(mask - mask.min()) / np.ptp(mask) for mask in large]
        seen = [[score(b + mask * (x - b)) - score(0 * x + b) for mask in masks] for b in baselines]
        rises = np.mean(seen, 0)
        if weights == "softmax":
            rises = np.exp(rises) / np.exp(rises).sum()
        maps.append(np.maximum(sum(w * row[c] for w, c in zip(rises, chosen, strict=True)), 0)[None])
    return np.array(maps)


@pytest.mark.parametrize("layer", ["r2", "r1", "c1"])
@pytest.mark.parametrize("weights", ["softmax", "increase"])
@pytest.mark.parametrize("baseline", [0.0, 0.5])
def test_score_cam_is_its_papers_algorithm(layer, weights, baseline, tmp_path):
    path = saved(relu_net(), tmp_path)
    options = {"weights": weights, "baseline": baseline}
    found = Explainer(path, "score_cam", attribute_to=layer, **options).explain(X, 2)
    expected = by_hand(path, layer, 2, weights, baselines=[baseline])
    np.testing.assert_allclose(found.relevances[layer], expected, rtol=1e-4, atol=1e-4 * expected.max())


def test_only_the_channels_that_vary_most_are_looked_at_and_that_is_said(tmp_path):
    path = saved(relu_net(), tmp_path)
    rows = values(path, "r2")
    best = [set(np.argsort(-row.std((1, 2)))[:2].tolist()) for row in rows]
    found = Explainer(path, "score_cam", top=2).explain(X, 1)
    np.testing.assert_allclose(found.relevance, by_hand(path, "r2", 1, "softmax", best), **CLOSE)
    assert any("2 of 5 channels of r2 are looked at" in note for note in found.notes)
    whole, enough = (Explainer(path, "score_cam", top=top).explain(X, 1) for top in (None, 99))
    np.testing.assert_array_equal(whole.relevance, enough.relevance)
    assert not any("channels of r2" in note for note in whole.notes)


@pytest.mark.parametrize("weights", ["softmax", "increase"])
def test_over_a_background_the_score_behind_a_mask_is_the_mean_over_its_rows(weights, tmp_path):
    path, rows = saved(relu_net(), tmp_path), normal(2, 2, 6, 6, seed=9)
    explainer = Explainer(path, "score_cam", weights=weights, baseline="background", background=rows)
    expected = by_hand(path, "r2", 1, weights, baselines=[row[None] for row in rows])
    np.testing.assert_allclose(explainer.explain(X, 1).relevance, expected, rtol=1e-4, atol=1e-4 * expected.max())


def test_score_cam_runs_the_model_once_for_each_channel(tmp_path):
    told: list[tuple[int, int]] = []
    Explainer(saved(relu_net(), tmp_path), "score_cam").explain(X[:1], 1, progress=lambda *done: told.append(done))
    assert told[-1] == (5, 5)


def test_an_input_without_positions_stays_what_it_is(tmp_path):
    text = """g (float[N, 2, 6, 6] x, float[N, 3] t) => (float[N, 4] logits) {
        c = Conv (x, w1) r = Relu (c) f = ReduceMean <keepdims = 0> (r, axes) h = MatMul (f, w2) k = MatMul (t, w3)
        logits = Add (h, k)
    }"""
    weights = {"w1": normal(5, 2, 3, 3), "w2": normal(5, 4), "w3": normal(3, 4, seed=2), "axes": np.array([2, 3])}
    explainer = Explainer(saved(net(text, **weights), tmp_path), "score_cam", attribute_to="r")
    one, other = (explainer.explain({"x": X, "t": normal(3, 3, seed=s)}, 1).relevance for s in (3, 4))
    np.testing.assert_allclose(one, other, **CLOSE)  # what t adds is the same for every mask, and a softmax's shift


def test_tokens_have_no_place_in_a_picture_for_score_cam():
    explainer = Explainer(repository("digits_vit"), "score_cam")
    with pytest.raises(UsageError, match=r"layer_norm_4 has positions along 1 axes, unlike input \[1, 1, 28, 28\]"):
        explainer.explain(sample("digits_vit"))
    assert Explainer(repository("digits_vit"), "eigen_cam").explain(sample("digits_vit")).map.shape[1:] == (7, 7)
