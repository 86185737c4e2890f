"""What could stand in a window, drawn from data: as it comes, or as its surroundings let expect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxplain.methods.feature_groups import channel_axis, group_axes
from onnxplain.methods.tensors import Array

PATCHES = 4000  # of the background that a Gaussian is learned from, whatever its size
LARGEST = 2048  # numbers of a patch: its covariance is that squared, and has to be inverted


@dataclass
class Marginal:
    """Contents of a window that rows of a background have there. rows (B, …)."""

    rows: Array

    def draw(self, x: Array, window: tuple[slice, ...], count: int, generator: np.random.Generator) -> Array:
        """(count, *window)."""
        return self.rows[generator.integers(len(self.rows), size=count)][(slice(None), *window)]


@dataclass
class Conditional:
    """Contents of a window given its surroundings, by a Gaussian of patches of a background.

    Zintgraf et al. 2017, section 3.1: a patch of the window and `surround` elements on each side is Gaussian, and what
    stands in the window given the rest is drawn by its conditional mean and covariance. Here these are of patches at
    all places of the background rows, joint over channels, and shrunken (Ledoit and Wolf 2004), so that few rows are
    enough; the paper has each place and channel by itself, from thousands of pictures. A table has no neighbours: the
    patch of a column is its row. Drawn values are kept within the background's range, channel by channel.
    """

    rows: Array
    surround: int
    generator: np.random.Generator
    _learned: dict[tuple[int, ...], tuple[Array, Array]] = field(default_factory=dict)
    _solved: dict[tuple[object, ...], tuple[Array, Array]] = field(default_factory=dict)

    def draw(self, x: Array, window: tuple[slice, ...], count: int, generator: np.random.Generator) -> Array:
        """(count, *window). x (1, …): what the surroundings are."""
        sides = x.shape[1:]
        spans = [w.indices(side)[:2] for w, side in zip(window, sides, strict=True)]
        patch, inside = self._around(sides, spans)
        sizes = tuple(stop - start for start, stop in patch)
        mean, factor = self._gaussian(sizes)
        place = np.zeros(sizes, bool)
        place[inside] = True
        own = place.ravel()
        key = (sizes, *((s.start, s.stop) for s in inside))
        if key not in self._solved:
            self._solved[key] = _conditioned(factor, own)
        weights, root = self._solved[key]
        outside = x[0][tuple(slice(*span) for span in patch)].ravel()[~own].astype(np.float64)
        expected = mean[own] + weights @ (outside - mean[~own])
        drawn = expected + generator.standard_normal((count, len(expected))) @ root.T
        low, high = self._range(window, len(sides))
        shape = tuple(stop - start for start, stop in spans)
        return np.asarray(np.clip(drawn.reshape(count, *shape), low, high), x.dtype)

    def patch_size(self, x: Array, window: tuple[slice, ...]) -> int:
        """Numbers of a window with its surroundings."""
        spans = [w.indices(side)[:2] for w, side in zip(window, x.shape[1:], strict=True)]
        patch, _ = self._around(x.shape[1:], spans)
        return int(np.prod([stop - start for start, stop in patch]))

    def _around(
        self, sides: Sequence[int], spans: Sequence[tuple[int, int]]
    ) -> tuple[list[tuple[int, int]], tuple[slice, ...]]:
        """(start, stop) of the patch along each axis, moved to lie inside; where the window is in it."""
        axes = group_axes((1, *sides))
        patch, inside = [], []
        for axis, (side, (start, stop)) in enumerate(zip(sides, spans, strict=True), 1):
            length = side
            if axis in axes and len(sides) > 1:
                length = min(side, stop - start + 2 * self.surround)
            first = min(max(0, start - self.surround), side - length)
            patch.append((first, first + length))
            inside.append(slice(start - first, stop - first))
        return patch, tuple(inside)

    def _gaussian(self, sizes: tuple[int, ...]) -> tuple[Array, Array]:
        """(mean, covariance) of patches of these sides."""
        if sizes not in self._learned:
            places = [side - size + 1 for side, size in zip(self.rows.shape[1:], sizes, strict=True)]
            many = len(self.rows) * int(np.prod(places))
            found = []
            for n in range(min(PATCHES, many)):
                corner = [int(self.generator.integers(place)) for place in places]
                row = self.rows[n % len(self.rows)]
                found.append(row[tuple(slice(c, c + size) for c, size in zip(corner, sizes, strict=True))].ravel())
            self._learned[sizes] = shrunken(np.stack(found).astype(np.float64))
        return self._learned[sizes]

    def _range(self, window: tuple[slice, ...], axes: int) -> tuple[Array, Array]:
        """Lowest and highest value of each channel, or column, that the window has."""
        own = channel_axis(self.rows.shape)
        over = tuple(axis for axis in range(axes + 1) if axis != own)
        low, high = self.rows.min(over, keepdims=True)[0], self.rows.max(over, keepdims=True)[0]
        keep = tuple(w if axis == own else slice(None) for axis, w in enumerate(window, 1))
        return low[keep], high[keep]


def shrunken(rows: Array) -> tuple[Array, Array]:
    """(mean, covariance) of rows (B, D) by Ledoit and Wolf 2004: mixed with a multiple of the identity.

    The share of that is what makes the expected squared error least; so few rows give an invertible matrix.
    """
    count, width = rows.shape
    mean = rows.mean(0)
    centred = rows - mean
    sample = centred.T @ centred / count
    level = np.trace(sample) / width
    distance = np.square(sample).sum() / width - level**2
    squares = np.square(centred)
    noise = ((squares.T @ squares).sum() / count - np.square(sample).sum()) / count / width
    share = 1.0 if distance <= 0 else float(np.clip(noise / distance, 0, 1))
    floor = max(share * level, 1e-6 * level, np.finfo(float).tiny)  # a background without variance is a mean
    return mean, (1 - share) * sample + floor * np.eye(width)


def _conditioned(covariance: Array, own: Array) -> tuple[Array, Array]:
    """(weights of the rest in the conditional mean, a root of the conditional covariance) of the `own` elements."""
    rest = ~own
    inside = covariance[np.ix_(own, own)]
    if not rest.any():
        return np.zeros((int(own.sum()), 0)), np.linalg.cholesky(inside)
    across = covariance[np.ix_(own, rest)]
    weights = np.linalg.solve(covariance[np.ix_(rest, rest)], across.T).T
    values, vectors = np.linalg.eigh(inside - weights @ across.T)
    return weights, vectors * np.sqrt(np.maximum(values, 0.0))
