"""tree_shap on whole models: what is in front of the trees, behind them, around them; what is refused and how."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from tree_ensembles import by_ids, ensemble, random_weights, regressor, table, tree

from onnxplain import Explainer
from onnxplain.errors import UnsupportedModel, UsageError
from onnxplain.subject import Subject

ML = "ai.onnx.ml"
F = 4


def saved(model: onnx.ModelProto, folder, name: str = "m.onnx") -> str:
    onnx.save(model, folder / name)
    return str(folder / name)


def around(model: onnx.ModelProto, front=(), behind=(), inputs=None, **constants: np.ndarray) -> onnx.ModelProto:
    """The trees with nodes before their input x and behind their output y; the last of them makes `out`."""
    graph = model.graph
    if front:
        del graph.input[:]
        sizes = inputs or {"raw": F}
        graph.input.extend(helper.make_tensor_value_info(n, 1, ["N", size]) for n, size in sizes.items())
    if behind:
        del graph.output[:]
        graph.output.append(helper.make_tensor_value_info("out", 1, None))
    nodes = [*front, *graph.node, *behind]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    return model


def classifier(post_transform: str = "SOFTMAX", labels: int = 3, seed: int = 0) -> onnx.ModelProto:
    rng = np.random.default_rng(seed)
    trees = [tree(rng, F, 3) for _ in range(6)]
    weights = random_weights(rng, trees, list(range(labels)))
    return by_ids("TreeEnsembleClassifier", trees, weights, F, labels, post_transform=post_transform)


def scores(path: str, feeds: dict[str, np.ndarray], name: str = "y") -> np.ndarray:
    return Subject.of(path).forward(feeds)[name].astype(np.float64)


def clean(rows: int, features: int = F, seed: int = 0) -> np.ndarray:
    return table(np.random.default_rng([seed, 7]), rows, features, missing=0.0)


X = clean(12)
CLOSE = {"rtol": 1e-4, "atol": 1e-5}  # onnxruntime adds up float32


def changes(path: str, x: np.ndarray, baseline: np.ndarray, name: str = "y") -> np.ndarray:
    """F(x) - mean F(baseline) by onnxruntime, (rows, scores)."""
    (key,) = (spec.name for spec in Subject.of(path).inputs)
    return scores(path, {key: x}, name) - scores(path, {key: baseline.astype(np.float32)}, name).mean(0)


# -- the answer ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 12])
@pytest.mark.parametrize("baseline", [0.0, 0.3, [0.1, -0.2, 0.3, 0.6], clean(3, seed=1)])
def test_values_sum_to_the_change_of_the_score_from_the_baseline(baseline, rows, tmp_path):
    path = saved(regressor(np.random.default_rng(0), F, scores=2), tmp_path)
    several = {"baseline": "background", "background": baseline} if np.ndim(baseline) == 2 else {"baseline": baseline}
    found = Explainer(path, "tree_shap", **several).explain(X[:rows], [0, 1])
    flat = np.asarray(baseline).reshape(-1)
    z = np.full((1, F), flat[0]) if flat.size == 1 else flat.reshape(-1, F)
    expected = changes(path, X[:rows], z)
    assert found.relevance.shape == (2 * rows, F) and found.relevance.dtype == np.float32
    np.testing.assert_allclose(found.relevance.sum(1), np.concatenate([expected[:, 0], expected[:, 1]]), **CLOSE)


def test_rows_with_targets_of_their_own_get_the_values_of_these(tmp_path):
    """`predicted` is another class for each row, and 'A vs B' a difference of scores."""
    path = saved(classifier("NONE"), tmp_path)
    explainer = Explainer(path, "tree_shap", baseline=0.2)
    by_class = explainer.explain(X, [0, 1, 2]).relevance.reshape(3, len(X), F)
    best = scores(path, {"x": X}).argmax(1)
    assert len(set(best)) > 1
    predicted, against = explainer.explain(X, "predicted").relevance, explainer.explain(X, "2 vs 0").relevance
    np.testing.assert_allclose(predicted, by_class[best, np.arange(len(X))], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(against, by_class[2] - by_class[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("transform", ["SOFTMAX", "LOGISTIC"])
def test_what_the_node_makes_probabilities_of_is_explained_in_front_of_that(transform, tmp_path):
    raw, path = saved(classifier("NONE"), tmp_path, "raw.onnx"), saved(classifier(transform), tmp_path)
    found = Explainer(path, "tree_shap").explain(X, 1)
    np.testing.assert_allclose(found.relevance, Explainer(raw, "tree_shap").explain(X, 1).relevance, rtol=1e-6)
    assert any(f"answers {transform} of the sum of its trees: the sum is explained" in note for note in found.notes)
    np.testing.assert_allclose(found.relevance.sum(1), changes(raw, X, np.zeros((1, F)))[:, 1], **CLOSE)


def test_missing_values_are_explained(tmp_path):
    """As trees treat them: the relevance of a feature that is missing may be anything but NaN."""
    path = saved(regressor(np.random.default_rng(0), F), tmp_path)
    x = table(np.random.default_rng(1), 30, F, missing=0.3)
    found = Explainer(path, "tree_shap").explain(x, 0).relevance
    assert np.isnan(x).any() and np.isfinite(found).all()
    np.testing.assert_allclose(found.sum(1), changes(path, x, np.zeros((1, F)))[:, 0], **CLOSE)


def test_more_rows_than_are_taken_at_once_get_the_same_and_progress_rises(tmp_path, monkeypatch):
    path, told = saved(regressor(np.random.default_rng(0), F), tmp_path), []
    whole = Explainer(path, "tree_shap").explain(X, 0).relevance
    monkeypatch.setattr("onnxplain.loops.TREE_ROWS", 5)
    cut = Explainer(path, "tree_shap").explain(X, 0, progress=lambda *now: told.append(now)).relevance
    np.testing.assert_allclose(cut, whole, rtol=1e-6, atol=1e-7)
    assert told == [(5, 12), (10, 12), (12, 12)]

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Explainer(path, "tree_shap").explain(X, 0, progress=stop)


@pytest.mark.parametrize("opset", [1, 3, 5])
def test_every_version_of_the_op_is_explained(opset, tmp_path):
    rng = np.random.default_rng(0)
    trees = [tree(rng, F, 4) for _ in range(4)]
    weights = random_weights(rng, trees, [0])
    model = (
        ensemble(trees, weights, F, 1)
        if opset == 5
        else by_ids("TreeEnsembleRegressor", trees, weights, F, 1, opset=opset)
    )
    path = saved(model, tmp_path)
    found = Explainer(path, "tree_shap").explain(X, 0).relevance
    np.testing.assert_allclose(found.sum(1), changes(path, X, np.zeros((1, F)))[:, 0], **CLOSE)


# -- what is in front and behind -------------------------------------------------------------------------------------


def node(op_type: str, inputs: list[str], output: str, domain: str = "", **attributes) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs, [output], name=f"{op_type.lower()}_{output}", domain=domain, **attributes)


FRONTS = {
    "scaler": [node("Scaler", ["raw"], "x", ML, offset=[0.1, 0.2, 0.0, 0.0], scale=[2.0, 0.5, 1.0, -1.0])],
    "imputer": [node("Imputer", ["raw"], "x", ML, imputed_value_floats=[0.5], replaced_value_float=float("nan"))],
    "standardised": [node("Sub", ["raw", "c"], "s"), node("Div", ["s", "d"], "x")],
    "cast": [node("Cast", ["raw"], "wide", to=11), node("Cast", ["wide"], "x", to=1)],
    "picked": [node("Gather", ["raw", "order"], "x", axis=1)],
    "extracted": [node("ArrayFeatureExtractor", ["raw", "order"], "x", ML)],
    "twice": [node("Scaler", ["raw"], "s", ML, offset=[0.0], scale=[3.0]), node("Gather", ["s", "twos"], "t", axis=1),
              node("Gather", ["raw", "twos"], "u", axis=1), node("Concat", ["t", "u"], "x", axis=1)],
}  # fmt: skip
CONSTANTS = {
    "c": np.array([[0.1, 0.0, -0.3, 0.2]], np.float32), "d": np.array([2.0, 1.0, 0.5, 4.0], np.float32),
    "order": np.array([3, 1, 0, 2]), "twos": np.array([0, 2]),
}  # fmt: skip


@pytest.mark.parametrize("front", FRONTS)
def test_steps_that_take_each_column_by_itself_are_gone_through(front, tmp_path):
    """Against all coalitions, by onnxruntime on the whole model."""
    read = {name for step in FRONTS[front] for name in step.input}
    constants = {name: array for name, array in CONSTANTS.items() if name in read}
    path = saved(around(regressor(np.random.default_rng(0), F), FRONTS[front], **constants), tmp_path)
    x, z = X[:5], np.array([0.2, -0.1, 0.4, 0.0], np.float32)
    found = Explainer(path, "tree_shap", baseline=list(map(float, z))).explain(x, 0).relevance
    np.testing.assert_allclose(found, all_coalitions(path, x, z), rtol=1e-4, atol=1e-5)


def all_coalitions(path: str, x: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Shapley values from orders of the features: every one of the F! of them."""
    from itertools import permutations

    total, orders = np.zeros(x.shape), list(permutations(range(F)))
    for order in orders:
        point = np.repeat(z[None], len(x), 0)
        before = scores(path, {"raw": point})[:, 0]
        for feature in order:
            point[:, feature] = x[:, feature]
            after = scores(path, {"raw": point})[:, 0]
            total[:, feature] += after - before
            before = after
    return total / len(orders)


def test_columns_of_several_inputs_are_put_together(tmp_path):
    front = [node("Concat", ["a", "b"], "x", axis=1)]
    path = saved(around(regressor(np.random.default_rng(0), F), front, inputs={"a": 1, "b": 3}), tmp_path)
    whole = saved(regressor(np.random.default_rng(0), F), tmp_path, "whole.onnx")
    found = Explainer(path, "tree_shap").explain({"a": X[:, :1], "b": X[:, 1:]}, 0).relevances
    expected = Explainer(whole, "tree_shap").explain(X, 0).relevance
    np.testing.assert_allclose(np.concatenate([found["a"], found["b"]], 1), expected, rtol=1e-6)
    with pytest.raises(UnsupportedModel, match="b is read by the trees and not attributed to"):
        Explainer(path, "tree_shap", attribute_to="a").explain({"a": X[:, :1], "b": X[:, 1:]}, 0)


def test_sums_of_ensembles_and_their_scales_are_sums_of_trees(tmp_path):
    """As LightGBM's exporter splits large models: several nodes, added up in float64."""
    model, other = regressor(np.random.default_rng(0), F), regressor(np.random.default_rng(1), F)
    second = other.graph.node[0]
    second.name, second.output[0] = "more", "y2"
    behind = [
        second, node("Cast", ["y"], "d1", to=11), node("Cast", ["y2"], "d2", to=11), node("Add", ["d1", "d2"], "s"),
        node("Div", ["s", "two"], "h"), node("Add", ["h", "one"], "b"), node("Cast", ["b"], "out", to=1),
    ]  # fmt: skip
    path = saved(around(model, (), behind, two=np.array([2.0]), one=np.array([1.0])), tmp_path)
    found = Explainer(path, "tree_shap").explain(X, 0).relevance
    np.testing.assert_allclose(found.sum(1), changes(path, X, np.zeros((1, F)), "out")[:, 0], **CLOSE)
    parts = [saved(regressor(np.random.default_rng(n), F), tmp_path, f"{n}.onnx") for n in (0, 1)]
    halves = [Explainer(part, "tree_shap").explain(X, 0).relevance / 2 for part in parts]
    np.testing.assert_allclose(found, halves[0] + halves[1], rtol=1e-4, atol=1e-6)


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "front, behind, said",
    [
        ([node("Normalizer", ["raw"], "x", ML, norm="L2")], [], r"normalizer_x \(Normalizer\): it stands in front"),
        ([node("MatMul", ["raw", "w"], "x")], [], r"matmul_x \(MatMul\): it stands in front of the trees"),
        ([], [node("Exp", ["y"], "out")], r"exp_out \(Exp\): it stands between the trees and out"),
        ([], [node("Mul", ["y", "y"], "out")], r"mul_out \(Mul\): it stands between the trees and out"),
    ],
)
def test_what_is_no_sum_of_trees_over_single_columns_is_refused_by_name(front, behind, said, tmp_path):
    constants = {"w": np.eye(F, dtype=np.float32)[::-1].copy() + 1} if any("w" in step.input for step in front) else {}
    path = saved(around(regressor(np.random.default_rng(0), F), front, behind, **constants), tmp_path)
    with pytest.raises(UnsupportedModel, match=said):
        Explainer(path, "tree_shap").explain(X, 0)


def test_a_sum_behind_a_transform_is_refused(tmp_path):
    behind = [node("Mul", ["y", "two"], "out")]
    path = saved(around(classifier("SOFTMAX"), (), behind, two=np.array([2.0], np.float32)), tmp_path)
    with pytest.raises(UnsupportedModel, match="behind its SOFTMAX, which is no sum of trees"):
        Explainer(path, "tree_shap", explain="out").explain(X, 0)


def test_a_model_without_trees_is_refused(tmp_path):
    from nets import net

    path = saved(net("g (float[N, 4] x) => (float[N, 4] y) { y = Tanh (x) }"), tmp_path)
    with pytest.raises(UnsupportedModel, match=r"\(Tanh\): it stands between the trees and y"):
        Explainer(path, "tree_shap").explain(X, 0)


def test_trees_that_do_not_answer_what_the_model_answers_are_refused(tmp_path, monkeypatch):
    path = saved(regressor(np.random.default_rng(0), F), tmp_path)
    from onnxplain.trees import Trees

    right = Trees.scores
    monkeypatch.setattr(Trees, "scores", lambda trees, x: right(trees, x) + 1)
    with pytest.raises(UnsupportedModel, match="they are not read as the runtime computes them"):
        Explainer(path, "tree_shap").explain(X, 0)


def test_the_numbers_of_a_baseline_are_those_of_rows(tmp_path):
    path = saved(regressor(np.random.default_rng(0), F), tmp_path)
    with pytest.raises(UsageError, match=r"baseline has 6 numbers, and the model's inputs 4: give one or 4"):
        Explainer(path, "tree_shap", baseline=[0.0] * 6).explain(X, 0)


@pytest.mark.parametrize("covers", [True, False])
def test_path_dependent_values_need_counts_of_training_rows(covers, tmp_path):
    model = regressor(np.random.default_rng(0), F, covers=covers)
    explainer = Explainer(saved(model, tmp_path), "tree_shap", perturbation="path_dependent")
    if not covers:
        with pytest.raises(UnsupportedModel, match=r"needs nodes_hitrates, .* and it has none"):
            explainer.explain(X, 0)
        return
    found = explainer.explain(X, 0)
    means = found.scores[:, 0] - found.relevance.sum(1)  # the mean over the training rows, the same for all
    np.testing.assert_allclose(means, means[0], rtol=1e-4, atol=1e-5)
    ones = next(a for a in model.graph.node[0].attribute if a.name == "nodes_hitrates")
    ones.floats[:] = [1.0] * len(ones.floats)
    with pytest.raises(UnsupportedModel, match="those it has do not add up from children to parents"):
        Explainer(saved(model, tmp_path), "tree_shap", perturbation="path_dependent").explain(X, 0)
    with pytest.raises(UsageError, match="baseline is of perturbation=interventional"):
        Explainer(saved(model, tmp_path), "tree_shap", perturbation="path_dependent", baseline=1.0).explain(X, 0)


def test_a_classifier_as_exporters_write_it_by_default_is_explained(tmp_path):
    """An old opset, and a ZipMap behind the scores, whose type the raised model must not bring back."""
    behind = [helper.make_node("ZipMap", ["y"], ["out"], name="zip", domain=ML, classlabels_int64s=[0, 1, 2])]
    model = around(classifier("NONE"), (), behind)
    kind = helper.make_map_type_proto(1, helper.make_tensor_type_proto(1, None))
    kind.map_type.key_type = onnx.TensorProto.INT64
    label = helper.make_tensor_value_info("label", onnx.TensorProto.INT64, ["N"])
    del model.graph.output[:]
    model.graph.output.extend([label, helper.make_value_info("out", helper.make_sequence_type_proto(kind))])
    model.opset_import[0].version = 9
    path, plain = saved(model, tmp_path), saved(classifier("NONE"), tmp_path, "plain.onnx")
    found = Explainer(path, "tree_shap").explain(X, 1).relevance
    np.testing.assert_allclose(found, Explainer(plain, "tree_shap").explain(X, 1).relevance, rtol=1e-6)
