"""Least squares of scores on which feature groups are present, in pieces, with standard errors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnxplain.errors import UsageError
from onnxplain.methods.estimate import looks, relative_error
from onnxplain.methods.run import Run
from onnxplain.methods.tensors import Array

BLOCKS = 10  # of the jackknife: its standard error is itself known to about a quarter
MOST = 1000  # groups: the sums take BLOCKS * groups^2 numbers
CHECK = 500  # samples between two looks at the standard error
LEAST = 64  # samples: few groups draw the same again and again, and each tenth must be dispensable
Draw = Callable[[slice], tuple[Array, Array, Array]]
"""Of the samples start … stop: z float64 (S, width), weights (S,), scores (S,)."""
Solve = Callable[[Array, Array], Array]
"""`(sum of w z zᵀ, sum of w z f) -> values`."""


class PresenceRegression:
    """Sums over samples of w z zᵀ and w z f, kept by block; what is solved for each left out tells the standard error.

    width: length of z. together: so many samples that follow one another belong together and lie in one block.
    """

    def __init__(self, width: int, solve: Solve, together: int = 1):
        self._solve, self._together, self._count = solve, together, 0
        self._products = np.zeros((BLOCKS, width, width))
        self._targets = np.zeros((BLOCKS, width))

    def add(self, z: Array, weights: Array, scores: Array) -> None:
        """Some more. z float64 (S, width), weights and scores (S,)."""
        blocks = (self._count + np.arange(len(z))) // self._together % BLOCKS
        for block in range(BLOCKS):
            rows = blocks == block
            weighted = z[rows] * weights[rows, None]
            self._products[block] += weighted.T @ z[rows]
            self._targets[block] += weighted.T @ scores[rows]
        self._count += len(z)

    def values(self) -> Array:
        """The solution of all samples."""
        return self._solve(self._products.sum(0), self._targets.sum(0))

    def standard_errors(self) -> Array:
        """By the jackknife: from the solutions that leave out a block each."""
        products, targets = self._products.sum(0), self._targets.sum(0)
        without = np.stack(
            [self._solve(products - self._products[k], targets - self._targets[k]) for k in range(BLOCKS)]
        )
        variance: Array = (BLOCKS - 1) / BLOCKS * np.square(without - without.mean(0)).sum(0)
        return np.sqrt(variance)

    def fill(self, run: Run, samples: int, draw: Draw, until: float | None, enough: int | None) -> None:
        """Add the samples that `draw` gives, until the largest standard error is below a share of the largest value.

        enough: see `Run.batches`.
        """
        for part in run.batches(samples, enough, "samples"):
            drawn = draw(part)
            for piece in looks(part, CHECK):
                rows = slice(piece.start - part.start, piece.stop - part.start)
                self.add(*(array[rows] for array in drawn))
                if until is None or piece.stop % CHECK:
                    continue
                if relative_error(self.values(), self.standard_errors()) < until:
                    return


def least_samples(groups: int) -> int:
    """How many determine the groups."""
    return max(LEAST, 4 * groups)


def require_samples(method: str, groups: int, samples: int) -> None:
    """Raise UsageError where so many samples do not determine the groups, or the groups are too many to solve for."""
    if groups > MOST:
        raise UsageError(
            f"method {method} solves for all groups at once, at most {MOST}, and there are {groups}: take larger ones "
            "(patch=…, groups=…), or shapley_sampling or feature_ablation, which go from one to the next."
        )
    least = least_samples(groups)
    if samples < least:
        raise UsageError(
            f"samples={samples} do not determine {groups} groups: give at least {least}, or larger groups."
        )


def solved(matrix: Array, target: Array) -> Array:
    """matrix⁻¹ target. Raises UsageError where there is none."""
    try:
        return np.asarray(np.linalg.solve(matrix, target))
    except np.linalg.LinAlgError:
        raise UsageError("the samples drawn do not tell all feature groups apart: give more samples.") from None
