"""DeepLIFT: relevance sums to the difference from the reference, in every network and by either rule."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from nets import MODELS, folded_heads, net, normal, relu_net, sample

from onnxplain import Explainer
from onnxplain.errors import UnsupportedOp, UsageError
from onnxplain.methods import METHODS
from onnxplain.methods.registry import OnePass
from onnxplain.recipes import Recipe, named
from onnxplain.subject import Subject

RULES = [name for name, method in METHODS.items() if isinstance(method, OnePass) and method.reference]
MLP = """g (float[N, 5] x) => (float[N, 3] y) {
    a = Gemm <transB = 1> (x, w1, b1) b = Relu (a) c = Gemm <transB = 1> (b, w2, b2) d = Tanh (c)
    y = Gemm <transB = 1> (d, w3) }"""
WEIGHTS = {
    "w1": normal(8, 5), "b1": normal(8, seed=1), "w2": normal(6, 8, seed=2), "b2": normal(6, seed=3),
    "w3": normal(3, 6, seed=4),
}  # fmt: skip


@pytest.fixture
def saved(tmp_path):
    def save(model):
        onnx.save(model, tmp_path / "m.onnx")
        return tmp_path / "m.onnx"

    return save


def sums(explanation, rows):
    """Relevance of each target and row, over all inputs, float64."""
    return sum(
        array.astype(np.float64).reshape(len(explanation.targets), rows, -1).sum(2)
        for array in explanation.relevances.values()
    )


def check_summation(explainer, feeds, references, rel=1e-5):
    """Of every class; rel: of the largest term, float32 through a deep net."""
    found = explainer.explain(feeds, [0, 1])
    name = found.explained
    scores, base = (explainer.subject.forward(f, [name])[name].astype(np.float64) for f in (feeds, references))
    expected = (scores - base)[:, :2].T
    np.testing.assert_allclose(sums(found, len(scores)), expected, atol=rel * (np.abs(scores) + np.abs(base)).max())


@pytest.mark.parametrize("baseline", [0.0, 0.3])
@pytest.mark.parametrize("method", RULES)
@pytest.mark.parametrize("name", ["mobilenet_v2", "digits_cnn", "digits_vit", "iris_mlp"])
def test_relevance_sums_to_the_change_of_the_score(name, method, baseline):
    explainer = Explainer(MODELS / name / "1/model.onnx", method, baseline=baseline)
    (entry,) = explainer.subject.inputs
    shape = explainer.subject.normalised.reference.feeds[entry.name].shape[1:]
    x = normal(2, *shape, seed=8)
    check_summation(explainer, {entry.name: x}, {entry.name: np.full_like(x, baseline)}, rel=2e-5)


@pytest.mark.parametrize("method", RULES)
def test_a_baseline_has_a_number_for_each_channel(method, saved):
    explainer = Explainer(saved(relu_net()), method, baseline=[0.5, -1.0])
    x = normal(3, 2, 6, 6)
    reference = np.broadcast_to(np.array([0.5, -1.0], np.float32).reshape(1, 2, 1, 1), x.shape)
    check_summation(explainer, {"x": x}, {"x": reference.copy()})
    with pytest.raises(UsageError, match="baseline has 3 numbers, one for each channel"):
        Explainer(saved(relu_net()), method, baseline=[1.0, 2.0, 3.0])


def test_the_minimum_is_shared_only_where_what_cancels_is_revealed(saved):
    """o = x0 - Relu(x0 - x1) = min(x0, x1), figure 3 of the paper: 6 of (10, 6) is all x1's by Rescale, halves else."""
    model = net(
        "g (float[N, 2] x) => (float[N, 1] y) { h = Gemm (x, w) r = Relu (h) a = Gemm (x, v) y = Sub (a, r) }",
        w=np.array([[1.0], [-1.0]], np.float32),
        v=np.array([[1.0], [0.0]], np.float32),
    )
    x = np.array([[10.0, 6.0]], np.float32)
    found = {method: Explainer(saved(model), method).explain(x, 0).relevance for method in RULES}
    np.testing.assert_allclose(found["deep_lift"], [[0.0, 6.0]], atol=1e-5)
    np.testing.assert_allclose(found["deep_lift_reveal_cancel"], [[3.0, 3.0]], atol=1e-5)


def by_hand(x, other, seed, reveal):
    """Both rules on the MLP, unit by unit, in float64."""
    w1, b1, w2, b2, w3 = (WEIGHTS[name].astype(np.float64) for name in ("w1", "b1", "w2", "b2", "w3"))
    relu, tanh = (lambda v: max(v, 0.0)), np.tanh
    layers = [(w1, b1, relu), (w2, b2, tanh)]
    values, m = [(x.astype(np.float64), other.astype(np.float64))], seed @ w3
    for w, b, f in layers:
        values.append(tuple(np.array([f(z) for z in w @ v + b]) for v in values[-1]))
    for (w, b, f), (a, a0) in zip(layers[::-1], values[-2::-1], strict=True):
        down = np.zeros(len(a))
        for j, row in enumerate(w):
            terms = row * (a - a0)
            z0, plus, minus = row @ a0 + b[j], terms[terms > 0].sum() + 1e-12, terms[terms < 0].sum() - 1e-12
            f0, fp, fm, f1 = f(z0), f(z0 + plus), f(z0 + minus), f(z0 + plus + minus)
            up = m[j] * (f1 - f0) / (plus + minus)
            ratios = (up, up)
            if reveal:
                ratios = (m[j] * (fp - f0 + f1 - fm) / 2 / plus, m[j] * (fm - f0 + f1 - fp) / 2 / minus)
            down += row * np.select([terms > 0, terms < 0], ratios, sum(ratios) / 2)
        m = down
    return m * (x - other)


@pytest.mark.parametrize("method", RULES)
def test_a_network_gives_what_the_rules_say_unit_by_unit(method, saved):
    x, other = normal(4, 5, seed=5), normal(1, 5, seed=6)
    explainer = Explainer(saved(net(MLP, **WEIGHTS)), method, baseline=[float(v) for v in other[0]])
    found = explainer.explain(x, 1).relevance
    expected = [by_hand(row, other[0], np.eye(3)[1], method.endswith("cancel")) for row in x]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)  # float32: quotients of differences near 0.01


@pytest.mark.parametrize("method", RULES)
def test_fed_references_are_each_streams_own(method, saved):
    """The graph with the references open, in plain onnxruntime: many rows, many references, one and one."""
    path = saved(net(MLP, **WEIGHTS))
    explainer = Explainer(path, method, baseline="input")
    assert explainer.compiled.references == {"x.reference": "x"}
    explainer.save(path.with_name("compiled.onnx"))
    options = {"providers": ["CPUExecutionProvider"]}
    written = onnxruntime.InferenceSession(str(path.with_name("compiled.onnx")), **options)
    x, other, seed = normal(4, 5, seed=5), normal(4, 5, seed=6), np.eye(3, dtype=np.float32)[[0, 1, 2, 0]]
    for rows, references in ((4, 4), (4, 1), (1, 4), (1, 1)):
        fed = {"x": x[:rows], "x.reference": other[:references], "y.seed": seed}
        found = written.run(["x.relevance"], fed)[0]
        for n, relevance in enumerate(found):
            own, reference = x[min(n, rows - 1)], other[min(n, references - 1)]
            expected = by_hand(own, reference, seed[n], method.endswith("cancel"))
            np.testing.assert_allclose(relevance, expected, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("method", RULES)
def test_what_is_written_answers_in_one_pass_of_any_onnxruntime(method, saved):
    path = saved(relu_net())
    explainer = Explainer(path, method, baseline=0.25)
    explainer.save(path.with_name("compiled.onnx"))
    assert explainer.verify(path.with_name("compiled.onnx")) == []
    written = onnxruntime.InferenceSession(str(path.with_name("compiled.onnx")), providers=["CPUExecutionProvider"])
    assert [entry.name for entry in written.get_inputs()] == ["x", "logits.seed"]
    x, seed = normal(2, 2, 6, 6), np.eye(4, dtype=np.float32)[:2]
    logits, relevance = written.run(["logits", "x.relevance"], {"x": x, "logits.seed": seed})
    base = explainer.subject.forward({"x": np.full_like(x, 0.25)}, ["logits"])["logits"]
    np.testing.assert_allclose(relevance.sum((1, 2, 3)), ((logits - base) * seed).sum(1), rtol=1e-4, atol=1e-4)


def test_the_batch_may_be_on_no_axis_of_its_own(saved):
    """Exact seeds: the reference has the input's own shape."""
    path = saved(folded_heads())
    explainer = Explainer(path, "deep_lift", baseline=0.2)
    if explainer.compiled.streams:
        pytest.skip("the axis was proven")
    x = normal(2, 3, 4)
    seed = normal(2, 3, 4, seed=1)
    answers = explainer.run(x, seed)
    base = explainer.subject.forward({"x": np.full_like(x, 0.2)})["y"]
    expected = ((answers["y"] - base) * seed).sum()
    assert answers["x.relevance"].sum() == pytest.approx(expected, rel=1e-4, abs=1e-4)  # float32


def test_tokens_are_compared_with_the_token_of_that_number(saved):
    """Relevance of a token: multipliers times the difference of the two embeddings, summed over the features."""
    model = net(
        """g (int64[N, 6] ids) => (float[N, 3] y) {
            e = Gather (table, ids) h = Tanh (e) q = Transpose <perm = [0, 2, 1]> (h) s = MatMul (h, q)
            p = Softmax (s) c = MatMul (p, h) m = ReduceMean <keepdims = 0> (c, axes) y = MatMul (m, w) }""",
        table=normal(11, 4), w=normal(4, 3, seed=1), axes=np.array([1]),
    )  # fmt: skip
    explainer = Explainer(saved(model), "deep_lift", baseline=7)
    ids = np.array([[1, 4, 7, 2, 9, 0], [3, 3, 7, 7, 5, 10]])
    check_summation(explainer, {"ids": ids}, {"ids": np.full_like(ids, 7)})
    found = explainer.explain(ids, 0).relevance
    assert (found[ids == 7] == 0).all() and found[ids != 7].all()


@pytest.mark.parametrize(
    "nodes, why",
    [
        ("c = Greater (x, t) n = Neg (x) y = Where (c, x, n)", r"Where.*: c, its input 0.*carries no relevance"),
        ("f = Floor (x) y = Add (f, x)", r"Add.*: f, its input 0.*carries no relevance"),
        ("k = Size (x) v, i = TopK (x, two) y = Tanh (v)", r"TopK.*no rule for the difference of TopK"),
    ],
)
def test_a_part_of_the_difference_that_would_be_nobodys_is_refused(nodes, why, saved):
    model = net(f"g (float[N, 4] x) => (float[N, M] y) {{ {nodes} }}", t=np.float32(0), two=np.array([2]))
    with pytest.raises(UnsupportedOp, match=why):
        Explainer(saved(model), "deep_lift", explain="y")


def test_lengths_that_are_read_from_the_input_are_no_difference(saved):
    model = net(
        """g (float[N, 2, 3] x) => (float[N, 6] y) {
            s = Shape <start = 0, end = 1> (x) r = Constant <value_ints = [6]> () to = Concat <axis = 0> (s, r)
            t = Tanh (x) y = Reshape (t, to) }"""
    )
    x = normal(2, 2, 3)
    check_summation(Explainer(saved(model), "deep_lift"), {"x": x}, {"x": np.zeros_like(x)})


def test_recurrent_nets_are_refused_by_name():
    with pytest.raises(UnsupportedOp, match="no rule for the difference of GRU"):
        Explainer(MODELS / "digits_gru/1/model.onnx", "deep_lift")


def test_a_composite_of_differences_is_for_methods_that_have_a_baseline():
    with pytest.raises(UsageError, match="composite reveal_cancel follows the difference from a baseline: use deep_"):
        Explainer(MODELS / "iris_mlp/1/model.onnx", "lrp", composite="reveal_cancel")


def test_a_classifier_of_scikit_learn_sums_to_the_change_of_its_probability():
    explainer = Explainer(MODELS / "bc_logreg/1/model.onnx", "deep_lift", baseline=0.0)
    x = sample("bc_logreg")
    (entry,) = explainer.subject.inputs
    check_summation(explainer, {entry.name: x}, {entry.name: np.zeros_like(x)}, rel=1e-4)


def test_references_are_fed_to_a_graph_or_by_a_method_that_has_them():
    iris = Subject.of(MODELS / "iris_mlp/1/model.onnx")
    with pytest.raises(UsageError, match="baseline=input is fed references, which explain"):
        Explainer(iris, "deep_lift", baseline="input").explain(normal(1, 4))
    with pytest.raises(UsageError, match="integrated_gradients feeds no references"):
        Recipe("integrated_gradients", base=Recipe("deep_lift", {"baseline": "input"}))
    with pytest.raises(UsageError, match="gradient compares with nothing: give deep_lift or deep_lift_reveal_cancel"):
        named("deep_lift_shap-gradient")
    assert named("deep_lift_shap-deep_lift_reveal_cancel").base == Recipe(
        "deep_lift_reveal_cancel", {"baseline": "input"}
    )


@pytest.mark.parametrize("base", RULES)
@pytest.mark.parametrize("name", ["digits_cnn", "iris_mlp"])
def test_deep_lift_shap_is_the_mean_over_the_background_and_sums_to_the_change_from_its_mean_score(name, base):
    subject = Subject.of(MODELS / name / "1/model.onnx")
    (entry,) = subject.inputs
    shape = subject.normalised.reference.feeds[entry.name].shape[1:]
    x, background = normal(2, *shape, seed=1), normal(40, *shape, seed=2)  # more rows than one run takes
    found = Explainer(subject, "deep_lift_shap", base=base, background=background).explain(x, 0)
    scores, usual = (subject.forward({entry.name: v}, [found.explained])[found.explained] for v in (x, background))
    difference = (scores[:, 0] - usual[:, 0].mean()).astype(np.float64)
    np.testing.assert_allclose(sums(found, 2)[0], difference, rtol=1e-4, atol=1e-4)  # float32


def test_deep_lift_shap_of_one_number_is_deep_lift():
    iris = Subject.of(MODELS / "iris_mlp/1/model.onnx")
    x = normal(3, 4)
    several = Explainer(iris, "deep_lift_shap", baseline=0.5).explain(x, [0, 2]).relevance
    np.testing.assert_allclose(several, Explainer(iris, "deep_lift", baseline=0.5).explain(x, [0, 2]).relevance, 1e-5)
