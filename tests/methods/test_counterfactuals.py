"""Counterfactuals: the model decides otherwise, linear models and trees by closed form, what may change, words."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import pytest
from nets import in_batches_of, net, normal, relu_net, repository, sample
from tree_ensembles import by_ids

from onnxplain import Explainer
from onnxplain.errors import UsageError
from onnxplain.methods import METHODS as REGISTRY
from onnxplain.methods import of_family
from onnxplain.subject import Subject

METHODS = ["counterfactual", "growing_spheres"]
IRIS = ["sepal length (cm)", "sepal width (cm)", "petal length (cm)", "petal width (cm)"]
W, B = np.array([0.5, -2.0, 1.0, 0.1]), -1.0


@functools.cache
def subject(name: str) -> Subject:
    return Subject.of(repository(name))


def saved(model: onnx.ModelProto, folder) -> str:
    path = folder / "m.onnx"
    onnx.save(model, path)
    return str(path)


def linear(folder) -> str:
    """Two classes with scores 0 and W x + B."""
    text = "g (float[N, 4] x) => (float[N, 2] y) { z = MatMul (x, w) y = Add (z, b) }"
    w, b = np.stack([0 * W, W], 1).astype(np.float32), np.array([0, B], np.float32)
    return saved(net(text, w=w, b=b), folder)


def after(subject_: Subject, x: np.ndarray, found) -> np.ndarray:
    """The classes where the changes are made."""
    scores = subject_.forward({subject_.inputs[0].name: x + found.relevance})[found.explained]
    return scores.reshape(len(x), -1).argmax(1)


@pytest.mark.parametrize("model", ["iris_mlp", "bc_logreg"])
@pytest.mark.parametrize("name", METHODS)
def test_the_model_itself_decides_otherwise_once_the_changes_are_made(name, model):
    s = subject(model)
    x = np.load(next(repository(model).parents[1].glob("samples/*.npz")))
    x = np.asarray(x[x.files[0]], np.float32)[:6]
    found = Explainer(s, name).explain(x)
    before = found.scores.reshape(len(x), -1).argmax(1)
    assert (after(s, x, found) != before).all() and (found.relevance != 0).any(1).all()
    assert not any("no counterfactual" in note for note in found.notes)


@pytest.mark.parametrize("name", METHODS)
def test_a_target_that_is_not_predicted_is_what_is_looked_for_and_so_is_a_class_that_is_named(name):
    s, x = subject("iris_mlp"), sample("iris_mlp")
    for target in range(3):
        found = Explainer(s, name).explain(x, target)
        predicted = found.scores.argmax(1)
        others = predicted != target
        assert (after(s, x, found)[others] == target).all() and (after(s, x, found)[~others] != target).all()
        named = Explainer(s, name, to=target).explain(x)
        assert (after(s, x, named) == target).all()
        assert not named.relevance[~others].any() and named.relevance[others].any(1).all()
        assert (~others).any() == any("already: nothing has to change" in note for note in named.notes)


@pytest.mark.parametrize("name, tolerance", [("counterfactual", 0.01), ("growing_spheres", 0.35)])
def test_of_a_linear_model_the_column_changes_that_closes_the_gap_at_the_least_cost(name, tolerance, tmp_path):
    """The L1 nearest point of the plane W x + B = 0 moves the column of largest |W| scale, by -(W x + B) / W.

    Growing spheres are random; its distance is at most so much larger.
    """
    path, x = linear(tmp_path), normal(5, 4, seed=2)
    scale = [1.0, 0.2, 3.0, 1.0]
    best = int(np.abs(W * scale).argmax())
    found = Explainer(path, name, scale=scale).explain(x)
    gaps = x @ W + B
    expected = np.abs(gaps / W[best]) / scale[best]
    distances = (np.abs(found.relevance) / scale).sum(1)
    assert (distances >= expected * 0.999).all() and (distances <= expected * (1 + tolerance)).all()
    if name == "counterfactual":
        assert not np.delete(found.relevance, best, 1).any()


def trees(folder) -> str:
    """Class 1 where x0 > 2 and x1 <= 5, else class 0."""
    nodes = [
        {"feature": 0, "mode": "LEQ", "value": 2.0, "true": 1, "false": 2, "missing": 1}, {},
        {"feature": 1, "mode": "LEQ", "value": 5.0, "true": 3, "false": 4, "missing": 1}, {}, {},
    ]  # fmt: skip
    leaves = [{1: {0: 1.0, 1: 0.0}, 3: {0: 0.0, 1: 1.0}, 4: {0: 1.0, 1: 0.0}}]
    return saved(by_ids("TreeEnsembleRegressor", [[{"rows": 1} | node for node in nodes]], leaves, 3, 2), folder)


def test_of_a_tree_the_change_goes_just_over_the_nearest_threshold(tmp_path):
    path = trees(tmp_path)
    x = np.array([[1, 1, 7], [2.5, 4.0, 7], [3, 5.2, 7], [1.5, 5.1, 7]], np.float32)
    found = Explainer(path, "growing_spheres", scale=1.0, kind="classification").explain(x)
    expected = [[1, 0, 0], [-0.5, 0, 0], [0, -0.2, 0], [0.5, -0.1, 0]]
    np.testing.assert_allclose(found.relevance, expected, atol=0.02)  # a 1024th of the change, then in few digits
    assert (after(Subject.of(path), x, found) != found.scores.argmax(1)).all()


@pytest.mark.parametrize("name", METHODS)
def test_what_may_not_change_does_not(name, tmp_path):
    path, x = linear(tmp_path), np.array([[1.0, 1, 1, 1]], np.float32)  # the score is -1.4
    ask = lambda **o: Explainer(path, name, scale=1.0, **o).explain(x)  # noqa: E731
    found = ask(fixed=[1]).relevance[0]
    assert found[1] == 0 and (x[0] + found) @ W + B > 0
    found = ask(low=[-9, 0.8, -9, -9]).relevance[0]
    assert found[1] >= -0.2 - 1e-6 and (x[0] + found) @ W + B > 0
    found = ask(whole=[1]).relevance[0]
    assert found[1] == np.round(found[1]) and (x[0] + found) @ W + B > 0
    coded = np.array([[1, 0, 1, 0]], np.float32)  # columns 0 and 1, and 2 and 3: -0.5 + 1 = 0.5 over 0
    found = Explainer(path, name, scale=1.0, one_hot=[1, 1, 2, 2]).explain(coded).relevance + coded
    assert set(found[0]) == {0.0, 1.0} and found[0, :2].sum() == found[0, 2:].sum() == 1
    background = np.random.default_rng(0).uniform([0, 0.9, 0.9, 0.9], [9, 1, 1, 1], (50, 4)).astype(np.float32)
    found = Explainer(path, name, background=background).explain(x).relevance + x
    assert (found <= np.maximum(background.max(0), x) + 1e-6).all() and (found @ W + B > 0).all()


@pytest.mark.parametrize("name", METHODS)
def test_none_found_is_said_and_nothing_changes(name, tmp_path):
    path, x = linear(tmp_path), np.array([[1.0, 1, 1, 1]], np.float32)
    found = Explainer(path, name, fixed=[0, 1, 2, 3], labels=["no", "yes"]).explain(x)
    assert not found.relevance.any()
    assert any("no counterfactual was found, so all changes are 0: nothing is yes" in note for note in found.notes)


@pytest.mark.parametrize("name", METHODS)
def test_the_change_is_said_in_the_names_of_columns_and_classes(name):
    labels = ["setosa", "versicolor", "virginica"]
    x = sample("iris_mlp")[:1]
    found = Explainer(subject("iris_mlp"), name, columns=IRIS, labels=labels).explain(x)
    (note,) = [note for note in found.notes if note.startswith(f"{name}: change ")]
    changed = [column for column, change in zip(IRIS, found.relevance[0], strict=True) if change]
    assert all(f"{column} from " in note for column in changed) and "(cm) to" not in note
    predicted = labels[found.scores[0].argmax()]
    assert note.endswith(f", not {predicted}") and any(f"then it is {label}, " in note for label in labels)
    plain = Explainer(subject("iris_mlp"), name).explain(x)
    assert any("X[" in note and "class " in note for note in plain.notes)


@pytest.mark.parametrize("name", METHODS)
def test_a_lone_score_is_decided_by_a_threshold(name, tmp_path):
    text = "g (float[N, 4] x) => (float[N, 1] y) { y = MatMul (x, w) }"
    path, x = saved(net(text, w=W[:, None].astype(np.float32)), tmp_path), np.array([[1.0, 1, 1, 1]], np.float32)
    with pytest.raises(UsageError, match="the model has one score: say by threshold"):
        Explainer(path, name).explain(x)
    found = Explainer(path, name, threshold=3.0, scale=1.0).explain(x)
    assert (x + found.relevance) @ W > 3 and any("then it is a score above 3, not" in note for note in found.notes)
    back = Explainer(path, name, threshold=-2.0, scale=1.0).explain(x)
    assert (x + back.relevance) @ W <= -2


@pytest.mark.parametrize("name", METHODS)
def test_several_inputs_are_the_columns_of_one_table(name, tmp_path):
    text = """g (float[N, 1] age, float[N, 2] rest) => (float[N, 2] y) {
        all = Concat <axis = 1> (age, rest) y = MatMul (all, w)
    }"""
    path = saved(net(text, w=np.array([[0, 1], [0, 0.1], [0, 0.1]], np.float32)), tmp_path)
    feeds = {"age": np.array([[-1.0]], np.float32), "rest": np.array([[0.5, 0.5]], np.float32)}
    found = Explainer(path, name, scale=1.0).explain(feeds)
    assert found.relevances["age"][0, 0] > 0.8 and any("change age from -1 to" in note for note in found.notes)


@pytest.mark.parametrize(
    "options, says",
    [
        ({"fixed": [9]}, "fixed: 9 is no column; they are counted from 0 to 3"), ({"to": 7}, "there is no class 7"),
        ({"scale": [1.0, 2.0]}, "scale has 2 numbers, and the row 4 columns"), ({"threshold": 1.0}, "has 2 classes"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", METHODS)
def test_what_cannot_be_is_one_line(name, options, says, tmp_path):
    with pytest.raises(UsageError, match=says):
        Explainer(linear(tmp_path), name, **options).explain(normal(1, 4))


@pytest.mark.parametrize("name", METHODS)
def test_pictures_contrasts_and_other_bases_are_refused(name, tmp_path):
    with pytest.raises(UsageError, match=rf"method {name} is for tables"):
        Explainer(saved(relu_net(), tmp_path), name).explain(normal(1, 2, 6, 6))
    with pytest.raises(UsageError, match="a decision is for one class"):
        Explainer(linear(tmp_path), name, labels=["a", "b"]).explain(normal(1, 4), "a vs b")
    if name == "counterfactual":
        with pytest.raises(UsageError, match="its base is gradient, no other"):
            Explainer(linear(tmp_path), name, base="lrp").explain(normal(1, 4))


@pytest.mark.parametrize("name", METHODS)
def test_a_row_is_explained_alike_in_any_company(name):
    x = sample("iris_mlp")
    explainer = Explainer(subject("iris_mlp"), name)
    alone = np.concatenate([explainer.explain(x[n : n + 1]).relevance for n in range(len(x))])
    np.testing.assert_array_equal(alone, explainer.explain(x).relevance)


@pytest.mark.parametrize("name", [name for name in of_family("looped", "forward-only") if REGISTRY[name].of_tables])
@pytest.mark.parametrize("rows", [1, 7])
def test_a_method_for_tables_answers_alike_wherever_its_batches_are_cut(name, rows, monkeypatch):
    x = sample("iris_mlp")
    background = {"background": x} if REGISTRY[name].background == "required" else {}
    explainer = Explainer(subject("iris_mlp"), name, **background)
    in_batches_of(32, monkeypatch)
    whole = explainer.explain(x)
    in_batches_of(rows, monkeypatch)
    found = explainer.explain(x)
    np.testing.assert_array_equal(found.relevance, whole.relevance)
    assert found.notes == whole.notes
