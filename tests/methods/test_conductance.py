"""Conductance and internal influence: closed forms, completeness, and what they are of the inputs themselves."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from nets import in_batches_of, net, normal, relu_net

from onnxplain import Explainer
from onnxplain.errors import UsageError

X = normal(3, 2, 6, 6)
TWO_LAYERS = "g (float[N, 5] x) => (float[N, 3] y) { h = MatMul (x, v) s = Mul (h, h) y = MatMul (s, w) }"
WEIGHTS = {"v": normal(5, 4, seed=1), "w": normal(4, 3, seed=2)}


def saved(model: onnx.ModelProto, folder) -> str:
    path = folder / "m.onnx"
    onnx.save(model, path)
    return str(path)


@pytest.mark.parametrize("steps", [1, 7])
def test_conductance_of_a_quadratic_layer_is_exact(steps, tmp_path):
    """y = sum_j w_j h_j^2 of h = x v: unit j carries w_j (h_j^2 - h'_j^2), by the midpoint rule at any steps."""
    path, x = saved(net(TWO_LAYERS, **WEIGHTS), tmp_path), normal(4, 5)
    found = Explainer(path, "conductance", attribute_to="h", steps=steps, baseline=0.5).explain(x, [0, 2])
    before, after = (np.square(a.astype(np.float64) @ WEIGHTS["v"]) for a in (np.full_like(x, 0.5), x))
    expected = np.concatenate([(after - before) * WEIGHTS["w"][:, k] for k in (0, 2)])
    np.testing.assert_allclose(found.relevance, expected, rtol=1e-4, atol=1e-4)


def test_internal_influence_of_a_quadratic_layer_is_its_gradient_in_the_middle_of_the_path(tmp_path):
    path, x = saved(net(TWO_LAYERS, **WEIGHTS), tmp_path), normal(4, 5)
    found = Explainer(path, "internal_influence", attribute_to="h", steps=3, baseline=0.5).explain(x, [0, 2])
    middle = 2 * ((x + 0.5) / 2).astype(np.float64) @ WEIGHTS["v"]
    expected = np.concatenate([middle * WEIGHTS["w"][:, k] for k in (0, 2)])
    np.testing.assert_allclose(found.relevance, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layer", ["c1", "p1", "r2", "f"])
def test_conductance_sums_to_the_change_of_the_score(layer, tmp_path):
    """Where everything passes the layer; the kinks of 200 lines cost what they cost integrated gradients."""
    explainer = Explainer(saved(relu_net(), tmp_path), "conductance", attribute_to=layer, steps=200)
    found = explainer.explain(X, [0, 3])
    before = explainer.subject.forward({"x": np.zeros_like(X)})["logits"]
    change = np.concatenate([(found.scores - before)[:, k] for k in (0, 3)])
    sums = found.relevance.reshape(6, -1)
    np.testing.assert_allclose(sums.sum(1), change, atol=5e-3 * np.abs(sums).sum(1).max())


def test_without_a_layer_they_are_integrated_and_mean_gradients(tmp_path):
    path, options = saved(relu_net(), tmp_path), {"steps": 9, "quadrature": "midpoint", "baseline": 0.1}
    for method, multiply in (("conductance", True), ("internal_influence", False)):
        found = Explainer(path, method, **options).explain(X, [0, 1])
        expected = Explainer(path, "integrated_gradients", multiply_by_inputs=multiply, **options).explain(X, [0, 1])
        assert list(found.relevances) == ["x"]
        np.testing.assert_allclose(found.relevance, expected.relevance, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("method", ["conductance", "internal_influence"])
def test_layers_in_any_company_and_any_cut(method, rows, tmp_path, monkeypatch):
    explainer = Explainer(saved(relu_net(), tmp_path), method, attribute_to=["p1", "r2"], steps=11)
    whole = explainer.explain(X, 1).relevances
    in_batches_of(rows, monkeypatch)
    for n in range(3):
        alone = explainer.explain(X[n : n + 1], 1).relevances
        for name in ("p1", "r2"):
            np.testing.assert_allclose(alone[name], whole[name][n : n + 1], rtol=1e-4, atol=1e-5)


def test_a_layer_may_be_named_whose_points_no_float_input_moves(tmp_path):
    text = "g (int64[N, 3] ids) => (float[N, 4] y) { e = Gather (t, ids) y = ReduceSum <keepdims = 0> (e, axis) }"
    path = saved(net(text, t=normal(6, 4), axis=np.array([1])), tmp_path)
    with pytest.raises(Exception, match="ids is no float input"):
        Explainer(path, "conductance", attribute_to="e")
    found = Explainer(path, "integrated_gradients", attribute_to="e").explain(np.array([[0, 1, 5]]), 2)
    expected = np.zeros((1, 3, 4))
    expected[..., 2] = normal(6, 4)[[0, 1, 5], 2]
    np.testing.assert_allclose(found.relevance, expected, rtol=1e-5)
    with pytest.raises(UsageError, match="needs float inputs, and there is none"):
        Explainer(path, "integrated_gradients", attribute_to="e", baseline_at="input").explain(np.array([[0, 1, 5]]), 2)


def test_deep_lift_shap_of_a_layer_sums_to_the_difference_from_the_background(tmp_path):
    """Its inputs stay, and the layer gets what arrives there."""
    background = normal(4, 2, 6, 6, seed=9)
    for layer in ("p1", "r2"):
        explainer = Explainer(saved(relu_net(), tmp_path), "deep_lift_shap", attribute_to=layer, background=background)
        found = explainer.explain(X, [0, 3])
        usual = explainer.subject.forward({"x": background})["logits"].mean(0)
        expected = np.concatenate([found.scores[:, k] - usual[k] for k in (0, 3)])
        assert list(found.relevances) == [layer]
        np.testing.assert_allclose(found.relevance.sum((1, 2, 3)), expected, rtol=1e-3, atol=1e-3)
