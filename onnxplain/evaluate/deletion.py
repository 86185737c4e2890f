"""How far the score falls when features become the baseline: those of highest |relevance|, and random ones.

For one float input that is attributed itself; tokens have no baseline value.
"""

from __future__ import annotations

import math

import numpy as np

from onnxplain.evaluate.registry import Judged, metric
from onnxplain.inputs.targets import Target
from onnxplain.runtime.session import Array

SHARE = 0.1  # of the features that deletion takes away


@metric("deletion_drop")
def deletion_drop(judged: Judged) -> Array | None:
    """Score before minus score after the features of highest |relevance| are deleted."""
    flat = _features(judged)
    return None if flat is None else score_drop(judged, np.abs(flat))


@metric("deletion_drop_random")
def deletion_drop_random(judged: Judged) -> Array | None:
    """The same for as many random features."""
    flat = _features(judged)
    return None if flat is None else score_drop(judged, judged.generator.random(flat.shape))


def score_drop(judged: Judged, order: Array, share: float = SHARE) -> Array:
    """(N,) score before minus score after the highest of `order` (N, features) are deleted; share: of the features."""
    explanation, explained = judged.explanation, judged.explanation.explained
    ((name, x),) = explanation.inputs.items()
    count = math.ceil(share * order.shape[1])
    without = x.reshape(len(x), -1).copy()
    np.put_along_axis(without, np.argsort(-order, axis=1, kind="stable")[:, :count], judged.baseline, axis=1)
    after = judged.explainer.subject.forward({name: without.reshape(x.shape)}, [explained])
    target = explanation.targets[0]
    return _score(target, explanation.scores) - _score(target, after[explained])


def _features(judged: Judged) -> Array | None:
    """Relevance of the one float input, float64 (N, features); None where there is none to delete."""
    explanation = judged.explanation
    if len(explanation.inputs) != 1 or explanation.relevances.keys() != explanation.inputs.keys():
        return None
    ((name, x),) = explanation.inputs.items()
    relevance = np.asarray(explanation.relevances[name], np.float64)
    if relevance.shape != x.shape or x.dtype.kind != "f" or not x.size:
        return None
    return relevance.reshape(len(x), -1)


def _score(target: Target, scores: Array) -> Array:
    """(N,) of what was explained: the sum of seed times output."""
    product = np.broadcast_to(target.seed, scores.shape) * scores.astype(np.float64)
    return np.asarray(product.reshape(len(scores), -1).sum(1))
