"""What a model's score has to do with its trees."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from onnxplain.trees.conjunctions import Leaves, conjunctions
from onnxplain.trees.ensemble import Array, Trees


@dataclass(frozen=True, eq=False)
class TreeScore:
    """A tensor of a model that is a sum of trees, or an invertible function of one.

    trees: the sum. transform: what the node makes of it, by ONNX's name of a post_transform; what is explained is in
    front of it. players: (columns,) which number of the attributed inputs, counted through all of them, each feature
    is made of. inputs: names of the attributed inputs in that order. features: the trees' input (rows, columns) at
    values of the inputs (rows, …) by name.
    """

    trees: Trees
    transform: str
    players: Array
    features: Callable[[Mapping[str, Array]], Array]

    @cached_property
    def leaves(self) -> list[Leaves]:
        """The leaves of the trees as games of the players."""
        return conjunctions(self.trees, self.players)

    def answer(self, scores: Array) -> Array:
        """The tensor as the model answers it. scores (rows, scores)."""
        answer: Array = TRANSFORMS[self.transform](scores)
        return answer


def _softmax(scores: Array) -> Array:
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    shares: Array = powers / powers.sum(-1, keepdims=True)
    return shares


def _softmax_zero(scores: Array) -> Array:
    """Scores of (almost) zero stay out, as onnxruntime has it."""
    inside = np.abs(scores) > 1e-7
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    total = (powers * inside).sum(-1, keepdims=True)
    return np.where(inside, powers / np.where(total == 0, 1, total), 0.0)


TRANSFORMS: dict[str, Callable[[Array], Array]] = {
    "NONE": lambda scores: scores,
    "LOGISTIC": lambda scores: 1 / (1 + np.exp(-scores)),
    "SOFTMAX": _softmax,
    "SOFTMAX_ZERO": _softmax_zero,
}
