"""RISE: which parts were kept where the score was high."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np

from onnxplain.methods.estimate import Estimate, looks, relative_error
from onnxplain.methods.masks import GridMasks
from onnxplain.methods.options import Range
from onnxplain.methods.registry import method
from onnxplain.methods.replacements import Replacement, replacement_of
from onnxplain.methods.run import Run
from onnxplain.methods.tensors import Array, Tensors

ENOUGH = 32  # masks for an estimate at all
CHECK = 100  # masks between two looks at the standard error, whatever the batch


@method(
    "rise",
    base="",
    channels="mean",
    cite="Petsiuk, Das and Saenko 2018, RISE: Randomized Input Sampling for Explanation of Black-box Models, eq. 6",
)
def rise(
    run: Run,
    x: Tensors,
    seed: Array,
    *,
    masks: Annotated[int, Range(2, 10_000_000)] = 1000,
    probability: Annotated[float, Range(0.001, 0.999)] = 0.5,
    cells: Annotated[int, Range(1)] = 7,
    offset: Literal["mean", "none"] = "mean",
    baseline: Replacement = 0.0,
    until: Annotated[float | None, Range(0)] = None,
    random_seed: Annotated[int, Range(0)] = 0,
) -> Estimate:
    """Mean score of randomly masked inputs, each weighted by how much it keeps of an element.

    R_i = 1/(p N) sum_k (F(x_k) - c) M_ki, x_k = b + M_k (x - b). M_k: a grid of ones with probability p, enlarged
    bilinearly and shifted. With c = 0 (offset none) that is the paper's map, the mean score where i is kept, made for
    probabilities. The scores explained here are mostly logits, far from 0: so c is the mean of F(x_k), and R_i is by
    how much keeping i lifts the score above it. The paper's map is this one plus the mean, but for chance.

    x (1, …) in model units; result the same shape, in the unit of the score, the same for all channels of a place.
    masks: how many; the paper has 4000 to 8000. Where `until` is given, at most.
    probability: that a cell is kept.
    cells: of the grid along each side of a picture or along time; columns of a table have a cell each.
    offset: what is subtracted from the scores: mean (of the masked inputs), or none.
    until: end as soon as the largest standard error is below this share of the largest relevance.
    random_seed: of the masks, which are the same for every row and target.
    """
    grids = {n: GridMasks(array.shape, cells, probability, [random_seed, k]) for k, (n, array) in enumerate(x.items())}
    start = replacement_of(run, x, baseline)
    rows = np.random.default_rng([random_seed, len(x)])  # of a background, one for each mask
    reference = run.score(x, seed)[0]  # subtracted from all scores, so that squares keep their digits
    c = None if offset == "mean" else -reference
    sums = {name: _Sums(grid.mask_shape, probability, c) for name, grid in grids.items()}
    for part in run.batches(masks, ENOUGH, "masks"):
        drawn = Tensors({name: grid.draw(part.stop - part.start) for name, grid in grids.items()})
        chosen = start.row(rows.integers(start.rows, size=part.stop - part.start) if start.rows > 1 else 0)
        points = chosen + (x - chosen) * drawn
        scores = run.score(points, seed) - reference
        for piece in looks(part, CHECK):
            own = slice(piece.start - part.start, piece.stop - part.start)
            for name, total in sums.items():
                total.add(drawn[name][own], scores[own])
            if until is not None and piece.stop % CHECK == 0 and max(map(_Sums.worst, sums.values())) < until:
                return _estimate(x, sums)
    return _estimate(x, sums)


def _estimate(x: Tensors, sums: dict[str, _Sums]) -> Estimate:
    found = {name: total.answer() for name, total in sums.items()}
    relevance, errors = (Tensors({name: pair[n] for name, pair in found.items()}) for n in range(2))
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
        """Some more. masks (S, *shape), scores (S,)."""
        powers = np.stack([np.ones_like(scores), scores, scores**2])
        flat = masks.reshape(len(masks), -1).astype(np.float64)
        self._count += len(masks)
        self._f += powers.sum(1)
        self._m += (powers @ flat).reshape(self._m.shape)
        self._mm += (powers @ (flat * flat)).reshape(self._mm.shape)

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
