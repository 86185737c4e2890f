"""The stream law: one row and K seeds answer as K runs do, a batch with a seed a row as its rows alone do."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from nets import NAMES, compiled, folded_heads, net, normal, relu_net, repository, sample
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, RuntimeException
from test_compile import describe

from onnxplain import Explainer

REFUSED = (Fail, InvalidArgument, RuntimeException)  # by onnxruntime
METHODS = ("gradient", "lrp", "clrp1", "clrp2")
CLOSE = {"rtol": 2e-3, "atol": 2e-5}  # float32; kernels add up in another order for another batch


def models() -> list[str]:
    return [*NAMES, "relu_net"]


@functools.cache
def pieces(name: str, method: str, folder):
    """(compiled file, name of the input, batch of inputs, shape of the explained tensor)."""
    file = compiled(relu_net() if name == "relu_net" else repository(name), folder, method)
    x = normal(3, 2, 6, 6) if name == "relu_net" else sample(name)
    x = np.concatenate([x, x[:, :, ::-1], -x])[:3] if len(x) < 3 else x
    y = file.explainer.explained[0]
    return file, file.inputs[0], x, file.explainer.subject.forward({file.inputs[0]: x}, [y])[y].shape


def scaled(array: np.ndarray) -> np.ndarray:
    return array / max(np.abs(array).max(), 1e-30)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("streams")


def explained_by(name: str, method: str, folder):
    if method != "gradient" and name in ("mobilenet_v2", "bc_logreg", "digits_gru"):
        pytest.skip("the gradient of this model is enough, or it has no relevance rule")
    return pieces(name, method, folder)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", models())
def test_many_seeds_of_one_row_equal_as_many_runs(name, method, folder):
    file, key, x, shape = explained_by(name, method, folder)
    seeds = normal(4, *shape[1:])
    at_once = file.run(**{key: x[:1]}, seed=seeds)[f"{key}.relevance"]
    apart = np.concatenate([file.run(**{key: x[:1]}, seed=seed[None])[f"{key}.relevance"] for seed in seeds])
    assert at_once.shape == (4, *x.shape[1:])
    np.testing.assert_allclose(scaled(at_once), scaled(apart), **CLOSE)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", models())
def test_a_batch_equals_its_rows_alone(name, method, folder):
    file, key, x, shape = explained_by(name, method, folder)
    seeds = normal(*shape)
    at_once = file.run(**{key: x}, seed=seeds)[f"{key}.relevance"]
    rows = zip(x, seeds, strict=True)
    apart = np.concatenate([file.run(**{key: row[None]}, seed=seed[None])[f"{key}.relevance"] for row, seed in rows])
    np.testing.assert_allclose(scaled(at_once), scaled(apart), **CLOSE)


# -- where the batch axis cannot be proven ---------------------------------------------------------------------------


def literal_batch():
    return net(
        "g (float[N, 6] x) => (float[2, 4] y) { r = Reshape (x, shape) y = MatMul (r, w) }",
        shape=np.array([2, 6]),
        w=normal(6, 4),
    )


def row_and_batch():
    return net("g (float[N, 4] x, float[1, 4] b) => (float[N, 4] y) { y = Mul (x, b) }")


def test_heads_folded_into_the_batch_take_exact_seeds_only(tmp_path):
    file = compiled(folded_heads(), tmp_path)
    assert describe(file.proto.graph.input[-1])[2] == describe(file.proto.graph.output[0])[2]
    assert any("cannot be followed" in note for note in file.explainer.notes) and file.about["streams"] == "exact"
    x, seed = normal(2, 3, 4), normal(2, 3, 4, seed=1)
    np.testing.assert_allclose(
        file.run(x=x, seed=seed)["x.relevance"], seed * (1 - np.tanh(x) ** 2), rtol=1e-4, atol=1e-6
    )
    with pytest.raises(REFUSED):
        file.run(x=x[:1], seed=normal(5, 3, 4))


def test_a_seed_that_would_broadcast_is_refused_as_well(tmp_path):
    model = net("g (float[N, 4] x, float[1, 4] b) => (float[N, 4] y) { z = Neg (b) y = Mul (x, z) }")
    file = compiled(model, tmp_path)
    with pytest.raises(REFUSED):
        file.run(x=normal(1, 4), b=normal(1, 4), seed=normal(5, 4))


def test_a_literal_batch_takes_exact_seeds_only(tmp_path):
    file = compiled(literal_batch(), tmp_path)
    assert describe(file.proto.graph.input[-1])[2] == [2, 4]
    assert file.run(x=normal(2, 6), seed=normal(2, 4))["x.relevance"].shape == (2, 6)
    with pytest.raises(REFUSED):
        file.run(x=normal(2, 6), seed=normal(3, 4))


def test_the_relevance_of_one_row_beside_a_batch_is_one_row(tmp_path):
    file = compiled(row_and_batch(), tmp_path)
    x, b, seed = normal(3, 4), normal(1, 4, seed=1), normal(3, 4, seed=2)
    found = file.run(x=x, b=b, seed=seed)
    np.testing.assert_allclose(found["x.relevance"], seed * b, rtol=1e-6)
    np.testing.assert_allclose(found["b.relevance"], (seed * x).sum(0, keepdims=True), rtol=1e-5)


def test_the_explainer_loops_where_the_graph_cannot(tmp_path):
    explainer = compiled(folded_heads(), tmp_path).explainer
    x, seeds = normal(1, 3, 4), normal(5, 3, 4, seed=1)
    np.testing.assert_allclose(
        explainer.run(x, seeds)["x.relevance"], seeds * (1 - np.tanh(x) ** 2), rtol=1e-4, atol=1e-6
    )
    batch = normal(5, 3, 4, seed=2)
    found = explainer.run(batch, seeds)["x.relevance"]
    np.testing.assert_allclose(found, seeds * (1 - np.tanh(batch) ** 2), rtol=1e-4, atol=1e-6)


def test_the_explainer_takes_a_seed_of_the_shape_of_an_inner_tensor_without_batch_in_front(tmp_path):
    swap = "Transpose <perm = [1, 0, 2]>"
    model = net(f"g (float[N, 3, 4] x) => (float[N, 3, 4] y) {{ t = {swap} (x) h = Exp (t) y = {swap} (h) }}")
    explainer = compiled(model, tmp_path, explain="h").explainer
    for rows in (1, 2, 3):
        x, seed = normal(rows, 3, 4), normal(3, rows, 4, seed=1)
        expected = seed.swapaxes(0, 1) * np.exp(x)
        np.testing.assert_allclose(explainer.run(x, seed)["x.relevance"], expected, rtol=1e-5)


def test_one_seed_serves_every_row(tmp_path):
    for model, shape in ((relu_net(), (2, 6, 6)), (folded_heads(), (3, 4))):
        explainer = compiled(model, tmp_path).explainer
        x = normal(3, *shape)
        y = explainer.subject.forward({"x": x})[explainer.explained[0]]
        seed = normal(1, *y.shape[1:])
        every = explainer.run(x, np.repeat(seed, 3, 0))["x.relevance"]
        np.testing.assert_allclose(explainer.run(x, seed)["x.relevance"], every, rtol=1e-5, atol=1e-6)


def test_rows_that_do_not_fit_in_memory_are_run_in_chunks(tmp_path, monkeypatch):
    explainer = compiled(relu_net(), tmp_path, "lrp", ledger=True).explainer
    x, seeds = normal(5, 2, 6, 6), normal(5, 4, seed=1)
    whole = explainer.run(x, seeds)
    many = explainer.run(x[:1], seeds)
    monkeypatch.setattr("onnxplain.runtime.chunking.free_memory_bytes", lambda: 1)
    for expected, found in ((whole, explainer.run(x, seeds)), (many, explainer.run(x[:1], seeds))):
        for name in ("x.relevance", "onnxplain.ledger"):
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-3, atol=1e-5)
    assert whole["logits"].shape == (5, 4) and explainer.run(x, seeds)["logits"].shape == (5, 4)


def test_an_explainer_of_any_method_is_told_the_same_by_batch_and_by_row():
    explainer = Explainer(repository("iris_mlp"), "gradient")
    x = sample("iris_mlp")
    together = explainer.explain(x, [0, 1, 2]).relevance
    alone = np.stack([explainer.explain(row[None], [0, 1, 2]).relevance for row in x], 1).reshape(together.shape)
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-6)
