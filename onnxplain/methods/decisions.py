"""What a model decides about a row: its class, or the side of a threshold."""

from __future__ import annotations

from typing import Annotated

import numpy as np

from onnxplain.errors import UsageError
from onnxplain.methods.options import Doc, Range
from onnxplain.methods.run import Run
from onnxplain.methods.tables import TableRow
from onnxplain.methods.tensors import Array

Threshold = Annotated[
    float | None, Doc("of a model with one score: the decision is whether the score is above it, in its unit.")
]
ToClass = Annotated[
    int | None, Range(0), Doc("the class that is wanted instead, by its number; None: any other than the target.")
]


class Decision:
    """Whether rows are decided otherwise than x.

    Where x has the target's class that is: another class, or `to`. Where it has not, it is the target's class itself.
    seed: 1 at one class. Raises UsageError for other seeds, for scores of several places, and for a lone score without
    a threshold.
    """

    def __init__(self, run: Run, table: TableRow, seed: Array, threshold: float | None, to: int | None = None):
        self._run, self._table, self._threshold = run, table, threshold
        weights = np.asarray(seed, np.float64).reshape(-1)
        self.single = weights.size == 1
        if self.single and threshold is None:
            raise UsageError("the model has one score: say by threshold=… above which value it decides otherwise.")
        if not self.single and threshold is not None:
            raise UsageError(f"threshold is of a model with one score, and this one has {weights.size} classes.")
        if (weights > 0).sum() != 1 or (weights < 0).any():
            raise UsageError("a decision is for one class: give one as target, no difference of several.")
        self.count = 2 if self.single else weights.size
        self.target = 1 if self.single else int(weights.argmax())
        self.before = int(self.classes(table.row[None])[0])
        if to is not None and to >= self.count:
            raise UsageError(f"to: there is no class {to}; they are counted from 0 to {self.count - 1}.")
        others = [k for k in range(self.count) if k != self.before]
        self.goals = [to] if to is not None else others if self.single or self.target == self.before else [self.target]

    def scores(self, rows: Array) -> Array:
        """Of each class at S rows, float64 (S, classes); of a lone score its distance below and above the threshold."""
        found = self._run.forward(self._table.points(rows)).astype(np.float64).reshape(len(rows), -1)
        if not self.single:
            return found
        assert self._threshold is not None
        return np.concatenate([self._threshold - found, found - self._threshold], 1)

    def classes(self, rows: Array) -> Array:
        """The class of each row, int (S,); of a lone score whether it is above the threshold."""
        scores = self.scores(rows)
        return np.asarray((scores[:, 1] > 0).astype(np.int64) if self.single else scores.argmax(1))

    def reached(self, rows: Array) -> Array:
        """Whether each row has a class that is wanted, bool (S,)."""
        return np.asarray(np.isin(self.classes(rows), self.goals))

    def same(self, rows: Array) -> Array:
        """Whether each row is, or is not, of the target's class as x is, bool (S,)."""
        return np.asarray((self.classes(rows) == self.target) == (self.before == self.target))

    def name(self, klass: int) -> str:
        """A class in words."""
        if self.single:
            return f"a score {'above' if klass else 'of at most'} {self._threshold:g}"
        known = self._run.labels
        return known[klass] if len(known) == self.count and known[klass] else f"class {klass}"
