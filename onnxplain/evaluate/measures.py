"""How good an explanation is, in numbers: what is conserved and absorbed, what deletion costs, how long it takes."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxplain.errors import UsageError
from onnxplain.explainer import Explainer
from onnxplain.explanation import Explanation
from onnxplain.inputs.targets import Target
from onnxplain.methods import OnePass
from onnxplain.runtime.chunking import chunks
from onnxplain.runtime.session import Array

SHARE = 0.1  # of the features that deletion takes away
TIMED = 10  # single explanations whose median time is reported
BATCH = 32
TINY = 1e-12  # keeps a score of zero from dividing


@dataclass
class Measured:
    """Metrics by name, and the numbers of every row they are means of."""

    metrics: dict[str, float] = field(default_factory=dict)
    rows: dict[str, list[float]] = field(default_factory=dict)


def measure(explainer: Explainer, feeds: Mapping[str, Array], baseline: float = 0.0, random_seed: int = 0) -> Measured:
    """Explain the predicted target of every row and judge it.

    explainer: compiled with a ledger. feeds: (N, …) by input name. baseline: what a deleted feature becomes, in model
    units. random_seed: of the features deleted for comparison.
    """
    generator, rows = np.random.default_rng(random_seed), dict[str, list[float]]()
    for part in _batches(explainer, feeds):
        explanation = explainer.explain(part)
        if explanation.samples < max(len(array) for array in part.values()):
            raise UsageError("axis 0 of the model's inputs does not count samples, so rows of a table are none.")
        found = {**_conserved(explanation), **_deleted(explainer, explanation, baseline, generator)}
        for name, values in found.items():
            rows.setdefault(name, []).extend(values.tolist())
    rows["seconds"] = _times(explainer, feeds)
    metrics = {name: float(np.mean(values)) for name, values in rows.items() if name != "seconds"}
    if "conservation_error" in rows:
        metrics["conservation_error_max"] = max(rows["conservation_error"])
    metrics["seconds_per_explanation"] = float(np.median(rows["seconds"]))
    return Measured({**metrics, "random_seed": float(random_seed)}, rows)


def _conserved(explanation: Explanation) -> dict[str, Array]:
    """|sum of relevance + absorbed - score| and the absorbed shares, relative to |score|.

    Only for methods that redistribute the score itself: a gradient has no such law, a contrast starts elsewhere.
    """
    method = explanation.method
    if not isinstance(method, OnePass):
        return {}
    form = method.form(explanation.recipe.options.get("form"))
    if (form.start, form.finish, form.passes) != ("seed_times_output", "as_it_is", ("",)):
        return {}
    if explanation.ledger is None:
        return {}
    target = explanation.targets[0]
    score = np.broadcast_to(np.asarray(target.score, np.float64).reshape(-1), (explanation.samples,))
    where = [explanation.where(row) for row in range(explanation.samples)]
    columns = {name: np.array([row[name] for row in where]) for name in where[0]}
    size = np.maximum(np.abs(score), TINY)
    return {
        "conservation_error": np.abs(sum(columns.values()) - score) / size,
        "absorbed_by_bias": np.abs(columns["bias"]) / size,
        "absorbed_by_stabiliser": np.abs(columns["stabiliser"]) / size,
    }


def _deleted(
    explainer: Explainer, explanation: Explanation, baseline: float, generator: np.random.Generator
) -> dict[str, Array]:
    """How far the score falls when the features of highest |relevance| become the baseline, and when random ones do.

    For one float input that is attributed itself; tokens have no baseline value.
    """
    if len(explanation.inputs) != 1 or explanation.relevances.keys() != explanation.inputs.keys():
        return {}
    ((name, x),) = explanation.inputs.items()
    relevance = np.asarray(explanation.relevances[name], np.float64)
    if relevance.shape != x.shape or x.dtype.kind != "f" or not x.size:
        return {}
    flat = np.abs(relevance).reshape(len(x), -1)
    count = max(1, math.ceil(SHARE * flat.shape[1]))
    orders = {"deletion_drop": flat, "deletion_drop_random": generator.random(flat.shape)}
    target = explanation.targets[0]
    before = _score(target, explanation.scores)
    found = {}
    for label, order in orders.items():
        without = x.reshape(len(x), -1).copy()
        np.put_along_axis(without, np.argsort(-order, axis=1, kind="stable")[:, :count], baseline, axis=1)
        after = explainer.subject.forward({name: without.reshape(x.shape)}, [explanation.explained])
        found[label] = before - _score(target, after[explanation.explained])
    return found


def _score(target: Target, scores: Array) -> Array:
    """(N,) of what was explained: the sum of seed times output."""
    product = np.broadcast_to(target.seed, scores.shape) * scores.astype(np.float64)
    return np.asarray(product.reshape(len(scores), -1).sum(1))


def _times(explainer: Explainer, feeds: Mapping[str, Array]) -> list[float]:
    """Seconds of single explanations, as they are served: without the ledger, after one to warm up."""
    subject = explainer.subject
    plain = dataclasses.replace(subject, request=dataclasses.replace(subject.request, ledger=False))
    timed = Explainer(plain, explainer.recipe, bounds=explainer.bounds, labels=explainer.labels, kind=explainer.kind)
    found = []
    for part in [*_batches(timed, feeds, 1)][: TIMED + 1]:
        begun = time.perf_counter()
        timed.explain(part)
        found.append(time.perf_counter() - begun)
    return found[1:] or found


def _batches(explainer: Explainer, feeds: Mapping[str, Array], size: int = BATCH) -> Iterator[dict[str, Any]]:
    """Rows in batches of the length that the model is fixed to, else of `size`."""
    fixed = [spec.shape[0] for spec in explainer.subject.inputs if spec.shape and isinstance(spec.shape[0], int)]
    size = fixed[0] if fixed else size
    rows = min(len(array) for array in feeds.values())
    for part in chunks(rows, size):
        if not fixed or part.stop - part.start == size:
            yield {name: array[part] for name, array in feeds.items()}
