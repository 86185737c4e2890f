"""Methods that move the inputs and read a feature map: which one, its values at the points, what arrives at it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from nets import in_batches_of, net, normal, relu_net, repository, sample

from onnxplain import Explainer
from onnxplain.compile import Request
from onnxplain.errors import UsageError
from onnxplain.methods import METHODS
from onnxplain.methods.registry import method
from onnxplain.recipes import recipe_names
from onnxplain.subject import Subject

X = normal(3, 2, 6, 6)


@pytest.fixture(autouse=True)
def reading(monkeypatch):
    """Three methods that are for these laws only."""
    monkeypatch.setattr(METHODS, "_entries", dict(METHODS._entries))

    @method("reads_activation", cite="nobody", base="", layer="read")
    def reads_activation(run, x, seed):
        """The feature map, summed over its channels."""
        return run.layer(x).with_(_axes(run), lambda a, axis: a.sum(axis, keepdims=True))

    @method("reads_gradient", cite="nobody", base="layer_gradient", layer="read")
    def reads_gradient(run, x, seed):
        """Gradient times activation, which is HiResCAM."""
        product = run.layer(x) * run.relevance(x, seed)
        return product.with_(_axes(run), lambda a, axis: a.sum(axis, keepdims=True))

    @method("reads_many", cite="nobody", base="", layer="read")
    def reads_many(run, x, seed, *, points: int = 7):
        """The mean feature map of darker and darker inputs, each weighed by its score."""
        total = 0.0
        for part in run.batches(points):
            near = x.scaled(1 - np.arange(part.start, part.stop) / points)
            total = run.layer(near).wide().scaled(run.score(near, seed)).sum() + total
        return total.with_(_axes(run), lambda a, axis: a.sum(axis, keepdims=True) / points)


def _axes(run):
    from onnxplain.methods.tensors import Tensors

    return Tensors({name: axis for name, axis in run.channels.items()})


def saved(model: onnx.ModelProto, folder) -> str:
    path = folder / "m.onnx"
    onnx.save(model, path)
    return str(path)


def by_hand(path: str, x: np.ndarray, target: int, layer: str, points: int = 7) -> np.ndarray:
    """`reads_many`, one run of the model after the other."""
    subject, total = Subject.of(path, Request(keep=(layer,))), 0.0
    for k in range(points):
        found = subject.forward({subject.inputs[0].name: np.asarray(x * (1 - k / points), np.float32)})
        score = found[subject.resolved.explained[0]][:, target].astype(np.float64)
        total = total + found[layer].sum(1, keepdims=True) * score.reshape(-1, 1, 1, 1)
    return total / points


@pytest.mark.parametrize("layer", [None, "r1", "c2"])
def test_gradient_times_activation_read_apart_is_hires_cam(layer, tmp_path):
    path = saved(relu_net(), tmp_path)
    found = Explainer(path, "reads_gradient", attribute_to=layer).explain(X, [0, 3])
    expected = Explainer(path, "hires_cam", attribute_to=layer).explain(X, [0, 3])
    assert list(found.relevances) == list(expected.relevances) == [layer or "r2"]
    np.testing.assert_allclose(found.relevance, expected.relevance, rtol=1e-5, atol=1e-6)
    assert found.provenance["maps"] == expected.provenance["maps"]
    assert [n for n in found.notes if "attributing" in n] == [n for n in expected.notes if "attributing" in n]
    assert found.map.shape == expected.map.shape


@pytest.mark.parametrize("rows", [1, 3, 32])
@pytest.mark.parametrize("batch", ["N", "1", "3"])
def test_the_map_at_many_points_is_that_of_one_run_after_the_other(batch, rows, tmp_path, monkeypatch):
    in_batches_of(rows, monkeypatch)
    x = X if batch == "N" else X[: int(batch)]
    path = saved(relu_net(batch=batch), tmp_path)
    explainer = Explainer(path, "reads_many")
    found = explainer.explain(x, [0, 2])
    assert list(found.relevances) == ["r2"] and "attributing to r2" in " ".join(found.notes)
    expected = np.concatenate([by_hand(path, x, target, "r2") for target in (0, 2)])
    np.testing.assert_allclose(found.relevance, expected, rtol=1e-4, atol=1e-5)


def test_several_layers_are_read_at_once(tmp_path):
    found = Explainer(saved(relu_net(), tmp_path), "reads_many", attribute_to=["r1", "r2"]).explain(X, 1)
    for name in ("r1", "r2"):
        expected = by_hand(str(tmp_path / "m.onnx"), X, 1, name)
        np.testing.assert_allclose(found.relevances[name], expected, rtol=1e-4, atol=1e-5)


def test_a_model_without_derivative_has_a_last_feature_map_too(tmp_path):
    """Det has no derivative; what is in front of the layer, and behind it, has to be run only."""
    text = """g (float[N, 2, 6, 6] x) => (float[N, 4] y) {
        c = Conv <pads = [1, 1, 1, 1]> (x, w1) r = Relu (c) p = GlobalAveragePool (r) f = Flatten (p)
        z = Gemm <transB = 1> (f, w2) d = Det (m) y = Mul (z, d) }"""
    weights = {"w1": normal(5, 2, 3, 3, seed=1), "w2": normal(4, 5, seed=3), "m": np.eye(2, dtype=np.float32)}
    path = saved(net(text, **weights), tmp_path)
    found = Explainer(path, "reads_many").explain(X, 1)
    assert list(found.relevances) == ["r"]
    np.testing.assert_allclose(found.relevance, by_hand(path, X, 1, "r"), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["mobilenet_v2", "digits_cnn", "digits_vit"])
def test_the_layer_of_real_models_is_that_of_class_activation_maps(name):
    subject, x = Subject.of(repository(name)), sample(name)
    expected = Explainer(subject, "hires_cam").explain(x, 0)
    for reader in ("reads_activation", "reads_gradient"):
        found = Explainer(subject, reader).explain(x, 0)
        assert list(found.relevances) == list(expected.relevances)
        assert found.relevance.shape == expected.relevance.shape
    np.testing.assert_allclose(found.relevance, expected.relevance, rtol=1e-4, atol=1e-6)  # reads_gradient


def test_a_method_about_a_feature_map_has_no_other_base(tmp_path):
    path = saved(relu_net(), tmp_path)
    with pytest.raises(UsageError, match="runs layer_gradient on it, no other"):
        Explainer(path, "reads_gradient", base="gradient")
    with pytest.raises(UsageError, match="attributes to a feature map"):
        Explainer(path, "smooth_grad", base="layer_gradient")
    with pytest.raises(UsageError, match=r"float tensor with channels and positions"):
        Explainer(path, "reads_activation", attribute_to="f")
    assert not any(name.startswith("reads_gradient-") for name in recipe_names.__wrapped__())


def test_layer_gradient_is_the_gradient_at_the_last_feature_map(tmp_path):
    path = saved(relu_net(), tmp_path)
    found = Explainer(path, "layer_gradient").explain(X, [0, 3])
    expected = Explainer(path, "gradient", attribute_to="r2").explain(X, [0, 3])
    assert list(found.relevances) == ["r2"] and found.provenance["maps"] == {"r2": {"channels": 1}}
    np.testing.assert_array_equal(found.relevance, expected.relevance)
