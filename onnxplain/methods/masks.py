"""Random masks: small random grids, enlarged and shifted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from math import ceil

import numpy as np

from onnxplain.methods.feature_groups import group_axes
from onnxplain.methods.tensors import Array


@dataclass(frozen=True)
class GridMasks:
    """An endless row of masks of one input: a cell of a coarse grid is kept with `probability`, cells are enlarged.

    shape: of the input, (1, …). cells: of the grid along each axis along which positions lie; an axis that is no longer
    than that, and the columns of a table, have a cell for each position and are neither enlarged nor shifted. whole:
    nor is any other, so that every position is kept or not.
    """

    shape: Sequence[int]
    cells: int
    probability: float
    random_seed: Sequence[int]
    whole: bool = False

    @cached_property
    def generator(self) -> np.random.Generator:
        """Where in the row the next mask is drawn."""
        return np.random.default_rng(self.random_seed)

    @property
    def mask_shape(self) -> tuple[int, ...]:
        """Of one mask, without the axis of samples: 1 along channels and features, which it covers alike."""
        axes = group_axes(self.shape)
        return tuple(side if axis in axes else 1 for axis, side in enumerate(self.shape))[1:]

    def draw(self, count: int) -> Array:
        """The next masks, float32 (count, *mask_shape) in 0..1, the same in whatever pieces they are drawn."""
        drawn = np.empty((count, *self.mask_shape), np.float32)
        for mask in drawn:
            mask[...] = self._one()
        return drawn

    def _one(self) -> Array:
        """As the paper: bilinear to (h + 1) cells, cut out at a random shift of up to one cell."""
        sides = self.mask_shape
        coarse = [self._coarse(side) for side in sides]
        mask = (self.generator.random(coarse) < self.probability).astype(np.float64)
        for axis, (side, cells) in enumerate(zip(sides, coarse, strict=True)):
            if cells < side:
                cell = ceil(side / cells)
                shift = int(self.generator.integers(0, cell))
                enlarged = enlargement(cells, (cells + 1) * cell)[shift : shift + side]
                mask = _enlarged(mask, axis, enlarged)
        return mask

    def _coarse(self, side: int) -> int:
        return side if len(self.shape) <= 2 or self.whole else min(side, self.cells)


def _enlarged(mask: Array, axis: int, matrix: Array) -> Array:
    """One axis of a mask by a matrix (after, before), the inner loop along what lies side by side in memory."""
    if axis == mask.ndim - 1:
        return np.asarray(np.einsum("...b,bc->...c", mask, np.ascontiguousarray(matrix.T)))
    return np.moveaxis(np.einsum("ab,b...->a...", matrix, np.moveaxis(mask, axis, 0)), 0, axis)


@cache
def enlargement(before: int, after: int) -> Array:
    """The matrix (after, before) of linear interpolation between the middles of cells; rows sum to 1."""
    at = np.clip((np.arange(after) + 0.5) * before / after - 0.5, 0, before - 1)
    low = np.minimum(at.astype(np.int64), max(before - 2, 0))
    matrix = np.zeros((after, before))
    matrix[np.arange(after), low] = 1 - (at - low)
    if before > 1:
        matrix[np.arange(after), low + 1] = at - low
    matrix.flags.writeable = False  # it is shared
    return matrix
