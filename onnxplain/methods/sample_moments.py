"""The mean or variance of random samples, and its standard error."""

from __future__ import annotations

from typing import Literal

import numpy as np

from onnxplain.methods.estimate import Estimate, looks, relative_error
from onnxplain.methods.tensors import Array, Tensors

CHECK = 8  # samples between two looks at the standard error; what is added up together, so that batches do not matter
ENOUGH = 2  # samples for a standard error


class SampleMoments:
    """Sums over samples M_k, element by element, of (M - c)^j; c is the first one, so that squares keep their digits.

    of: what is estimated: the mean of M, or its variance. until: the standard error to reach, relative to the largest
    value; None: none.
    """

    def __init__(self, of: Literal["mean", "variance"] = "mean", until: float | None = None):
        self._of, self._until, self.count = of, until, 0
        self._first: Tensors | None = None
        self._sums: list[Tensors] = []

    def add(self, samples: Tensors, part: slice) -> bool:
        """Some more, (S, …) in float64: those from part.start to part.stop of all. True: they are accurate enough."""
        if self._first is None:
            self._first = samples.map(lambda array: array[:1])
            self._sums = [self._first * 0.0] * (2 if self._of == "mean" else 4)
        for piece in looks(part, CHECK):
            own = slice(piece.start - part.start, piece.stop - part.start)
            first = self._first
            offsets = Tensors({name: array[own] - first[name] for name, array in samples.items()})
            power = offsets
            for order, total in enumerate(self._sums):
                power = power * offsets if order else power
                self._sums[order] = total + power.sum()
            self.count += own.stop - own.start
            if self._until is not None and self.count % CHECK == 0 and self._worst() < self._until:
                return True
        return False

    def estimate(self, x: Tensors) -> Estimate | Tensors:
        """In the types of x, (1, …); of a single sample, which tells nothing of its error, the value alone."""
        found = {name: self._answer(name) for name in x}
        value, error = (Tensors({name: pair[n] for name, pair in found.items()}) for n in range(2))
        return Estimate.of(value, error, x) if self.count >= ENOUGH else value.typed(x)

    def _answer(self, name: str) -> tuple[Array, Array]:
        """(value, standard error); that of a variance is the one of the mean of squared distances, for many samples."""
        assert self._first is not None
        means = [total[name] / self.count for total in self._sums]
        m1, m2 = means[:2]
        variance = np.maximum(m2 - m1**2, 0.0)
        if self._of == "mean":
            return self._first[name] + m1, np.sqrt(variance / max(1, self.count - 1))
        m3, m4 = means[2:]
        fourth = m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4
        return variance, np.sqrt(np.maximum(fourth - variance**2, 0.0) / max(1, self.count - 1))

    def _worst(self) -> float:
        assert self._first is not None
        return max(relative_error(*self._answer(name)) for name in self._first)
