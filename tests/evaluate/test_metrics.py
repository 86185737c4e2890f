"""Laws of metrics: over all that are registered, whatever the method and the model."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from nets import MODELS, normal, rng

from onnxplain import Explainer
from onnxplain.evaluate import METRICS, Judged
from onnxplain.evaluate.deletion import score_drop
from onnxplain.evaluate.measure import Measured, measure

ROWS, SEED = 7, 3
CASES = [(model, method) for model in ("digits_cnn", "iris_mlp") for method in ("gradient", "lrp")]
OF_THE_SCORE = {"conservation_error", "absorbed_by_bias", "absorbed_by_stabiliser"}
TIMED = {"seconds", "seconds_per_explanation"}


@functools.cache
def explainer(model: str, method: str) -> Explainer:
    return Explainer(MODELS / model / "1" / "model.onnx", method, ledger=True, provider="cpu", threads=1)


def data(model: str) -> dict[str, np.ndarray]:
    (spec,) = explainer(model, "gradient").subject.inputs
    return {spec.name: rng(1).random((ROWS, *spec.shape[1:])).astype(spec.dtype)}


@functools.cache
def measured(model: str, method: str) -> Measured:
    return measure(explainer(model, method), data(model), random_seed=SEED)


@pytest.mark.parametrize("model, method", CASES)
@pytest.mark.parametrize("name", METRICS)
def test_a_metric_is_a_finite_number_a_row(name, model, method):
    found = measured(model, method)
    if name in OF_THE_SCORE and method == "gradient":
        assert name not in found.rows and not METRICS[name].summaries.keys() & found.metrics.keys()
        return
    values = found.rows[name]
    assert np.isfinite(values).all() and len(values) == (ROWS - 1 if METRICS[name].of_data else ROWS)
    for label, summary in METRICS[name].summaries.items():
        assert found.metrics[label] == pytest.approx(summary(np.array(values)), abs=0, rel=1e-15)


@pytest.mark.parametrize("model, method", CASES)
def test_what_is_said_of_all_rows_comes_from_metrics_and_nowhere_else(model, method):
    labels = [label for entry in METRICS.values() for label in entry.summaries]
    assert len(labels) == len(set(labels))
    assert set(measured(model, method).metrics) <= {*labels, "random_seed"}


@pytest.mark.parametrize("model, method", CASES)
def test_the_same_random_seed_gives_the_same_numbers(model, method):
    again, other = (measure(explainer(model, method), data(model), random_seed=seed) for seed in (SEED, SEED + 1))
    once = measured(model, method)
    assert {k: v for k, v in again.rows.items() if k not in TIMED} == {
        k: v for k, v in once.rows.items() if k not in TIMED
    }
    assert other.rows["deletion_drop"] == once.rows["deletion_drop"]
    assert other.rows["deletion_drop_random"] != once.rows["deletion_drop_random"]


@pytest.mark.parametrize("model, method", CASES)
@pytest.mark.parametrize("name", [name for name, entry in METRICS.items() if not entry.of_data])
def test_a_row_is_judged_by_itself(name, model, method):
    """In a batch as alone, where nothing is drawn for the rows before it."""
    if name == "deletion_drop_random" or name not in measured(model, method).rows:
        return
    alone = measure(explainer(model, method), {key: x[2:3] for key, x in data(model).items()}, random_seed=SEED)
    assert alone.rows[name][0] == pytest.approx(measured(model, method).rows[name][2], rel=1e-4, abs=1e-5)  # float32


def judged(model: str, method: str, baseline: float) -> Judged:
    made = explainer(model, method)
    return Judged(made, made.explain(data(model)), baseline, rng(SEED))


@pytest.mark.parametrize("model, method", CASES)
def test_deletion_of_nothing_changes_nothing(model, method):
    one = judged(model, method, 0.0)
    order = normal(ROWS, next(iter(data(model).values()))[0].size)
    np.testing.assert_allclose(score_drop(one, order, share=0), 0, atol=1e-4)  # two float32 graphs


@pytest.mark.parametrize("model, method", CASES)
def test_deletion_of_everything_leaves_one_score(model, method):
    """That of the baseline for the same class, whatever the order."""
    one = judged(model, method, 0.5)
    size = next(iter(data(model).values()))[0].size
    first, second = (score_drop(one, normal(ROWS, size, seed=seed), share=1) for seed in (1, 2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("model", ["digits_cnn", "iris_mlp"])
def test_what_is_redistributed_is_conserved(model):
    assert measured(model, "lrp").metrics["conservation_error_max"] < 1e-3  # float32, relative to the score


def test_the_most_relevant_pixels_of_digits_matter_more_than_others():
    with np.load(MODELS / "digits_cnn/samples/ten_digits.npz") as arrays:
        metrics = measure(explainer("digits_cnn", "lrp"), dict(arrays), random_seed=SEED).metrics
    assert metrics["deletion_drop"] > metrics["deletion_drop_random"]
