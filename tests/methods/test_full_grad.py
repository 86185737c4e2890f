"""FullGrad: gradient times input and all biases sum to the score; the map is what the paper makes of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from nets import compiled, net, normal, relu_net, repository, sample, widened
from support import evaluate

from onnxplain import Explainer
from onnxplain.compile import Request, compile_graph
from onnxplain.errors import UnsupportedModel, UsageError
from onnxplain.recipes import Recipe
from onnxplain.rules.finishes import FINISHES
from onnxplain.runtime.open import serialised
from onnxplain.subject import Subject

X = normal(3, 2, 6, 6)
WEIGHTS = {name: normal(*shape, seed=n) for n, (name, shape) in enumerate({
    "w1": (3, 2, 3, 3), "b1": (3,), "w2": (3, 3, 3, 3), "b2": (3,), "w3": (4, 108), "b3": (4,), "k": (1, 3, 1, 1),
    "scale": (3,), "shift": (3,), "mean": (3,), "v": (108, 4),
}.items())} | {"spread": np.array([0.5, 1.5, 2.0], np.float32)}  # fmt: skip
CONV = "Conv <pads = [1, 1, 1, 1]>"
HEAD = "f = Flatten (z) y = Gemm <transB = 1, beta = 0.5> (f, w3, b3)"
NETS = {  # what lies between a convolution a and the head, which reads z
    "relu": f"r = Relu (a) z = {CONV} (r, w2, b2)",
    "leaky": f"r = LeakyRelu <alpha = 0.3> (a) z = {CONV} (r, w2, b2)",
    "residual": f"r = Relu (a) c = {CONV} (r, w2, b2) s = Add (c, r) z = Relu (s)",
    "a constant added": "s = Add (a, k) z = Relu (s)",
    "subtracted": "s = Sub (k, a) t = Sub (s, k) z = Relu (t)",
    "multiplied": "s = Mul (a, k) z = Relu (s)",
    "smooth": f"t = Tanh (a) s = Softplus (t) c = {CONV} (s, w2) z = Sigmoid (c)",
    "a product": "r = Relu (a) t = Tanh (a) z = Mul (r, t)",
    "a square": "z = Mul (a, a)",
    "a quotient": "r = Exp (a) z = Div (a, r)",
    "read twice": "t = Tanh (a) s = Mul (a, t) u = Add (s, t) z = Relu (u)",
    "pools": "m = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (a) "
    "z = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (m)",
    "a normalisation": "r = Relu (a) n = BatchNormalization (r, scale, shift, mean, spread) z = Relu (n)",
    "a norm of its own": "n = InstanceNormalization (a, scale, shift) z = Relu (n)",
    "attention": "t = Transpose <perm = [0, 1, 3, 2]> (a) s = MatMul (a, t) q = Softmax (s) z = MatMul (q, a)",
}

CURVED = dict.fromkeys(("smooth", "a product", "a quotient", "read twice", "a norm of its own", "attention"), 1e-4)
"""Where implicit biases below a hundred-thousandth of their terms are taken for rounding; else it is float64's."""


def between(middle: str, head: str = HEAD) -> onnx.ModelProto:
    text = f"""g (float[N, 2, 6, 6] x) => (float[N, 4] y) {{ a = {CONV} (x, w1, b1) {middle} {head} }}"""
    return net(text, **{name: array for name, array in WEIGHTS.items() if f"{name}," in text or f"{name})" in text})


def summed(op, product, biases, x):
    """Everything there is, at every position."""
    total = op.ReduceSum(product, op.ints([1, 2, 3]), keepdims=1)
    for bias in biases:
        axes = op.ints(range(1, len(bias.value.shape)))
        total = total + op.Reshape(op.ReduceSum(bias.value, axes, keepdims=0), op.ints([-1, 1, 1, 1]))
    return op.Expand(total, op.Concat(op.size(total, 0), op.ints([1, 6, 6]), axis=0))


@pytest.mark.parametrize("name", NETS)
def test_gradient_times_input_and_all_biases_sum_to_the_score(name, tmp_path):
    onnx.save(between(NETS[name]), tmp_path / "m.onnx")
    subject = Subject.of(tmp_path / "m.onnx")
    propagation = Recipe("full_grad").propagation()
    propagation = replace(propagation, finish=replace(FINISHES["full_grad"], biases=summed))
    graph = compile_graph(subject.normalised, subject.resolved, propagation, Request())
    found = evaluate(
        widened(onnx.load_from_string(serialised(graph.model))),
        {"x": X.astype(np.float64), "y.seed": np.eye(4)[[1, 3, 0]]},
    )
    expected = found["y"][np.arange(3), [1, 3, 0]]
    np.testing.assert_allclose(found["x.relevance"][:, 0, 2, 3], expected, rtol=1e-9, atol=CURVED.get(name, 1e-9))


def enlarged(small: np.ndarray, side: int = 6) -> np.ndarray:
    """(h, w) at half-pixel centres, edges held."""
    centres = np.clip((np.arange(side) + 0.5) * len(small) / side - 0.5, 0, len(small) - 1)
    matrix = np.maximum(1 - np.abs(centres[:, None] - np.arange(len(small))), 0)
    return matrix @ small @ matrix.T


def scaled(values: np.ndarray) -> np.ndarray:
    return (values - values.min()) / (np.ptp(values) or 1.0)


@pytest.mark.parametrize("form", ["paper", "code"])
def test_the_map_is_made_as_the_paper_or_its_code_says(form, tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(relu_net(), path)
    found = Explainer(path, "full_grad", form=form).explain(X, [1, 3])
    expected = []
    for k in (1, 3):
        g = {t: Explainer(path, "gradient", attribute_to=t).explain(X, k).relevance for t in ("x", "c1", "c2")}
        layers = [g["x"] * X] + [
            g[f"c{n}"] * normal(len(g[f"c{n}"][0]), seed=2 * n)[:, None, None] * np.float32(0.3) for n in (1, 2)
        ]
        for row in range(3):
            parts = [np.abs(layer[row].astype(np.float64)) for layer in layers]
            if form == "code":
                parts = [scaled(part) for part in parts]
            expected.append(sum(enlarged(c if form == "code" else scaled(c)) for part in parts for c in part)[None])
    assert list(found.relevances) == ["x"]
    np.testing.assert_allclose(found.relevance, expected, rtol=1e-4, atol=1e-4)  # float32


def test_targets_at_once_equal_targets_apart_and_the_file_gives_the_same(tmp_path):
    file = compiled(relu_net(), tmp_path, "full_grad")
    whole = file.explainer.explain(X, [0, 1, 3]).relevance
    apart = [file.explainer.explain(X[n : n + 1], k).relevance for k in (0, 1, 3) for n in range(3)]
    assert whole.shape == (9, 1, 6, 6) and file.explainer.compiled.streams
    np.testing.assert_allclose(whole, np.concatenate(apart), rtol=1e-4, atol=1e-4)
    seed = np.eye(4, dtype=np.float32)[[1, 1, 1]]
    np.testing.assert_allclose(file.run(x=X, seed=seed)["x.relevance"], whole[3:6], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["digits_cnn", "mobilenet_v2", "digits_vit"])
def test_pictures_of_the_repository_get_a_map(name):
    found = Explainer(repository(name), "full_grad").explain(sample(name), "predicted")
    array = found.inputs["input"]
    assert found.map.shape == (len(array), *array.shape[2:]) and (found.map >= 0).all() and found.map.max() > 0


def test_what_is_no_picture_is_refused(tmp_path):
    with pytest.raises(UnsupportedModel, match="FullGrad attributes to a picture"):
        Explainer(repository("iris_mlp"), "full_grad")
    onnx.save(relu_net(), tmp_path / "m.onnx")
    with pytest.raises(UsageError, match=r"--attribute-to f \['N', 45\]: FullGrad attributes to a picture"):
        Explainer(tmp_path / "m.onnx", "full_grad", attribute_to="f")
    assert Explainer(tmp_path / "m.onnx", "full_grad", attribute_to="r1").explain(X, 1).relevance.shape == (3, 1, 6, 6)


def test_a_node_whose_bias_has_no_place_is_refused_by_name(tmp_path):
    middle = "r = Exp (a) s = ReduceSum (r, axes) z = Div (a, s)"
    text = f"""g (float[N, 2, 6, 6] x) => (float[N, 4] y) {{
        a = Conv (x, w1) {middle} f = Flatten (z) y = MatMul (f, w2)
    }}"""
    onnx.save(net(text, w1=normal(3, 2, 3, 3), w2=normal(48, 4), axes=np.array([2, 3])), tmp_path / "m.onnx")
    with pytest.raises(UnsupportedModel, match=r"Div.*which it is here is not known"):
        Explainer(tmp_path / "m.onnx", "full_grad")


def test_no_looped_method_runs_it():
    with pytest.raises(UsageError, match="full_grad makes one map of all layers"):
        Recipe.asked("smooth_grad", "full_grad")
