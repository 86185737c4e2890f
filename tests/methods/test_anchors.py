"""Anchors: rules of models that are rules, precision and coverage counted by hand, the bounds of KL-LUCB."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from nets import net, normal, relu_net, repository
from tree_ensembles import by_ids

from onnxplain import Explainer
from onnxplain.errors import UsageError
from onnxplain.methods.anchor_search import Candidate, bounds, divergence
from onnxplain.methods.predicates import Predicates
from onnxplain.methods.tables import TableRow
from onnxplain.methods.tensors import Tensors

ROWS = np.random.default_rng(0).normal(0, 1, (400, 4)).astype(np.float32)
COLUMNS = ["age", "income", "debt", "years"]


def saved(model: onnx.ModelProto, folder: Path) -> str:
    path = folder / "m.onnx"
    onnx.save(model, path)
    return str(path)


@pytest.fixture
def rule(tmp_path):
    """Class 1 where x0 > 0 and x1 <= 0.3, else class 0."""
    nodes = [
        {"feature": 0, "mode": "LEQ", "value": 0.0, "true": 1, "false": 2}, {},
        {"feature": 1, "mode": "LEQ", "value": 0.3, "true": 3, "false": 4}, {}, {},
    ]  # fmt: skip
    leaves = [{1: {0: 1.0, 1: 0.0}, 3: {0: 0.0, 1: 1.0}, 4: {0: 1.0, 1: 0.0}}]
    model = by_ids("TreeEnsembleRegressor", [[{"rows": 1} | node for node in nodes]], leaves, 4, 2)
    return saved(model, tmp_path)


def anchored(path, x, target="predicted", **options):
    options = {"background": ROWS, "columns": COLUMNS, "kind": "classification"} | options
    return Explainer(path, "anchors", labels=["no", "yes"], **options).explain(np.asarray([x], np.float32), target)


def said(found) -> str:
    return next(note for note in found.notes if "precision" in note and "coverage" in note)


def test_the_anchor_of_a_rule_is_that_rule_at_the_nearest_quantiles(rule):
    """Inside its corner both columns are needed: age above the median, income below a quartile that is under 0.3."""
    found = anchored(rule, [1.0, -1.0, 0.0, 0.0])
    changed = found.relevance[0] != 0
    assert changed.tolist() == [True, True, False, False]
    low = float(said(found).split("age > ")[1].split(" ")[0])
    assert 0.45 < (low >= ROWS[:, 0]).mean() < 0.8  # the median, or the quartile above it: there x0 > 0
    assert "income <= " in said(found) and "then yes" in said(found)


def test_relevance_sums_to_the_precision_that_the_rule_has_over_no_rule(rule):
    found = anchored(rule, [1.0, -1.0, 0.0, 0.0])
    base = ((ROWS[:, 0] > 0) & (ROWS[:, 1] <= 0.3)).mean()
    total = found.relevance.sum()
    assert abs(total - (1 - base)) < 0.15  # of 100 rows for the empty rule: three standard errors
    precision = float(said(found).split("precision ")[1].split(" ")[0])
    assert precision >= 0.95 and total <= precision


def test_precision_and_coverage_are_those_of_the_background(rule):
    """Counted over all rows: with x0 anchored to where it decides alone, the decision is always the same."""
    found = anchored(rule, [-1.0, 0.0, 0.0, 0.0])
    assert (found.relevance[0, 1:] == 0).all() and found.relevance[0, 0] > 0
    words = said(found)
    edge = float(words.split("age <= ")[1].split(":")[0])
    coverage = float(words.split("coverage ")[1].rstrip(")"))
    np.testing.assert_allclose(coverage, (ROWS[:, 0] <= edge).mean(), atol=6e-4)  # three digits
    assert edge <= 0.05 and "precision 1.000" in words and "then no (" in words


def test_a_decision_that_is_always_the_same_needs_no_rule(tmp_path):
    text = "g (float[N, 4] x) => (float[N, 2] y) { z = MatMul (x, w) y = Add (z, b) }"
    path = saved(net(text, w=np.zeros((4, 2), np.float32), b=np.array([0, 1], np.float32)), tmp_path)
    found = anchored(path, [0, 0, 0, 0])
    assert not found.relevance.any() and "whatever the row: then yes (precision 1.000" in said(found)


def test_of_a_target_that_is_not_predicted_the_rule_says_that_it_is_not(rule):
    found = anchored(rule, [-1.0, 0.0, 0.0, 0.0], "yes")
    assert "then not yes" in said(found)


def test_no_precise_rule_is_said(tmp_path):
    """Parity of signs of columns that no quantile can fix: a sine too fast for any bin."""
    text = "g (float[N, 4] x) => (float[N, 2] y) { f = Mul (x, big) s = Sin (f) y = MatMul (s, w) }"
    w = np.array([[0, 1], [0, 0], [0, 0], [0, 0]], np.float32)
    path = saved(net(text, w=w, big=np.float32(500).reshape(())), tmp_path)
    found = anchored(path, [0.1, 0, 0, 0], samples=1000, longest=2)
    assert any("no rule with a precision of 0.95 was found" in note for note in found.notes)


def test_a_random_seed_gives_the_same_rule_twice(rule):
    first, again = (anchored(rule, [1.0, -1.0, 0, 0], random_seed=3) for _ in range(2))
    assert first.notes == again.notes
    np.testing.assert_array_equal(first.relevance, again.relevance)


def test_flowers_are_told_by_their_petals():
    """Each rule, counted on the rows themselves: of those that fulfil it nearly all have the class it says."""
    archive = np.load(repository("iris_mlp").parents[1] / "samples" / "flowers.npz")
    x = np.asarray(archive[archive.files[0]], np.float32)
    rng = np.random.default_rng(0)
    background = np.concatenate([x + rng.normal(0, 0.3, x.shape).astype(np.float32) for _ in range(20)])
    found = Explainer(repository("iris_mlp"), "anchors", background=background, kind="classification").explain(x)
    assert (found.relevance.reshape(len(x), -1).sum(1) > 0.2).all()
    assert sum("coverage" in note for note in found.notes) >= 3


def test_rows_are_drawn_from_those_that_fulfil_the_rule_and_from_all_in_the_other_columns():
    rows, x = ROWS.astype(np.float64), np.array([[0.5, -0.5, 0.2, 0.0]], np.float32)
    table = TableRow(Tensors({"x": x}), tuple(COLUMNS))
    rules = Predicates.of(table, rows, 4, np.random.default_rng(0))
    assert len(rules.column) == 12
    for n in range(12):  # what x fulfils
        value = x[0, rules.column[n]]
        assert (value > rules.edge[n]) if rules.above[n] else (value <= rules.edge[n])
    rule = [n for n in range(12) if rules.column[n] == 0]
    drawn = rules.draw(rule, 4000)
    assert all(((drawn[:, 0] > rules.edge[n]) == rules.above[n]).all() for n in rule)
    np.testing.assert_allclose(drawn[:, 1:].mean(0), rows[:, 1:].mean(0), atol=0.06)  # four standard errors
    np.testing.assert_allclose(drawn[:, 1:].std(0), rows[:, 1:].std(0), atol=0.06)


def test_bounds_are_where_the_divergence_reaches_the_level():
    arms = [Candidate((), (), 100, hits) for hits in (0, 10, 50, 97, 100)]
    low, high = bounds(arms, 3.0)
    for arm, down, up in zip(arms, low, high, strict=True):
        assert down <= arm.precision <= up
        for end in (down, up):
            if 0 < end < 1 and end != arm.precision:
                np.testing.assert_allclose(100 * divergence(np.float64(arm.precision), np.float64(end)), 3.0, rtol=1e-3)
    assert low[0] == 0 and high[-1] == 1 and high[0] == pytest.approx(1 - np.exp(-0.03), rel=1e-4)


def test_what_cannot_be_is_one_line(rule, tmp_path):
    with pytest.raises(UsageError, match="anchors: no background is given"):
        Explainer(rule, "anchors")
    with pytest.raises(UsageError, match="method anchors is for tables"):
        pictures = normal(4, 2, 6, 6)
        Explainer(saved(relu_net(), tmp_path), "anchors", background=pictures).explain(pictures[:1])


def test_an_edge_is_the_shortest_number_between_two_neighbours():
    rows = np.array([[1.5], [1.50001], [1.7], [2.123456], [2.2]])
    table = TableRow(Tensors({"x": np.array([[1.6]], np.float32)}), ("x",))
    rules = Predicates.of(table, rows, 5, np.random.default_rng(0))
    assert all(float(f"{edge:.9g}") == edge for edge in rules.edge)  # as the note writes it
    parts = [(rows[:, 0] > edge).sum() for edge in rules.edge]
    assert parts == sorted(set(parts), reverse=True) and 1.5 in rules.edge
    for edge, fulfilled, above in zip(rules.edge, rules.fulfilled, rules.above, strict=True):
        assert ((rows[:, 0] > edge) == (fulfilled == above)).all()
