"""Forward-only methods switch tokens: which inputs move, what a token becomes, which stay."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from nets import net, normal
from test_perturbation import EXACT, FEW, FORWARD_ONLY, saved

from onnxplain import Explainer
from onnxplain.errors import UnsupportedModel, UsageError
from onnxplain.methods import METHODS
from onnxplain.methods.masks import GridMasks
from onnxplain.methods.replacements import replacement_of
from onnxplain.methods.tensors import Tensors
from onnxplain.subject import Subject

SWITCHING = [name for name in FORWARD_ONLY if METHODS[name].switches]
TABLE = normal(9, 4)
IDS = np.array([[7, 3, 5, 8, 1], [7, 2, 2, 8, 0]])
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])


def bag(kind: str = "int64") -> onnx.ModelProto:
    """The sum of the embeddings of those tokens whose mask is 1, with segments: linear in what stands where."""
    text = f"""g ({kind}[N, 5] input_ids, int64[N, 5] attention_mask, int64[N, 5] token_type_ids)
            => (float[N, 4] y) {{
        e = Gather (t, input_ids) s = Gather (u, token_type_ids) a = Add (e, s)
        m = Cast <to = 1> (attention_mask) m3 = Unsqueeze (m, last) w = Mul (a, m3)
        y = ReduceSum <keepdims = 0> (w, axis)
    }}"""
    return net(text, t=TABLE, u=normal(2, 4, seed=5), last=np.array([2]), axis=np.array([1]))


def feeds(ids=IDS):
    return {"input_ids": ids, "attention_mask": MASK[: len(ids)], "token_type_ids": np.zeros_like(ids, np.int64)}


@pytest.fixture
def path(tmp_path):
    return saved(bag(), tmp_path)


@pytest.mark.parametrize("name", EXACT)
def test_of_a_bag_of_words_each_token_has_its_embedding_minus_that_of_the_baseline(name, path):
    found = Explainer(path, name, baseline=4, kind="classification", **EXACT[name]).explain(feeds(), [0, 2])
    assert list(found.relevances) == ["input_ids"] and found.relevance.dtype == np.float32
    expected = [((TABLE[IDS, k] - TABLE[4, k]) * MASK) for k in (0, 2)]
    np.testing.assert_allclose(found.relevance, np.concatenate(expected), rtol=1e-4, atol=1e-5)  # float32 scores


@pytest.mark.parametrize("name", EXACT)
def test_fixed_tokens_stay_and_get_nothing(name, path):
    found = Explainer(path, name, baseline=4, fixed=[7, 8], **EXACT[name]).explain(feeds(), 1).relevance
    moves = MASK * ~np.isin(IDS, [7, 8])
    np.testing.assert_allclose(found, (TABLE[IDS, 1] - TABLE[4, 1]) * moves, rtol=1e-4, atol=1e-5)


def test_fixed_tokens_get_nothing_of_chance_either(path):
    found = Explainer(path, "rise", baseline=4, fixed=[7, 8], **FEW["rise"]).explain(feeds(), 1)
    still = np.isin(IDS, [7, 8])
    assert not found.relevance[still].any() and found.relevance[~still].all()
    assert not found.standard_errors["input_ids"][still].any()


def test_no_look_is_spent_on_groups_that_are_the_same_when_absent(path):
    """Five tokens, two of them fixed: 2^3 coalitions, and the input itself."""
    explainer, looks = Explainer(path, "exact_shapley", fixed=[7, 8], baseline=4), []
    explainer.explain(feeds(IDS[:1]), 1, progress=lambda *now: looks.append(now))
    assert looks[-1] == (8, 8)
    nothing = Explainer(path, "kernel_shap", fixed=[7, 3, 5, 8, 1]).explain(feeds(IDS[:1]), 1)
    assert not nothing.relevance.any()


def test_pieces_of_a_word_go_together(path):
    found = Explainer(path, "exact_shapley", groups=[0, 1, 1, 2, 3], baseline=4).explain(feeds(IDS[:1]), 1).relevance
    each = TABLE[IDS[0], 1] - TABLE[4, 1]
    expected = [each[0], *[each[1:3].mean()] * 2, *each[3:]]
    np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SWITCHING)
def test_every_switching_method_moves_tokens_of_any_type(name, tmp_path):
    for kind in ("int64", "int32"):
        ids = {**feeds(), "input_ids": IDS.astype(kind)}
        found = Explainer(saved(bag(kind), tmp_path), name, **FEW.get(name, {})).explain(ids, 1)
        assert found.relevance.shape == IDS.shape and found.relevance.any()
        assert any("attention_mask gets no relevance: it stays as it is" in note for note in found.notes)
        assert any("input_ids: what is taken away of it becomes 0" in note for note in found.notes)


def test_what_stands_beside_tokens_moves_where_it_is_named(path):
    segments = {**feeds(), "token_type_ids": np.ones_like(IDS)}
    found = Explainer(path, "feature_ablation", attribute_to=["input_ids", "token_type_ids"]).explain(segments, 1)
    u = normal(2, 4, seed=5)
    np.testing.assert_allclose(found.relevances["token_type_ids"], MASK * (u[1, 1] - u[0, 1]), rtol=1e-4, atol=1e-5)


def test_tokens_are_what_is_looked_up_and_columns_of_whole_numbers_move_where_there_is_nothing_else(tmp_path):
    text = """g (int64[N, 3] ids, int64[N, 2] counts) => (float[N, 4] y) {
        e = Gather (t, ids) s = ReduceSum <keepdims = 0> (e, axis)
        c = Cast <to = 1> (counts) d = MatMul (c, w) y = Add (s, d)
    }"""
    graph = net(text, t=normal(6, 4), axis=np.array([1]), w=normal(2, 4, seed=2))
    assert Subject.of(saved(graph, tmp_path)).looked_up() == ["ids"]
    x = {"ids": np.array([[1, 2, 3]]), "counts": np.array([[4, 2]])}
    assert list(Explainer(saved(graph, tmp_path), "feature_ablation").explain(x, 1).relevances) == ["ids"]
    table = net("g (int64[N, 2] counts) => (float[N, 4] y) { c = Cast <to = 1> (counts) y = MatMul (c, w) }",
                w=normal(2, 4, seed=2))  # fmt: skip
    found = Explainer(saved(table, tmp_path), "exact_shapley", baseline=1).explain(x["counts"], 1).relevance
    np.testing.assert_allclose(found, (x["counts"] - 1) * normal(2, 4, seed=2)[:, 1], rtol=1e-4, atol=1e-5)


def test_methods_that_add_to_their_input_refuse_tokens(path):
    with pytest.raises(UnsupportedModel, match="and input_ids is no float input"):
        Explainer(path, "smooth_grad")
    with pytest.raises(UnsupportedModel, match="is no float input"):
        Explainer(path, "integrated_gradients")


def test_a_token_becomes_a_token_again():
    ids = Tensors({"ids": IDS})
    with pytest.raises(UsageError, match=r"ids \[2, 5\] has whole numbers, such as ids of tokens"):
        replacement_of(None, ids, 0.5)
    with pytest.raises(UsageError, match="fixed names tokens, and x has numbers that are none"):
        replacement_of(None, Tensors({"x": normal(1, 3)}), 0.0, 7)
    kept = replacement_of(None, ids, 4, [7])["ids"]
    np.testing.assert_array_equal(kept, np.where(IDS == 7, 7, 4))
    picture = Tensors({"x": np.arange(4 * 36).reshape(1, 4, 6, 6)})
    assert replacement_of(None, picture, "blur")["x"].dtype == np.int64
    masks = GridMasks((1, 20, 3), 7, 0.5, [0], True).draw(20)
    assert set(np.unique(masks)) == {0.0, 1.0}  # a token between two ids is another one


def test_a_picture_in_bytes_is_covered(tmp_path):
    text = "{ c = Cast <to = 1> (x) m = ReduceMean <keepdims = 0> (c, axes) y = MatMul (m, w) }"
    graph = net(f"g (uint8[N, 3, 12, 12] x) => (float[N, 4] y) {text}", axes=np.array([2, 3]), w=normal(3, 4))
    x = np.random.default_rng(0).integers(0, 256, (1, 3, 12, 12), np.uint8)
    for name, options in (("feature_ablation", {"patch": 4, "baseline": 128}), ("rise", FEW["rise"])):
        assert Explainer(saved(graph, tmp_path), name, **options).explain(x, 1).relevance.any()
    found = Explainer(saved(graph, tmp_path), "exact_shapley", patch=6, baseline=128).explain(x, 1).relevance
    expected = ((x.astype(float) - 128).mean((2, 3)) @ normal(3, 4))[0, 1]
    np.testing.assert_allclose(found.sum(), expected, rtol=1e-4)


def test_the_background_of_tokens_is_other_rows(path):
    other = np.array([[1, 1, 2, 3, 4], [5, 6, 7, 8, 0]])
    background = {**feeds(other), "attention_mask": np.ones_like(other)}
    options = {"baseline": "background", "background": background}
    found = Explainer(path, "exact_shapley", **options).explain(feeds(), 1).relevance
    expected = (TABLE[IDS, 1] - TABLE[other, 1].mean(0)) * MASK
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(UsageError, match="a mean of tokens is none"):
        Explainer(path, "rise", baseline="background_mean", background=background).explain(feeds(), 1)
