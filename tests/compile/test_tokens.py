"""Integer inputs: tokens get the relevance of their embeddings, masks get none."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from nets import compiled, net, normal

from onnxplain import Explainer
from onnxplain.errors import UnsupportedModel

TABLE, PLACES, W = normal(7, 5), normal(7, 5, seed=1), normal(5, 3, seed=2)
IDS = np.array([[1, 4, 4, 0], [6, 2, 3, 5]])


def tokens(nodes: str, inputs: str = "int64[N, L] ids", **weights: np.ndarray) -> onnx.ModelProto:
    """Embedded tokens, through tanh, averaged over positions, to 3 classes; `nodes` make `e` (N, L, 5) of `ids`."""
    return net(
        f"""g ({inputs}) => (float[N, 3] y) {{
            {nodes}
            t = Tanh (e)
            m = ReduceMean <keepdims = 0> (t, one)
            y = MatMul (m, w)
        }}""",
        one=np.array([1]),
        w=W,
        **weights,
    )


def one_table() -> onnx.ModelProto:
    return tokens("e = Gather (table, ids)", table=TABLE)


def two_tables() -> onnx.ModelProto:
    return tokens("a = Gather (table, ids) b = Gather (places, ids) e = Add (a, b)", table=TABLE, places=PLACES)


def gradient(e: np.ndarray, seed: np.ndarray) -> np.ndarray:
    """dy/de, by hand."""
    return (seed @ W.T)[:, None] * (1 - np.tanh(e) ** 2) / e.shape[1]


EXPECTED = {
    "gradient": lambda g, e: (g * e).sum(-1),
    "gradient_x_input": lambda g, e: (g * e).sum(-1),
    "saliency": lambda g, e: np.abs(g).sum(-1),
    "sensitivity": lambda g, e: (g * g).sum(-1),
}


@pytest.mark.parametrize("method", EXPECTED)
def test_a_tokens_relevance_is_summed_over_its_embedding(method, tmp_path):
    file, seed = compiled(one_table(), tmp_path, method), normal(2, 3, seed=3)
    assert file.outputs == ["y", "ids.relevance"]
    found = file.run(ids=IDS, seed=seed)["ids.relevance"]
    assert found.shape == IDS.shape and found.dtype == np.float32
    e = TABLE[IDS]
    np.testing.assert_allclose(found, EXPECTED[method](gradient(e, seed), e), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", EXPECTED)
def test_several_tables_add_up(method, tmp_path):
    file, seed = compiled(two_tables(), tmp_path, method), normal(2, 3, seed=3)
    g = gradient(TABLE[IDS] + PLACES[IDS], seed)
    expected = sum(EXPECTED[method](g, table[IDS]) for table in (TABLE, PLACES))
    np.testing.assert_allclose(file.run(ids=IDS, seed=seed)["ids.relevance"], expected, rtol=1e-4, atol=1e-6)


def test_lrp_of_tokens_is_conserved(tmp_path):
    file, seed = compiled(one_table(), tmp_path, "lrp", composite="epsilon"), np.eye(3, dtype=np.float32)[:2]
    found = file.run(ids=IDS, seed=seed)
    np.testing.assert_allclose(found["ids.relevance"].sum(1), (found["y"] * seed).sum(1), rtol=1e-3)


@pytest.mark.parametrize("method", ["gradient", "lrp", "clrp2"])
def test_many_seeds_of_one_sentence_equal_as_many_runs(method, tmp_path):
    file, seeds = compiled(two_tables(), tmp_path, method), np.eye(3, dtype=np.float32)
    at_once = file.run(ids=IDS[:1], seed=seeds)["ids.relevance"]
    apart = np.concatenate([file.run(ids=IDS[:1], seed=seed[None])["ids.relevance"] for seed in seeds])
    assert at_once.shape == (3, 4)
    np.testing.assert_allclose(at_once, apart, rtol=1e-4, atol=1e-6)


def test_an_integer_that_becomes_a_float_has_relevance_there(tmp_path):
    model = net("g (int32[N, 3] x) => (float[N, 3] y) { c = Cast <to = 1> (x) y = Exp (c) }")
    x, seed = np.array([[1, 2, -1]], np.int32), normal(1, 3)
    for method, expected in (("gradient", seed * np.exp(x)), ("gradient_x_input", seed * np.exp(x) * x)):
        found = compiled(model, tmp_path, method).run(x=x, seed=seed)["x.relevance"]
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_integers_may_be_reshaped_and_cast_on_their_way_to_the_table(tmp_path):
    model = tokens(
        "a = Cast <to = 7> (ids) b = Unsqueeze (a, one) c = Squeeze (b, one) e = Gather (table, c)",
        "int32[N, L] ids",
        table=TABLE,
    )
    seed = normal(2, 3, seed=3)
    found = compiled(model, tmp_path).run(ids=IDS.astype(np.int32), seed=seed)["ids.relevance"]
    e = TABLE[IDS]
    np.testing.assert_allclose(found, (gradient(e, seed) * e).sum(-1), rtol=1e-4, atol=1e-6)


def test_relevance_at_the_embedding_itself(tmp_path):
    file, seed = compiled(one_table(), tmp_path, attribute_to="e"), normal(2, 3, seed=3)
    np.testing.assert_allclose(
        file.run(ids=IDS, seed=seed)["e.relevance"], gradient(TABLE[IDS], seed), rtol=1e-4, atol=1e-6
    )


def masked() -> onnx.ModelProto:
    return tokens(
        "a = Gather (table, ids) b = Cast <to = 9> (mask) c = Unsqueeze (b, two) e = Where (c, a, zero)",
        "int64[N, L] ids, int64[N, L] mask",
        table=TABLE,
        two=np.array([2]),
        zero=np.float32(0),
    )


@pytest.mark.parametrize("method", ["gradient", "lrp"])
def test_a_mask_gets_no_relevance_and_a_note_says_so(method, tmp_path):
    file = compiled(masked(), tmp_path, method)
    assert file.outputs == ["y", "ids.relevance"]
    assert any("no relevance for mask" in note for note in file.explainer.notes)
    mask = np.array([[1, 1, 0, 0], [1, 1, 1, 1]])
    found = file.run(ids=IDS, mask=mask, seed=normal(2, 3, seed=3))["ids.relevance"]
    assert (found[0, 2:] == 0).all() and found[mask == 1].all()


def test_nothing_to_attribute_to_is_an_error_with_candidates(tmp_path):
    model = net(
        "g (int64[N, 3] x) => (float[N, 3] y) { b = Cast <to = 9> (x) y = Where (b, one, two) }",
        one=np.float32(1),
        two=np.float32(2),
    )
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(UnsupportedModel, match=r"nothing to attribute to.*--attribute-to"):
        Explainer(tmp_path / "m.onnx", "gradient")
