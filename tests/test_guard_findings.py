"""What random graphs found, as small as it still fails: one test a class."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from nets import compiled, net, normal, widened
from support import evaluate, run

from onnxplain import Explainer

X = normal(2, 4, seed=1)


def relevance(model: onnx.ModelProto, folder, composite: str) -> np.ndarray:
    file = compiled(model, folder, "lrp", composite=composite)
    feeds = {"x": X.astype(float), "y.seed": np.eye(3)[[1, 2]]}
    return evaluate(widened(file.proto), feeds)["x.relevance"]


def dense(nodes: str, **weights: np.ndarray) -> onnx.ModelProto:
    given = {"w": normal(4, 3, seed=2), "b": normal(3, seed=3)} | weights
    return net(f"g (float[2, 4] x) => (float[2, 3] y) {{ {nodes} }}", **given)


ZERO, MASK = np.float32(0).reshape(()), np.array([True, False, True, False])
SAME = {
    "a Relu as Max": (
        "deep_taylor",
        dense("h = Relu (x) y = Gemm (h, w, b)"),
        dense("h = Max (x, zero) y = Gemm (h, w, b)", zero=ZERO),
    ),
    "a mask as Mul": (
        "deep_taylor",
        dense("h = Where (mask, x, zero) y = Gemm (h, w, b)", mask=MASK, zero=ZERO),
        dense("h = Mul (x, mask) y = Gemm (h, w, b)", mask=MASK.astype(np.float32)),
    ),
    "a bias by rows": (
        "epsilon",
        dense("y = Gemm (x, w, r)", r=normal(2, 1, seed=4)),
        dense("h = MatMul (x, w) y = Add (h, r)", r=normal(2, 1, seed=4)),
    ),
}


@pytest.mark.parametrize("form", SAME)
def test_one_network_has_one_map_however_it_is_written(form, tmp_path):
    composite, one, other = SAME[form]
    expected = relevance(one, tmp_path, composite)
    np.testing.assert_allclose(relevance(other, tmp_path, composite), expected, atol=1e-5 * np.abs(expected).max())


def test_constants_are_computed_as_onnxruntime_does(tmp_path):
    """onnx's evaluator, which folds, has an LRN of its own; beside float16 the verification is too loose to see it."""
    model = net(
        """g (float[2, 3, 2, 2] x) => (float[2, 3, 2, 2] y) {
            l = LRN <alpha = 0.3, beta = 0.5, size = 3> (c)
            h = Cast <to = 10> (x)
            f = Cast <to = 1> (h)
            y = Sub (f, l)
        }""",
        c=np.full((2, 3, 2, 2), 0.5, np.float32),
    )
    x = normal(2, 3, 2, 2)
    found = compiled(model, tmp_path).run(x=x, seed=x)["y"]
    np.testing.assert_allclose(found, run(model, {"x": x})["y"], atol=1e-6)


def test_weights_that_nobody_uses_do_no_harm(tmp_path):
    onnx.save(dense("y = Gemm (x, w, b)", spare=normal(64, 64)), tmp_path / "m.onnx")
    Explainer(tmp_path / "m.onnx", "gradient")


@pytest.mark.parametrize("step", ["r = Reshape (t, same)", "r = Cast <to = 1> (t)", "s = Shape (t) r = Reshape (t, s)"])
def test_an_inner_tensor_that_is_asked_for_survives_though_its_node_does_nothing(step, tmp_path):
    model = dense(f"t = Tanh (x) {step} y = Gemm (r, w, b)", same=np.array([2, 4]))
    file = compiled(model, tmp_path, attribute_to="r")
    seed = normal(2, 3, seed=5)
    weights = onnx.numpy_helper.to_array(next(w for w in model.graph.initializer if w.name == "w"))
    np.testing.assert_allclose(file.run(x=X, seed=seed)["r.relevance"], seed @ weights.T, rtol=1e-5)


def test_what_follows_a_tensor_of_unknown_type_is_explained(tmp_path):
    """The type of FusedMatMul is known from the run, as its shape is."""
    model = net(
        "g (float[2, 4] x) => (float[2, 3] y) { f = MatMul (x, w) y = Mul (f, f) }",
        w=normal(4, 3, seed=2),
    )
    model.graph.node[0].op_type, model.graph.node[0].domain = "FusedMatMul", "com.microsoft"
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    file = compiled(model, tmp_path, attribute_to="f")
    seed = normal(2, 3, seed=5)
    f = X @ onnx.numpy_helper.to_array(model.graph.initializer[0])
    np.testing.assert_allclose(file.run(x=X, seed=seed)["f.relevance"], 2 * f * seed, rtol=1e-5)


def test_an_inner_tensor_that_is_asked_for_is_not_its_twin(tmp_path):
    """Two equal nodes are made one; the tensor asked for then answers for both."""
    model = dense("t = Tanh (x) u = Tanh (x) m = Mul (t, u) y = Gemm (m, w, b)")
    file = compiled(model, tmp_path, attribute_to="t")
    seed = normal(2, 3, seed=5)
    weights = onnx.numpy_helper.to_array(next(w for w in model.graph.initializer if w.name == "w"))
    np.testing.assert_allclose(file.run(x=X, seed=seed)["t.relevance"], seed @ weights.T * np.tanh(X), rtol=1e-5)


ALIASES = {
    "an Identity of the input": "t = Identity (x) m = Mul (x, t) y = Gemm (m, w, b)",
    "an entry of a sequence": """s = Tanh (x) u = Relu (s) q = SequenceConstruct (s, u) t = SequenceAt (q, none)
        m = Mul (s, t) y = Gemm (m, w, b)""",
    "a Reshape that does nothing": "s = Tanh (x) t = Reshape (s, same) m = Mul (s, t) y = Gemm (m, w, b)",
}


@pytest.mark.parametrize("alias", ALIASES)
def test_an_inner_tensor_that_is_asked_for_answers_for_its_own_readers_only(alias, tmp_path):
    """It equals another tensor, which the rewrites read in its place; the other's readers are not its own."""
    model = dense(ALIASES[alias], none=np.array(0), same=np.array([2, 4]))
    file = compiled(model, tmp_path, attribute_to="t")
    seed = normal(2, 3, seed=5)
    weights = onnx.numpy_helper.to_array(next(w for w in model.graph.initializer if w.name == "w"))
    other = X if alias.startswith("an Identity") else np.tanh(X)
    np.testing.assert_allclose(file.run(x=X, seed=seed)["t.relevance"], seed @ weights.T * other, rtol=1e-5)
