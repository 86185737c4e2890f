"""Prediction difference analysis: closed forms, what is drawn, and how far off it may be."""

from __future__ import annotations

import numpy as np
import pytest
from nets import in_batches_of, net, normal, relu_net
from test_perturbation import X, linear, saved

from onnxplain import Explainer
from onnxplain.errors import UsageError
from onnxplain.methods.conditional_sampler import Conditional, Marginal, shrunken
from onnxplain.methods.sliding_windows import all_windows
from onnxplain.methods.tensors import Tensors

NAME = "prediction_difference"
RAW = {"evidence": "difference", "probabilities": "score"}


def correlated(rows: int, width: int, seed: int = 0) -> np.ndarray:
    """Rows of a Gaussian whose columns go together."""
    return normal(rows, width, seed=seed) @ normal(width, width, seed=seed + 1) + normal(width, seed=seed + 2)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """softmax(x w + b) of 5 columns, and w, b."""
    w, b = normal(5, 3), normal(3, seed=4)
    text = "g (float[N, 5] x) => (float[N, 3] p) { z = MatMul (x, w) l = Add (z, b) p = Softmax <axis = 1> (l) }"
    return saved(net(text, w=w, b=b), tmp_path_factory.mktemp("m")), w.astype(np.float64), b.astype(np.float64)


def softmax(logits):
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


@pytest.mark.parametrize("evidence", ["odds", "information", "difference"])
def test_of_a_background_of_one_row_it_is_the_evidence_without_a_column_by_hand(classifier, evidence):
    path, w, b = classifier
    x, other, examples = normal(2, 5, seed=1), normal(1, 5, seed=2), 100
    options = {"evidence": evidence, "examples": examples, "sampling": "marginal", "samples": 2, "background": other}
    found = Explainer(path, NAME, **options).explain(x, 1).relevance

    def told(points):
        p = softmax(points @ w + b)[:, 1]
        if evidence == "difference":
            return p
        p = (p * examples + 1) / (examples + 3)
        return np.log2(p / (1 - p)) if evidence == "odds" else np.log2(p)

    for column in range(5):
        without = np.where(np.arange(5) == column, other, x)
        np.testing.assert_allclose(found[:, column], told(x) - told(without), rtol=1e-3, atol=1e-4)  # float32 scores


def test_marginal_sampling_of_a_linear_score_gives_the_difference_from_the_mean(tmp_path):
    path, w = linear(tmp_path)
    x, rows = normal(1, 5, seed=1), normal(200, 5, seed=2)
    options = {"sampling": "marginal", "samples": 500, "background": rows, **RAW}
    found = Explainer(path, NAME, **options).explain(x, 1)
    doubt = found.standard_errors["x"]
    expected = (x - rows.mean(0)) * w[:, 1]
    assert (np.abs(found.relevance - expected) < 4.5 * doubt).all()
    np.testing.assert_allclose(doubt, np.abs(rows.std(0) * w[:, 1])[None] / np.sqrt(500), rtol=0.2)


def test_conditional_sampling_expects_what_the_other_columns_tell(tmp_path):
    """The expectation of a column by least squares on the others, from the same rows."""
    path, w = linear(tmp_path)
    rows = correlated(4000, 5)
    x = rows[:1]
    found = Explainer(path, NAME, samples=400, background=rows, **RAW).explain(x, 1)
    for column in range(5):
        rest = np.column_stack([np.delete(rows, column, 1), np.ones(len(rows))])
        solution, *_ = np.linalg.lstsq(rest, rows[:, column], rcond=None)
        expected = float(np.append(np.delete(x[0], column), 1) @ solution)
        share = w[column, 1] * (x[0, column] - expected)
        doubt = found.standard_errors["x"][0, column]
        assert abs(found.relevance[0, column] - share) < 4.5 * doubt + 0.02 * abs(w[column, 1])  # shrinkage
        spread = (rows[:, column] - rest @ solution).std()
        np.testing.assert_allclose(doubt, abs(w[column, 1]) * spread / np.sqrt(400), rtol=0.2)


def test_a_window_of_a_picture_continues_its_surroundings():
    """Pictures of one slope each: what is drawn in the middle is the slope of what stands around, in any place."""
    at = np.arange(12, dtype=np.float32)
    slopes = normal(300, seed=3)
    rows = (slopes[:, None] * at + normal(300, 1, seed=4))[:, None, None] + 0.01 * normal(300, 1, 12, 12)
    x = (0.5 * at - 1)[None, None, None] + np.zeros((1, 1, 12, 12), np.float32)
    sampler = Conditional(rows, 2, np.random.default_rng(0))
    for _, window in all_windows(Tensors({"x": x}), 3, 3, 7):
        drawn = sampler.draw(x, window, 50, np.random.default_rng(1))
        np.testing.assert_allclose(drawn.mean(0), x[0][window], atol=0.1)
        assert drawn.std(0).max() < 0.3  # marginally 6: what is left is the shrinkage
    marginal = Marginal(rows).draw(x, window, 50, np.random.default_rng(1))
    assert marginal.shape == drawn.shape and marginal.std(0).max() > 1


@pytest.mark.parametrize("rows, width", [(5, 20), (4000, 6)])
def test_a_covariance_is_shrunken_as_far_as_rows_are_few(rows, width):
    data = correlated(rows, width).astype(np.float64)
    mean, covariance = shrunken(data)
    np.testing.assert_allclose(mean, data.mean(0))
    assert np.linalg.eigvalsh(covariance).min() > 0
    np.testing.assert_allclose(np.trace(covariance), data.var(0).sum(), rtol=1e-6)
    if rows > 1000:
        np.testing.assert_allclose(covariance, np.cov(data.T), atol=0.01 * np.abs(covariance).max())


def test_tokens_are_drawn_from_rows_of_tokens(tmp_path):
    text = """g (int64[N, 4] ids) => (float[N, 3] p) {
        e = Gather (t, ids) s = ReduceSum <keepdims = 0> (e, axis) p = Softmax <axis = 1> (s)
    }"""
    path = saved(net(text, t=normal(9, 3), axis=np.array([1])), tmp_path)
    ids, rows = np.array([[1, 2, 3, 4]]), np.array([[5, 6, 7, 8], [8, 0, 1, 2]])
    found = Explainer(path, NAME, sampling="marginal", background=rows).explain(ids, 1)
    assert found.relevance.shape == ids.shape and found.relevance.any()
    with pytest.raises(UsageError, match="ids has whole numbers, which no Gaussian draws"):
        Explainer(path, NAME, background=rows).explain(ids, 1)


@pytest.mark.parametrize("sampling", ["conditional", "marginal"])
def test_a_picture_is_explained_alike_in_any_company_and_any_cut(sampling, tmp_path, monkeypatch):
    options = {"background": normal(20, 2, 6, 6, seed=8), "sampling": sampling, "patch": 2, "samples": 7}
    explainer, told = Explainer(saved(relu_net(), tmp_path), NAME, **options), []
    whole = explainer.explain(X, 1, progress=lambda *now: told.append(now))
    assert told[-1] == (3 * 25 * 7, 3 * 25 * 7) and whole.relevance.shape == X.shape
    alone = np.concatenate([explainer.explain(X[n : n + 1], 1).relevance for n in range(3)])
    np.testing.assert_allclose(alone, whole.relevance, rtol=1e-3, atol=1e-4)
    for rows in (1, 5):
        in_batches_of(rows, monkeypatch)
        found = explainer.explain(X, 1)
        np.testing.assert_allclose(found.relevance, whole.relevance, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(found.standard_errors["x"], whole.standard_errors["x"], rtol=1e-2, atol=1e-4)


def test_what_does_not_fit_is_said(tmp_path):
    path, _ = linear(tmp_path)
    rows = normal(3, 5)
    with pytest.raises(UsageError, match="no background is given"):
        Explainer(path, NAME)
    raw = Explainer(path, NAME, probabilities="score", background=rows)
    with pytest.raises(UsageError, match="the explained scores are no probabilities"):
        raw.explain(normal(1, 5), 1)
    text = "g (float[N, 3, 64, 64] x) => (float[N, 2] y) { m = ReduceMean <keepdims = 0> (x, axes) y = MatMul (m, w) }"
    big = saved(net(text, axes=np.array([2, 3]), w=normal(3, 2)), tmp_path)
    with pytest.raises(UsageError, match="have 4800 numbers, at most 2048"):
        Explainer(big, NAME, patch=32, surround=4, background=normal(2, 3, 64, 64)).explain(normal(1, 3, 64, 64), 1)
