"""Extremal perturbation: of all smooth masks of one area the one that keeps, or takes, most of the score."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np

from onnxplain.methods.adam import Adam
from onnxplain.methods.masked_score import CoarseMask, Jitter, MaskedScore, Taken, taken_away
from onnxplain.methods.options import Range
from onnxplain.methods.registry import method
from onnxplain.methods.run import Run
from onnxplain.methods.smooth_masks import SmoothMask, area_slope
from onnxplain.methods.tensors import Array, Tensors

RISE = 300.0  # from the first to the last step the weight of the area grows so many times


@method(
    "extremal_perturbation",
    channels="mean",
    signed=False,
    cite="Fong, Patrick and Vedaldi 2019, Understanding Deep Networks via Extremal Perturbations and Smooth Masks",
)
def extremal_perturbation(
    run: Run,
    x: Tensors,
    seed: Array,
    *,
    areas: Annotated[list[float], Range(0.001, 0.999)] = (0.05, 0.1, 0.2, 0.4),  # type: ignore[assignment]
    form: Literal["preservation", "deletion"] = "preservation",
    baseline: Taken = None,
    steps: Annotated[int, Range(1, 1_000_000)] = 150,
    cells: Annotated[int, Range(1)] = 32,
    radius: Annotated[float, Range(0)] = 1.5,
    area_weight: Annotated[float, Range(0)] = 200.0,
    rate: Annotated[float, Range(0)] = 0.05,
    jitter: Jitter = 4,
    random_seed: Annotated[int, Range(0)] = 0,
) -> Tensors:
    """Mean of smooth masks, each of a given area and found by gradient ascent to keep most of the score.

    For each area a: m maximises s(m) - weight mean (sorted(m) - r_a)^2, r_a ones on the share a and zeros elsewhere,
    and R is the mean of the masks: what is in the smallest of them is the most. s(m) is the share that b + m (x - b)
    keeps of F(x) - F(b). Deletion: m minimises s(m), a is what it takes away, and R the mean of 1 - m. m is the smooth
    maximum of a kernel around each cell, enlarged linearly; the paper takes it at every pixel. Adam takes the steps
    from m = 1/2 and what leaves 0 … 1 is put back; the paper has 800 steps with momentum. All areas share a run.

    x (1, …) in model units; result the same shape, 0 to 1, the same for all channels of a place.
    areas: of the masks, as shares of the input.
    form: preservation: what keeps the score; deletion: what takes it away.
    steps: of ascent; each is one backward pass for each area, where the one before has led.
    cells: of the grid along each side of a picture or along time; columns of a table have a cell each.
    radius: of the kernel, in cells: the mask has no finer parts.
    area_weight: at the last step; it grows to that from a 300th part.
    rate: of a step, of the mask's range 0 to 1.
    random_seed: of the jitter, the same for every row and target.
    """
    score = MaskedScore(run, x, taken_away(run, x, baseline), seed, jitter, random_seed)
    smooth = {name: SmoothMask(CoarseMask(array.shape, cells), radius) for name, array in x.items()}
    sign = 1.0 if form == "preservation" else -1.0
    ones = [area if form == "preservation" else 1 - area for area in areas]
    grid, adam = Tensors({name: np.full((len(areas), *s.coarse.shape), 0.5) for name, s in smooth.items()}), Adam(rate)
    for part in run.batches(steps):
        for step in range(part.start, part.stop):
            weight, gradient = area_weight * RISE ** ((step + 1) / steps - 1), {}
            seen = {name: smooth[name].mask(array) for name, array in grid.items()}
            slopes = score.slopes(_enlarged({name: mask for name, (mask, _) in seen.items()}, smooth))
            for name, (mask, derivatives) in seen.items():
                slope = weight * area_slope(mask, ones) - sign * smooth[name].coarse.slope(slopes[name])
                gradient[name] = smooth[name].slope(slope, derivatives)
            grid = (grid + adam.step(Tensors(gradient))).map(lambda array: np.clip(array, 0, 1))
    masks = _enlarged({name: smooth[name].mask(array)[0] for name, array in grid.items()}, smooth)
    for area, share in zip(areas, score.shares(masks), strict=True):
        does = (
            f"keeping {area:.3g} of the input keeps" if form == "preservation" else f"without {area:.3g} of the input"
        )
        run.note(f"{does} {{figure:.0%}} of what its score has over its replacement's", float(share))
    found = (masks if form == "preservation" else 1 - masks).mean()
    return x.with_(found, lambda array, mask: np.broadcast_to(mask, array.shape).astype(array.dtype))


def _enlarged(masks: dict[str, Array], smooth: dict[str, SmoothMask]) -> Tensors:
    return Tensors({name: smooth[name].coarse.mask(mask) for name, mask in masks.items()})
