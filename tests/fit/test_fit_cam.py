"""Laws of a fitted CAM head: the net below stays, the head is the optimum, accuracy is of rows not fitted to."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from nets import net, normal, relu_net, repository

from onnxplain import Explainer
from onnxplain.errors import InputError, UnsupportedModel, UsageError
from onnxplain.fit import fit_cam, of_arrays
from onnxplain.fit.cam_head import _held_out
from onnxplain.fit.logistic_regression import logistic_regression

pytest.importorskip("sklearn")
CLASSES = 4


def rows(count: int = 48, classes: int = CLASSES):
    """Noise with a bright patch whose place is the class."""
    x, labels = normal(count, 2, 6, 6, seed=7), np.arange(count) % classes
    for row, label in zip(x, labels, strict=True):
        row[:, 3 * (label // 2) : 3 * (label // 2) + 3, 3 * (label % 2) : 3 * (label % 2) + 3] += label + 1
    return x, labels


def answers(path, x):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


@pytest.fixture
def source(tmp_path):
    onnx.save(relu_net(), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


@pytest.mark.parametrize("classes", [2, 3])
def test_the_head_is_where_the_penalised_likelihood_has_no_slope(classes):
    features, labels = normal(60, 5, dtype=np.float64) * [1, 10, 0.1, 1, 0], np.arange(60) % classes
    features += 0.3 * labels[:, None]
    weights, bias = logistic_regression(features, labels)
    deviation = features.std(0)
    logits = features @ weights.T + bias
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    residual = chances - np.eye(classes)[labels]
    z = (features - features.mean(0)) / np.where(deviation > 1e-12, deviation, 1)
    penalty = weights * deviation * (2 if classes == 2 else 1)  # of two classes, that of the difference of the logits
    slope = residual.T @ z + penalty
    assert np.abs(slope).max() < 1e-2  # L-BFGS stops at 1e-4 of the mean slope, and 60 rows are summed
    assert np.abs(residual.sum(0)).max() < 1e-2  # the bias has no penalty


def test_the_net_below_the_head_is_the_sources(source, tmp_path):
    x, labels = rows()
    fitted = fit_cam(source, of_arrays({"x": x}, labels), tmp_path / "f.onnx")
    before, after = onnx.load(source), onnx.load(tmp_path / "f.onnx")
    kept = {w.name: w for w in after.graph.initializer if not w.name.startswith("fitted_head")}
    assert kept == {w.name: w for w in before.graph.initializer if w.name in ("w1", "b1", "w2", "b2")}
    assert after.opset_import == before.opset_import
    assert list(after.graph.input) == list(before.graph.input)
    assert [o.name for o in after.graph.output] == ["logits"]
    assert [node.op_type for node in after.graph.node][-2:] == ["ReduceMean", "Gemm"]
    assert (fitted.layer, fitted.channels) == ("r2", 5)


@pytest.mark.parametrize("opset", [13, 18])
def test_cam_is_refused_before_and_sums_to_the_logit_after(opset, tmp_path):
    model = relu_net()
    model.opset_import[0].version = opset
    onnx.save(model, tmp_path / "m.onnx")
    x, labels = rows()
    with pytest.raises(UnsupportedModel, match="linear after a global pool"):
        Explainer(tmp_path / "m.onnx", "cam")
    fit_cam(tmp_path / "m.onnx", of_arrays({"x": x}, labels), tmp_path / "f.onnx")
    weights = {w.name: onnx.numpy_helper.to_array(w) for w in onnx.load(tmp_path / "f.onnx").graph.initializer}
    found = Explainer(tmp_path / "f.onnx", "cam").explain(x[:6], "2")
    np.testing.assert_allclose(
        found.map.mean((1, 2)) + weights["fitted_head.bias"][2], found.scores[:, 2], rtol=1e-4, atol=1e-5
    )  # float32 sums


def test_accuracy_is_that_of_both_files_on_rows_that_were_held_out(source, tmp_path):
    x, labels = rows()
    fitted = fit_cam(source, of_arrays({"x": x}, labels), tmp_path / "f.onnx", held_out=0.25, random_seed=3)
    aside = _held_out(labels, 0.25, 3)
    assert (fitted.held_out, fitted.fitted) == (12, 36) == (aside.sum(), (~aside).sum())
    assert [(labels[aside] == c).sum() for c in range(CLASSES)] == [3] * CLASSES
    for file, said in ((source, fitted.before), (tmp_path / "f.onnx", fitted.after)):
        assert said == (answers(file, x[aside]).argmax(1) == labels[aside]).mean()
    assert fitted.after > fitted.before + 0.2  # the source's weights are random


def test_held_out_rows_do_not_act_on_the_head(source, tmp_path):
    x, labels = rows()
    other = x.copy()
    other[_held_out(labels, 0.2, 0)] += 5
    for name, data in (("a", x), ("b", other)):
        fit_cam(source, of_arrays({"x": data}, labels), tmp_path / f"{name}.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_a_model_of_probabilities_stays_one(tmp_path):
    text = """g (float[N, 2, 6, 6] x) => (float[N, 2] p) {
        c = Conv (x, w) r = Relu (c) f = Flatten (r) h = MatMul (f, v) t = Tanh (h) y = MatMul (t, u)
        p = Softmax <axis = 1> (y)
    }"""
    onnx.save(net(text, w=normal(3, 2, 3, 3), v=normal(48, 6), u=normal(6, 2)), tmp_path / "m.onnx")
    x, labels = rows(classes=2)
    fit_cam(tmp_path / "m.onnx", of_arrays({"x": x}, labels), tmp_path / "f.onnx")
    assert [o.name for o in onnx.load(tmp_path / "f.onnx").graph.output] == ["p"]
    np.testing.assert_allclose(answers(tmp_path / "f.onnx", x).sum(1), 1, rtol=1e-6)  # float32
    assert Explainer(tmp_path / "f.onnx", "cam").explained == ("y",)


def test_a_fixed_batch_is_filled_up(tmp_path):
    onnx.save(relu_net(batch="5"), tmp_path / "five.onnx")
    onnx.save(relu_net(), tmp_path / "any.onnx")
    x, labels = rows()
    heads = []
    for name in ("five", "any"):
        fit_cam(tmp_path / f"{name}.onnx", of_arrays({"x": x}, labels), tmp_path / f"{name}.f.onnx")
        weights = {
            w.name: onnx.numpy_helper.to_array(w) for w in onnx.load(tmp_path / f"{name}.f.onnx").graph.initializer
        }
        heads.append(weights["fitted_head.weight"])
    np.testing.assert_allclose(*heads, rtol=1e-3, atol=1e-4)  # of features that differ by float32 rounding


@pytest.mark.parametrize(
    "labels, says",
    [
        (np.zeros(48, int), "each of the 4 classes takes two rows.* 1 \\(0\\), 2 \\(0\\), 3 \\(0\\)"),
        (np.arange(48) % 5, "class 4 of a model with the classes 0 to 3"),
        (np.arange(48) % 4 - 1, "class -1"),
        (np.arange(47) % 4, "expected a whole number a row"),
        (np.arange(48) % 4 * 1.0, "float64"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, says, source, tmp_path):
    with pytest.raises(InputError, match=says):
        fit_cam(source, of_arrays({"x": rows()[0]}, labels), tmp_path / "f.onnx")


def test_what_has_no_classes_or_no_feature_map_is_refused(tmp_path):
    x, labels = rows()
    with pytest.raises(UnsupportedModel, match="no feature map"):
        fit_cam(repository("iris_mlp"), of_arrays({"X": x}, labels), tmp_path / "f.onnx")
    onnx.save(relu_net(), tmp_path / "m.onnx")
    with pytest.raises(UnsupportedModel, match="no list of classes"):
        fit_cam(tmp_path / "m.onnx", of_arrays({"x": x}, labels), tmp_path / "f.onnx", explain="r2", layer="r1")
    with pytest.raises(UsageError, match="held-out"):
        fit_cam(tmp_path / "m.onnx", of_arrays({"x": x}, labels), tmp_path / "f.onnx", held_out=1.0)
