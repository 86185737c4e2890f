"""RISE: which parts were kept where the score was high."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np

from onnxplain.methods.baselines import Baseline, baseline_of
from onnxplain.methods.estimate import Estimate, relative_error
from onnxplain.methods.masks import GridMasks
from onnxplain.methods.options import Range
from onnxplain.methods.registry import method
from onnxplain.methods.run import Run
from onnxplain.methods.tensors import Array, Tensors

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
    baseline: Baseline = 0.0,
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
    baseline: what masked elements fade to, in model units: one number, one for each channel or column, mean or blur.
    until: end as soon as the largest standard error is below this share of the largest relevance.
    random_seed: of the masks, which are the same for every row and target.
    """
    grids = {n: GridMasks(array.shape, cells, probability, [random_seed, k]) for k, (n, array) in enumerate(x.items())}
    start = baseline_of(x, baseline)
    sums = {name: _Sums(grid.mask_shape) for name, grid in grids.items()}
    reference = run.score(x, seed)[0]  # subtracted from all scores, so that squares keep their digits
    for part in run.batches(masks):
        drawn = Tensors({name: grid.draw(part.stop - part.start) for name, grid in grids.items()})
        points = start + (x - start) * drawn.with_(x, lambda mask, like: mask.astype(like.dtype))
        scores = run.score(points, seed) - reference
        for row in range(len(scores)):
            for name, total in sums.items():
                total.add(drawn[name][row], scores[row])
            done = part.start + row + 1
            if until is not None and done % CHECK == 0 and _worst(sums, probability, offset, reference) < until:
                return _estimate(x, sums, probability, offset, reference)
    return _estimate(x, sums, probability, offset, reference)


class _Sums:
    """Sums of f^j m^k over scores f and masks m of one input: enough for the mean of (f - c) m and its variance."""

    def __init__(self, shape: tuple[int, ...]):
        self.count = 0
        self._f, self._ff = 0.0, 0.0
        self._m, self._fm, self._ffm, self._mm, self._fmm, self._ffmm = (np.zeros(shape) for _ in range(6))

    def add(self, m: Array, f: float) -> None:
        """One more mask."""
        self.count += 1
        self._f, self._ff = self._f + f, self._ff + f * f
        mm = m * m
        for total, term in ((self._m, m), (self._fm, f * m), (self._ffm, f * f * m)):
            total += term
        for total, term in ((self._mm, mm), (self._fmm, f * mm), (self._ffmm, f * f * mm)):
            total += term

    def answer(self, probability: float, offset: str, reference: float) -> tuple[Array, Array]:
        """(relevance, standard error) in the mask's shape. reference: what was subtracted from the scores.

        Where c is the mean of the same scores, the terms that vary independently are (f - c) (m - p): their mean is the
        same, and p is the mean of m.
        """
        centred = offset == "mean"
        c, p = (self._f / self.count, probability) if centred else (-reference, 0.0)
        mean = (self._fm - c * self._m) / self.count
        squares = self._ffmm - 2 * c * self._fmm + c * c * self._mm
        squares = squares - 2 * p * (self._ffm - 2 * c * self._fm + c * c * self._m)
        squares = squares + p * p * (self._ff - 2 * c * self._f + c * c * self.count)
        variance = np.maximum(squares / self.count - mean * mean, 0) / (self.count - 1)
        return mean / probability, np.sqrt(variance) / probability


def _worst(sums: dict[str, _Sums], probability: float, offset: str, reference: float) -> float:
    found = [total.answer(probability, offset, reference) for total in sums.values()]
    values, errors = (np.concatenate([pair[n].ravel() for pair in found]) for n in range(2))
    return relative_error(values, errors)


def _estimate(x: Tensors, sums: dict[str, _Sums], probability: float, offset: str, reference: float) -> Estimate:
    found = {name: total.answer(probability, offset, reference) for name, total in sums.items()}
    relevance, errors = (x.with_(Tensors({name: pair[n] for name, pair in found.items()}), _as_input) for n in range(2))
    return Estimate(relevance, errors)


def _as_input(like: Array, values: Array) -> Array:
    return np.broadcast_to(values, like.shape).astype(like.dtype)
