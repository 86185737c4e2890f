"""Scores of randomly masked inputs, each weighted by how much its mask keeps of an element: RISE, for any score."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnxplain.methods.estimate import Estimate, looks, relative_error
from onnxplain.methods.masks import GridMasks
from onnxplain.methods.run import Run
from onnxplain.methods.tensors import Array, Tensors, is_whole

ENOUGH = 32  # masks for an estimate at all
CHECK = 100  # masks between two looks at the standard error, whatever the batch


def masked_means(
    run: Run, x: Tensors, start: Tensors, score: Callable[[Tensors], Array], *, masks: int, probability: float,
    cells: int, offset: str, until: float | None, random_seed: int,
) -> Estimate:  # fmt: skip
    """1/(p N) sum_k (score(x_k) - c) M_k, x_k = b + M_k (x - b); c: the mean of the scores, or 0 where offset is none.

    start: b, (1, …) or the rows of a background, of which one is drawn for each mask. score: points -> float64 (S,).
    The others are options of `rise`.
    """
    grids = {
        n: GridMasks(array.shape, cells, probability, [random_seed, k], is_whole(array) and array.ndim < 4)
        for k, (n, array) in enumerate(x.items())
    }
    rows = np.random.default_rng([random_seed, len(x)])  # of a background, one for each mask
    reference = score(x)[0]  # subtracted from all scores, so that squares keep their digits
    c = None if offset == "mean" else -reference
    sums = {name: _Sums(grid.mask_shape, probability, c) for name, grid in grids.items()}
    for part in run.batches(masks, ENOUGH, "masks"):
        drawn = Tensors({name: grid.draw(part.stop - part.start) for name, grid in grids.items()})
        chosen = start.row(rows.integers(start.rows, size=part.stop - part.start) if start.rows > 1 else 0)
        points = (x - chosen) * drawn
        for name, array in points.items():
            array += chosen[name]
        scores = score(points) - reference
        for piece in looks(part, CHECK):
            own = slice(piece.start - part.start, piece.stop - part.start)
            for name, total in sums.items():
                total.add(drawn[name][own], scores[own])
            if until is not None and piece.stop % CHECK == 0 and max(map(_Sums.worst, sums.values())) < until:
                return _estimate(x, start, sums)
    return _estimate(x, start, sums)


def _estimate(x: Tensors, start: Tensors, sums: dict[str, _Sums]) -> Estimate:
    """A token that no mask changes has no relevance; what chance gives it would look like some."""
    found = {name: total.answer() for name, total in sums.items()}
    changes = {name: (array != start[name]).any(0) if is_whole(array) else 1.0 for name, array in x.items()}
    relevance, errors = (Tensors({name: pair[n] * changes[name] for name, pair in found.items()}) for n in range(2))
    return Estimate.of(relevance, errors, x)


class _Sums:
    """Sums of f^j m^k over scores f and masks m of one input: enough for the mean of (f - c) m and its variance.

    probability: the mean of m. c: what is subtracted; None: the mean of f.
    """

    def __init__(self, shape: tuple[int, ...], probability: float, c: float | None):
        self._shape, self._probability, self._c = shape, probability, c
        self._count, self._f = 0, np.zeros(3)  # of f^0, f, f^2
        self._m, self._mm = (np.zeros((3, *shape)) for _ in range(2))

    def add(self, masks: Array, scores: Array) -> None:
        """Some more. masks (S, *shape), scores (S,).

        By einsum, not by matrix products: threads of BLAS that wait for work would slow the runtime's down threefold.
        """
        powers = np.stack([np.ones_like(scores), scores, scores**2])
        self._count += len(masks)
        self._f += powers.sum(1)
        flat = masks.reshape(len(masks), -1).astype(np.float64)
        self._m += np.einsum("ks,se->ke", powers, flat).reshape(self._m.shape)
        self._mm += np.einsum("ks,se->ke", powers, flat * flat).reshape(self._mm.shape)

    def answer(self) -> tuple[Array, Array]:
        """(relevance, standard error) in the mask's shape.

        Where c is the mean of the same scores, what varies independently is (f - c) (m - p): it has the same mean, as p
        is the mean of m.
        """
        c, p = (self._f[1] / self._count, self._probability) if self._c is None else (self._c, 0.0)
        squared = np.array([c * c, -2 * c, 1.0])  # of (f - c)^2
        mean = (self._m[1] - c * self._m[0]) / self._count
        squares = np.tensordot(squared, self._mm - 2 * p * self._m, (0, 0)) + p * p * (squared @ self._f)
        variance = np.maximum(squares / self._count - mean * mean, 0) / max(1, self._count - 1)
        return mean / self._probability, np.sqrt(variance) / self._probability

    def worst(self) -> float:
        """The largest standard error relative to the largest value."""
        return relative_error(*self.answer())
