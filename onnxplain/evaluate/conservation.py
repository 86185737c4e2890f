"""What of the score arrives as relevance, and what is absorbed on the way, relative to |score|.

Only for methods that redistribute the score itself, explained with a ledger: a gradient has no such law, a contrast
starts elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxplain.evaluate.registry import Judged, metric
from onnxplain.explanation import Explanation
from onnxplain.methods import OnePass
from onnxplain.runtime.session import Array

TINY = 1e-12  # keeps a score of zero from dividing


@metric("conservation_error", conservation_error=np.mean, conservation_error_max=np.max)
def conservation_error(judged: Judged) -> Array | None:
    """|sum of relevance + absorbed - score| / |score|."""
    if (columns := _columns(judged.explanation)) is None:
        return None
    score = _score(judged.explanation)
    return np.asarray(np.abs(sum(columns.values()) - score) / _size(score))


@metric("absorbed_by_bias")
def absorbed_by_bias(judged: Judged) -> Array | None:
    """|relevance that biases took| / |score|."""
    return _absorbed(judged.explanation, "bias")


@metric("absorbed_by_stabiliser")
def absorbed_by_stabiliser(judged: Judged) -> Array | None:
    """|relevance that stabilisers took| / |score|."""
    return _absorbed(judged.explanation, "stabiliser")


def _absorbed(explanation: Explanation, column: str) -> Array | None:
    columns = _columns(explanation)
    return None if columns is None else np.abs(columns[column]) / _size(_score(explanation))


def _columns(explanation: Explanation) -> Mapping[str, Array] | None:
    """Where relevance went, (N,) by column; None where that says nothing."""
    method = explanation.method
    if not isinstance(method, OnePass) or explanation.ledger is None:
        return None
    form = method.form(explanation.recipe.options.get("form"))
    if (form.start, form.finish, form.passes) != ("seed_times_output", "as_it_is", ("",)):
        return None
    rows = [explanation.where(row) for row in range(explanation.samples)]
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def _score(explanation: Explanation) -> Array:
    score = np.asarray(explanation.targets[0].score, np.float64).reshape(-1)
    return np.broadcast_to(score, (explanation.samples,))


def _size(score: Array) -> Array:
    return np.maximum(np.abs(score), TINY)
