"""Trees as they are read against onnxruntime, and their Shapley values against all coalitions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from tree_ensembles import MODES, POSTS, by_ids, ensemble, random_weights, regressor, table, tree

from onnxplain.errors import UnsupportedModel
from onnxplain.frontend.tree_nodes import read_trees
from onnxplain.graph.node import Node
from onnxplain.trees import Trees, interventional, path_dependent
from onnxplain.trees.conjunctions import conjunctions
from onnxplain.trees.score import TRANSFORMS

CASES = 12
F = 4


def read(model: onnx.ModelProto) -> tuple[Trees, str]:
    return read_trees(Node.of(next(iter(ir.from_proto(model).graph))))


def answer(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["y"], {"x": x.astype(np.float64 if "double" in session.get_inputs()[0].type else np.float32)})[
        0
    ]


def values(trees: Trees, x: np.ndarray, background: np.ndarray, player: np.ndarray, seed=None) -> np.ndarray:
    seed = np.eye(len(trees.offset))[-1] if seed is None else seed
    return interventional(trees, conjunctions(trees, player), x, background, seed, int(player.max()) + 1)


def by_coalitions(worth: Callable[[frozenset[int]], np.ndarray], players: int) -> np.ndarray:
    """Shapley values from the definition, (rows, players). worth: of a coalition, (rows,)."""
    known = {s: worth(s) for k in range(players + 1) for s in map(frozenset, itertools.combinations(range(players), k))}
    found = []
    for i in range(players):
        share = [
            math.factorial(len(s)) * math.factorial(players - len(s) - 1) / math.factorial(players) * (v_with - v)
            for s, v in known.items()
            if i not in s and (v_with := known[s | {i}]) is not None
        ]
        found.append(np.sum(share, 0))
    return np.stack(found, 1)


# -- what is read ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", range(CASES))
@pytest.mark.parametrize("opset, double", [(1, False), (3, False), (3, True)])
def test_regressors_are_read_as_onnxruntime_computes_them(opset, double, case):
    rng = np.random.default_rng([case, opset, double])
    scores, modes = int(rng.integers(1, 4)), MODES if case % 2 else (str(rng.choice(MODES)),)
    aggregate = str(rng.choice(["SUM", "AVERAGE"]))
    base = rng.normal(size=scores) if case % 3 else None
    given = {"opset": opset, "double": double, "base": base, "aggregate_function": aggregate}
    model = regressor(rng, F, int(rng.integers(1, 8)), scores=scores, modes=modes, **given)
    x, (trees, transform) = table(rng, 60, F), read(model)
    assert transform == "NONE"
    np.testing.assert_allclose(trees.scores(x), answer(model, x), rtol=1e-5, atol=1e-5)  # float32 sums


@pytest.mark.parametrize("case", range(CASES))
@pytest.mark.parametrize("transform", POSTS)
@pytest.mark.parametrize("labels", [2, 3])
def test_classifiers_are_read_as_onnxruntime_computes_them(labels, transform, case):
    rng = np.random.default_rng([case, labels, POSTS.index(transform)])
    trees = [tree(rng, F, 3, MODES) for _ in range(4)]
    weights = random_weights(rng, trees, list(range(labels)), each=bool(case % 2) or labels == 2)
    base = rng.normal(size=labels) if case % 3 and labels > 2 else None
    model = by_ids(
        "TreeEnsembleClassifier", trees, weights, F, labels, 1 + case % 2 * 2, base=base, post_transform=transform
    )
    x, (found, named) = table(rng, 60, F), read(model)
    np.testing.assert_allclose(TRANSFORMS[named](found.scores(x)), answer(model, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", range(CASES))
@pytest.mark.parametrize("transform", POSTS)
@pytest.mark.parametrize("positive", [True, False])
def test_the_one_score_of_a_binary_classifier_becomes_two_as_in_onnxruntime(positive, transform, case):
    """A probability p is (1 - p, p), any other score is (-s, s); only LOGISTIC transforms them."""
    rng = np.random.default_rng([case, positive, POSTS.index(transform)])
    trees = [tree(rng, F, 3) for _ in range(4)]
    weights = random_weights(rng, trees, [0])
    if positive:
        weights = [{n: {0: abs(of[0])} for n, of in by_leaf.items()} for by_leaf in weights]
    base = rng.normal(size=1) if case % 2 and not positive else None
    model = by_ids("TreeEnsembleClassifier", trees, weights, F, 2, base=base, post_transform=transform)
    x, (found, named) = table(rng, 60, F), read(model)
    np.testing.assert_allclose(TRANSFORMS[named](found.scores(x)), answer(model, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", range(CASES))
@pytest.mark.parametrize("double", [False, True])
def test_ensembles_of_opset_5_are_read_as_onnxruntime_computes_them(double, case):
    rng = np.random.default_rng([case, double])
    trees = [tree(rng, F, 4, (*MODES, "MEMBER")) for _ in range(5)]
    scores = 1 + case % 3
    model = ensemble(
        trees, random_weights(rng, trees, list(range(scores)), each=False), F, scores, double,
        aggregate_function=case % 2, post_transform=0 if scores == 1 else case % 4,
    )  # fmt: skip
    x, (found, named) = table(rng, 60, F), read(model)
    np.testing.assert_allclose(TRANSFORMS[named](found.scores(x)), answer(model, x), rtol=1e-4, atol=1e-5)


def test_nodes_that_branches_share_are_read_and_explained():
    """As exporters write a set of categories: a chain of EQ with one true child."""
    rng = np.random.default_rng(0)
    nodes = [
        {"feature": 0, "mode": "EQ", "value": 0.0, "missing": 0, "true": 3, "false": 1, "rows": 1},
        {"feature": 0, "mode": "EQ", "value": 0.5, "missing": 0, "true": 3, "false": 2, "rows": 1},
        {"rows": 1},
        {"feature": 1, "mode": "LEQ", "value": 0.0, "missing": 0, "true": 4, "false": 5, "rows": 1},
        {"rows": 1},
        {"rows": 1},
    ]
    model = by_ids("TreeEnsembleRegressor", [nodes], random_weights(rng, [nodes], [0]), 2, 1)
    x, (trees, _) = table(rng, 60, 2), read(model)
    np.testing.assert_allclose(trees.scores(x), answer(model, x), rtol=1e-6)
    check_by_coalitions(trees, x[:9], x[9:11], np.arange(2))


@pytest.mark.parametrize(
    "change, said",
    [
        ({"aggregate_function": "MIN"}, "aggregate_function MIN takes one tree's answer for all"),
        ({"post_transform": "PROBIT"}, "post_transform PROBIT is not known here"),
        ({"nodes_modes": [b"BRANCH_ODD"]}, "nodes_modes has BRANCH_ODD"),
        ({"nodes_truenodeids": [99]}, "its attributes do not fit together"),
        ({"target_ids": [7]}, "its attributes do not fit together"),
        ({"target_weights": [0.5]}, "its attributes do not fit together"),
        ({"nodes_featureids": None}, "it has no nodes_featureids"),
    ],
)
def test_what_is_no_sum_of_trees_is_refused_by_name(change, said):
    model = regressor(np.random.default_rng(0), F, 1, 1)
    (name, value), node = *change.items(), model.graph.node[0]
    held = next((a for a in node.attribute if a.name == name), None)
    if isinstance(value, list) and held is not None and name != "target_weights":
        value = [*value, *onnx.helper.get_attribute_value(held)[1:]]
    if held is not None:
        node.attribute.remove(held)
    if value is not None:
        node.attribute.append(onnx.helper.make_attribute(name, value))
    with pytest.raises(UnsupportedModel, match=rf"trees \(TreeEnsembleRegressor\): {said}"):
        read(model)


def test_a_circle_of_branches_is_refused():
    nodes = [{"feature": 0, "mode": "LEQ", "value": 0.0, "true": 1, "false": 2, "rows": 1}]
    nodes += [{"feature": 1, "mode": "LEQ", "value": 0.0, "true": 0, "false": 2, "rows": 1}, {"rows": 1}]
    trees, _ = read(by_ids("TreeEnsembleRegressor", [nodes], [{2: {0: 1.0}}], 2, 1))
    with pytest.raises(UnsupportedModel, match="its branches run in a circle"):
        conjunctions(trees, np.arange(2))


# -- Shapley values --------------------------------------------------------------------------------------------------


def check_by_coalitions(trees: Trees, x: np.ndarray, background: np.ndarray, player: np.ndarray) -> None:
    seed = np.linspace(1, 2, len(trees.offset))

    def worth(coalition: frozenset[int]) -> np.ndarray:
        inside = np.isin(player, list(coalition))
        mixed = [np.where(inside, x, row) for row in background]
        return np.mean([trees.scores(rows) @ seed for rows in mixed], 0)

    expected = by_coalitions(worth, int(player.max()) + 1)
    np.testing.assert_allclose(values(trees, x, background, player, seed), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", range(CASES))
def test_interventional_values_are_those_of_all_coalitions(case):
    """With every mode, NaN, several scores, several background rows, and players that hold several features."""
    rng = np.random.default_rng(case)
    features = int(rng.integers(2, 8))
    trees, _ = read(regressor(rng, features, 4, 5, scores=1 + case % 2, modes=MODES if case % 2 else ("LEQ",)))
    rows = table(rng, 14, features)
    player = np.arange(features) if case % 3 else np.arange(features) // 2
    check_by_coalitions(trees, rows[:10], rows[10 : 11 + case % 4], player)


@pytest.mark.parametrize("case", range(CASES))
def test_path_dependent_values_are_those_of_all_coalitions(case):
    """A branch on a player outside the coalition is taken both ways, each by its share of the training rows."""
    rng = np.random.default_rng([case, 1])
    features = int(rng.integers(2, 7))
    trees, _ = read(regressor(rng, features, 4, 5, covers=True, modes=MODES))
    x, player = table(rng, 6, features), np.arange(features)
    decided, cover = trees.decisions(x), trees.cover
    assert cover is not None

    def below(node: int, row: int, coalition: frozenset[int]) -> float:
        if trees.true[node] < 0:
            return float(trees.weight[node, 0])
        true, false = int(trees.true[node]), int(trees.false[node])
        if trees.feature[node] in coalition:
            return below(true if decided[node, row] else false, row, coalition)
        both = cover[true] * below(true, row, coalition) + cover[false] * below(false, row, coalition)
        return float(both / (cover[true] + cover[false]))

    def worth(coalition: frozenset[int]) -> np.ndarray:
        return np.array([sum(below(int(root), row, coalition) for root in trees.roots) for row in range(len(x))])

    found = path_dependent(trees, conjunctions(trees, player), x, np.ones(1), features)
    np.testing.assert_allclose(found, by_coalitions(worth, features), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 1025])
def test_values_sum_to_the_change_of_the_score_for_any_number_of_rows(rows):
    """Efficiency to 1e-9 in float64, of deep trees with many features; a row's values do not depend on its company."""
    rng = np.random.default_rng(rows)
    trees, _ = read(regressor(rng, 20, 8, 9, scores=2, modes=MODES))
    x, background, player = table(rng, rows, 20), table(rng, 3, 20), np.arange(20)
    found = values(trees, x, background, player)
    change = trees.scores(x)[:, 1] - trees.scores(background)[:, 1].mean()
    np.testing.assert_allclose(found.sum(1), change, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found[-1:], values(trees, x[-1:], background, player), rtol=1e-9, atol=1e-12)


def test_a_feature_that_no_branch_asks_for_gets_nothing():
    rng = np.random.default_rng(0)
    trees, _ = read(regressor(rng, 3))
    x = table(rng, 20, 5)
    assert not values(trees, x, table(rng, 2, 5), np.arange(5))[:, 3:].any()


def test_features_that_trees_treat_alike_get_the_same():
    """Symmetry: every tree once more with features 0 and 1 exchanged, and rows in which these two are equal."""
    rng = np.random.default_rng(0)
    nodes = [tree(rng, F, 4) for _ in range(4)]
    swapped = [
        [{**n, "feature": {0: 1, 1: 0}.get(n["feature"], n["feature"])} if "mode" in n else n for n in of]
        for of in nodes
    ]
    for one, other in zip(nodes, swapped, strict=True):
        for a, b in zip(one, other, strict=True):
            b["missing"] = a.get("missing", 0)
    weights = random_weights(rng, nodes, [0])
    trees, _ = read(by_ids("TreeEnsembleRegressor", nodes + swapped, weights * 2, F, 1))
    x, z = table(rng, 30, F), table(rng, 3, F)
    x[:, 1], z[:, 1] = x[:, 0], z[:, 0]
    found = values(trees, x, z, np.arange(F))
    np.testing.assert_allclose(found[:, 0], found[:, 1], rtol=1e-9, atol=1e-12)
    assert found[:, 0].any()


def test_a_sum_of_stumps_gives_each_feature_its_own_change():
    """An additive model: R_i = f_i(x_i) - mean f_i(z_i)."""
    rng = np.random.default_rng(3)
    trees, _ = read(regressor(rng, F, 12, 1))
    x, z = table(rng, 20, F), table(rng, 5, F)
    expected = np.zeros((20, F))
    for root in trees.roots:

        def stump(rows, root=root):
            went = trees.decisions(rows)[root]
            return trees.weight[np.where(went, trees.true[root], trees.false[root]), 0]

        expected[:, trees.feature[root]] += stump(x) - stump(z).mean()
    np.testing.assert_allclose(values(trees, x, z, np.arange(F)), expected, rtol=1e-9, atol=1e-12)
