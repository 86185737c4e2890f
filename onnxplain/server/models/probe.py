"""Whether requests may share a run: rows and seeds to try it with, and the comparison of together with apart."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxplain.bfloat16 import is_floating, widened
from onnxplain.explainer import Explainer
from onnxplain.exports.batching import counted
from onnxplain.runtime.session import Array
from onnxplain.server.scheduling.queue import ModelQueue
from onnxplain.subject import Subject

ROWS = 3
TOLERANCE = 1e-5  # of the largest value: float32, summed in another order
TINY = 1e-30  # so that zeros may be zeros


def probe_rows(feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Some rows that differ, made of one sample: the first row of each input, with noise where it is float."""
    rng = np.random.default_rng(0)
    rows = {}
    for name, array in feeds.items():
        if not array.ndim:
            rows[name] = array
            continue
        many = np.concatenate([array[:1]] * ROWS)
        if is_floating(many):
            many = many + (0.1 * rng.standard_normal(many.shape)).astype(many.dtype)
        rows[name] = many
    return rows


def probe_seeds(explainer: Explainer, forward: ModelQueue, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """A seed at the highest score of each row, as clients send them, and references where the graph takes some.

    forward: the queue of the model itself.
    """
    seeds = {
        entry: feeds[source] / 2 if is_floating(feeds[source]) else feeds[source]
        for entry, source in explainer.compiled.references.items()
    }
    for key, source in explainer.compiled.seeds.items():
        scores = feeds[source] if source in feeds else forward.session().run(feeds, [source])[source]
        if explainer.subject.request.seed == "index":
            shape = (len(scores), scores.ndim - 1) if scores.ndim > 2 else scores.shape[:1]
            seeds[key] = np.zeros(shape, np.int64)
            continue
        seed = np.zeros(scores.shape, np.float64 if scores.dtype == np.float64 else np.float32)
        if scores.ndim == 0 or not scores.size:
            seed[...] = 1
        else:
            flat = seed.reshape(len(seed), -1)
            flat[np.arange(len(seed)), scores.reshape(len(seed), -1).argmax(1)] = 1
        seeds[key] = seed
    return seeds


def rows_are_independent(queue: ModelQueue, feeds: Mapping[str, Array]) -> bool:
    """Whether rows run together answer as rows run apart, within TOLERANCE of the largest value. feeds: some rows."""
    axes = queue.axes
    if axes is None:
        return False
    names = [name for name in queue.outputs if name in axes]
    together = queue.session().run(feeds, names)
    count = len(next(iter(feeds.values())))
    for row in range(count):
        apart = queue.session().run({name: array[row : row + 1] for name, array in feeds.items()}, names)
        if not all(_alike(queue.part(name, together[name], slice(row, row + 1)), apart[name]) for name in names):
            return False
    return True


def share_runs(
    queue: ModelQueue, subject: Subject, axes: Mapping[str, int] | None, rows: Mapping[str, Array], notes: list[str]
) -> None:
    """Let a queue put requests into one run, if that is proven on the graph (axes) and holds for some rows."""
    if queue.max_rows < 2 or axes is None or counted(subject.normalised.model.graph):
        return
    if not any(name in axes for name in queue.outputs):  # outputs without rows, such as a Shape
        return
    queue.axes = axes
    if not rows_are_independent(queue, rows):
        queue.axes = None
        notes.append("rows answer differently in a batch than alone: requests are not put together")


def _alike(one: Array, other: Array) -> bool:
    if one.shape != other.shape:
        return False
    one, other = widened(one), widened(other)
    if one.dtype.kind != "f":
        return np.array_equal(one, other)
    scale = float(np.max(np.abs(other), initial=0.0, where=np.isfinite(other)))
    return np.allclose(one, other, rtol=0, atol=TOLERANCE * scale + TINY, equal_nan=True)
