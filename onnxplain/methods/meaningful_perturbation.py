"""Meaningful perturbation: a small smooth mask that takes the score away, or is enough for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np

from onnxplain.methods.adam import Adam
from onnxplain.methods.masked_score import CoarseMask, Jitter, MaskedScore, Taken, taken_away
from onnxplain.methods.options import Range
from onnxplain.methods.registry import method
from onnxplain.methods.run import Run
from onnxplain.methods.tensors import Array, Tensors

SMALL = 1e-6  # lengths of differences below it have no direction


@method(
    "meaningful_perturbation",
    channels="mean",
    signed=False,
    cite="Fong and Vedaldi 2017, Interpretable Explanations of Black Boxes by Meaningful Perturbation, eq. 3 and 4",
)
def meaningful_perturbation(
    run: Run,
    x: Tensors,
    seed: Array,
    *,
    form: Literal["deletion", "preservation"] = "deletion",
    baseline: Taken = None,
    steps: Annotated[int, Range(1, 1_000_000)] = 100,
    cells: Annotated[int, Range(1)] = 28,
    area_weight: Annotated[float, Range(0)] = 1.0,
    variation_weight: Annotated[float, Range(0)] = 3.0,
    variation_power: Annotated[float, Range(1)] = 3.0,
    rate: Annotated[float, Range(0)] = 0.1,
    jitter: Jitter = 4,
    random_seed: Annotated[int, Range(0)] = 0,
) -> Tensors:
    """A mask, found by gradient descent, that is small and smooth and whose elements carry the score.

    Deletion: m minimises s(m) + area_weight mean(1 - m) + variation_weight mean |grad m|^variation_power, R = 1 - m.
    Preservation: -min(s(m), 1) + area_weight mean(m) + the same, and R = m. s(m) is the share that b + m (x - b) keeps
    of F(x) - F(b), so that one default of the weights serves logits and probabilities: the paper descends on a
    probability itself, and weighs sums over the mask by 1e-4 and 1e-2. m is enlarged linearly from a grid of cells;
    Adam takes the steps from m = 1, and what leaves 0 … 1 is put back.

    x (1, …) in model units; result the same shape, 0 (nothing to the score) to 1, the same for all channels of a place.
    form: deletion: what must go for the score to go; preservation: what is enough for it.
    steps: of descent; each is one backward pass, where the one before has led, so that none can share a run.
    cells: of the grid along each side of a picture or along time; columns of a table have a cell each.
    area_weight: of the part that is taken away or kept; with 1 all of the input costs as much as all of its score.
    variation_weight: of the differences between neighbouring cells; columns of a table are none.
    variation_power: of the differences: the larger, the smoother the edges.
    rate: of a step, of the mask's range 0 to 1.
    random_seed: of the jitter, the same for every row and target.
    """
    score = MaskedScore(run, x, taken_away(run, x, baseline), seed, jitter, random_seed)
    coarse = {name: CoarseMask(array.shape, cells) for name, array in x.items()}
    sign = 1.0 if form == "deletion" else -1.0
    grid, adam = Tensors({name: np.ones((1, *c.shape)) for name, c in coarse.items()}), Adam(rate)
    for part in run.batches(steps):
        for _ in range(part.start, part.stop):
            masks, gradient = _enlarged(grid, coarse), {}
            slopes = score.slopes(masks)
            if form == "preservation" and score.shares(masks)[0] > 1:
                slopes = slopes * 0.0
            for name, array in grid.items():
                rough = variation_slope(array, coarse[name].neighbours, variation_power)
                area = (variation_weight * rough - sign * area_weight) / array.size
                gradient[name] = sign * coarse[name].slope(slopes[name]) + area
            grid = (grid + adam.step(Tensors(gradient))).map(lambda array: np.clip(array, 0, 1))
    masks = _enlarged(grid, coarse)
    score.note_shares(masks)
    found = 1 - masks if form == "deletion" else masks
    return x.with_(found, lambda array, mask: np.broadcast_to(mask, array.shape).astype(array.dtype))


def _enlarged(grid: Tensors, coarse: dict[str, CoarseMask]) -> Tensors:
    return Tensors({name: coarse[name].mask(array) for name, array in grid.items()})


def variation_slope(grid: Array, axes: Sequence[int], power: float) -> Array:
    """The derivative of the sum over places of |differences to the next place along each axis|^power."""
    differences = {axis: np.diff(grid, axis=axis, append=np.take(grid, [-1], axis)) for axis in axes}
    lengths = np.sqrt(sum((np.square(d) for d in differences.values()), np.zeros(grid.shape)))
    factor = power * np.maximum(lengths, SMALL) ** (power - 2)
    slope = np.zeros(grid.shape)
    for axis, difference in differences.items():
        along, at = np.moveaxis(factor * difference, axis, 0), np.moveaxis(slope, axis, 0)
        at -= along
        at[1:] += along[:-1]
    return slope
