"""Masks that are nowhere finer than a kernel, and masks of one area."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np

from onnxplain.methods.masked_score import CoarseMask
from onnxplain.methods.tensors import Array

TEMPERATURE = 0.05  # of the smooth maximum, in the unit of a mask, 0 to 1
LEAST = 1 / 3  # of a kernel's values; beyond them it ends


class SmoothMask:
    """m(u) = smooth maximum over v of k(u - v) g(v), on the cells of a coarse grid: Fong et al. 2019, sect. 3.2.

    k(d) = exp(-max(0, |d| / radius - 1)^2 / 4), d in cells. The smooth maximum of values f is sum f exp(f / T) / sum
    exp(f / T). The columns of a table have no neighbours: there m = g.
    """

    def __init__(self, coarse: CoarseMask, radius: float):
        self.coarse = coarse
        axes = coarse.neighbours if radius else ()
        reach = int(radius * (1 + 2 * np.sqrt(-np.log(LEAST))))
        steps = [step for step in product(range(-reach, reach + 1), repeat=len(axes))]
        lengths = [float(np.linalg.norm(step)) for step in steps]
        kernel = [np.exp(-(max(0.0, d / radius - 1) ** 2) / 4) if axes else 1.0 for d in lengths]
        self._around = [
            (k, dict(zip(axes, step, strict=True))) for k, step in zip(kernel, steps, strict=True) if k >= LEAST
        ]
        self._pads = [(reach, reach) if axis in axes else (0, 0) for axis in range(len(coarse.shape) + 1)]

    def mask(self, grid: Array) -> tuple[Array, Array]:
        """(m, its derivative by k g of each v around u) of grids (S, *cells): (S, *cells), (places around, S, *cells).

        Beyond the ends g is 0.
        """
        padded = np.pad(grid, self._pads)
        values = np.stack([k * padded[self._window(step, grid.shape)] for k, step in self._around])
        powers = np.exp((values - values.max(0)) / TEMPERATURE)
        shares = powers / powers.sum(0)
        mask = (shares * values).sum(0)
        return mask, shares * (1 + (values - mask) / TEMPERATURE)

    def slope(self, slope: Array, derivatives: Array) -> Array:
        """The derivative by the grid, given that by m and what `mask` said beside."""
        total = np.pad(np.zeros(slope.shape), self._pads)
        for (k, step), derivative in zip(self._around, derivatives, strict=True):
            total[self._window(step, slope.shape)] += k * derivative * slope
        return np.asarray(total[self._window({}, slope.shape)])

    def _window(self, step: dict[int, int], shape: Sequence[int]) -> tuple[slice, ...]:
        """Of a padded array what lies `step` further than the array's own places."""
        starts = [before + step.get(axis, 0) for axis, (before, _) in enumerate(self._pads)]
        return tuple(slice(start, start + side) for start, side in zip(starts, shape, strict=True))


def area_slope(masks: Array, areas: Sequence[float]) -> Array:
    """The derivative of mean (sorted(m) - r)^2 of each mask, r ones on a share of it, its area, and zeros elsewhere.

    masks (S, …), areas (S,): as masks. It is the paper's measure of how far a mask is from one of that area: 0 for no
    other. Equal elements get the mean of what falls to them, so that their order plays no part.
    """
    slopes = np.empty(masks.shape)
    for mask, area, slope in zip(masks, areas, slopes, strict=True):
        values, place, count = np.unique(mask.reshape(-1), return_inverse=True, return_counts=True)
        goal = np.clip(np.arange(1, mask.size + 1) - (1 - area) * mask.size, 0, 1)
        means = np.add.reduceat(goal, np.cumsum(count) - count) / count
        slope[...] = (2 * (values - means) / mask.size)[place].reshape(mask.shape)
    return slopes
