"""The score of an input seen through a mask, and its derivative by the mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np

from onnxplain.methods.feature_groups import group_axes
from onnxplain.methods.masks import enlarging
from onnxplain.methods.options import Doc, Range
from onnxplain.methods.replacements import Replacement, replacement_of
from onnxplain.methods.run import Run
from onnxplain.methods.tensors import Array, Tensors

Jitter = Annotated[
    int,
    Range(0),
    Doc("how far, in elements, what is looked at is moved at random before each look, so that no single edge counts."),
]
Taken = Annotated[
    Replacement | None,
    Doc("what stands in the place of what is taken away, said as of occlusion; None: blur, and 0 in a table."),
]
NONE = 1e-6  # of the score: so small a difference between the input and its replacement is rounding


def taken_away(run: Run, x: Tensors, baseline: float | Sequence[float] | str | None) -> Tensors:
    """See `replacement_of`; None: each input blurred, and zeros for a table."""
    if baseline is not None:
        return replacement_of(run, x, baseline)
    kinds: dict[str, float | str] = {name: "blur" if array.ndim > 2 else 0.0 for name, array in x.items()}
    return Tensors({name: replacement_of(run, Tensors({name: x[name]}), kind)[name] for name, kind in kinds.items()})


class MaskedScore:
    """Which share of what an input's score has over its replacement's a masked input keeps.

    s(m) = (F(b + m (x - b)) - F(b)) / |F(x) - F(b)|, m a mask of each input, (S, …) of length one along channels and
    features; of several rows of b, F is the mean over them. Shares of scores of any unit compare with areas. Each look
    for a slope sees the masked input moved by a random shift of up to `jitter` elements along its positions, at whose
    ends its last elements are repeated.
    """

    def __init__(self, run: Run, x: Tensors, replacement: Tensors, seed: Array, jitter: int, random_seed: int):
        self._run, self._x, self._replacement, self._seed, self._jitter = run, x, replacement, seed, jitter
        self._generator = np.random.default_rng(random_seed)
        whole, self._gone = float(run.score(x, seed)[0]), float(run.score(replacement, seed).mean())
        self._span = abs(whole - self._gone)
        if self._span <= NONE * max(abs(whole), abs(self._gone)):
            self._span = 1.0
            run.note("the input and its replacement have the same score, of which no part has a share: say a baseline")
        elif whole < self._gone:
            run.note("the input's score is below that of its replacement: as a whole it speaks against the target")

    def shares(self, masks: Tensors) -> Array:
        """s at S masks, unmoved, float64 (S,)."""
        rows = [self._replacement.row(n) for n in range(self._replacement.rows)]
        scores = np.mean([self._run.score(_points(self._x, row, masks), self._seed) for row in rows], 0)
        return np.asarray((scores - self._gone) / self._span)

    def note_shares(self, masks: Tensors) -> None:
        """Say what is left of the score at a mask, the largest of all explanations."""
        (share,) = self.shares(masks)
        self._run.note("of what the input's score has over its replacement's the mask leaves {figure:.0%}", share)

    def slopes(self, masks: Tensors) -> Tensors:
        """ds/dm at S masks, moved by one random shift; float64, shaped as the masks.

        A base that answers in shares of the score puts these in the place of its slope times x - b.
        """
        shift = {name: self._drawn(array.shape) for name, array in self._x.items()}
        x, masks, gone = (_moved(tensors, shift) for tensors in (self._x, masks, self._replacement))
        slopes = masks.map(np.zeros_like)
        for n in range(gone.rows):
            answers = self._run.relevance(_points(x, gone.row(n), masks), self._seed).wide()
            answers = answers * (x - gone.row(n)) if self._run.per_unit else answers
            slopes = slopes + answers.map(_over_channels)
        return _moved_back(slopes / (gone.rows * self._span), shift)

    def _drawn(self, shape: Sequence[int]) -> dict[int, Array]:
        """For each axis of positions which element stands at each place."""
        axes = group_axes(shape) if len(shape) > 2 else ()
        steps = self._generator.integers(-self._jitter, self._jitter + 1, len(axes))
        pairs = zip(axes, steps, strict=True)
        return {axis: np.clip(np.arange(shape[axis]) + step, 0, shape[axis] - 1) for axis, step in pairs}


def _points(x: Tensors, gone: Tensors, masks: Tensors) -> Tensors:
    return Tensors({name: (gone[name] + masks[name] * (x[name] - gone[name])).astype(x[name].dtype) for name in x})


def _over_channels(array: Array) -> Array:
    """Summed over all but the positions; those axes stay, of length one."""
    axes = tuple(axis for axis in range(1, array.ndim) if axis not in group_axes(array.shape))
    return np.asarray(array.sum(axes, keepdims=True))


def _moved(tensors: Tensors, shift: dict[str, dict[int, Array]]) -> Tensors:
    moved = dict(tensors)
    for name, of_axes in shift.items():
        for axis, places in of_axes.items():
            moved[name] = np.take(moved[name], places, axis)
    return Tensors(moved)


def _moved_back(tensors: Tensors, shift: dict[str, dict[int, Array]]) -> Tensors:
    """The adjoint of `_moved`: an element that stood at several places gets their sum."""
    moved = dict(tensors)
    for name, of_axes in shift.items():
        for axis, places in of_axes.items():
            back = np.zeros_like(moved[name])
            np.add.at(np.moveaxis(back, axis, 0), places, np.moveaxis(moved[name], axis, 0))
            moved[name] = back
    return Tensors(moved)


class CoarseMask:
    """A mask of one input that is linearly enlarged from a coarse grid of numbers, along the axes of positions.

    shape: of the input, (1, …). cells: of the grid along each such axis, at most; columns of a table have a cell each.
    """

    def __init__(self, shape: Sequence[int], cells: int):
        coarse = {axis: shape[axis] if len(shape) <= 2 else min(shape[axis], cells) for axis in group_axes(shape)}
        self.neighbours = tuple(coarse) if len(shape) > 2 else ()  # axes along which cells lie beside each other
        self.shape = tuple(coarse.get(axis, 1) for axis in range(1, len(shape)))
        self._matrices = {a: enlarging(side, shape[a]) for a, side in coarse.items() if side < shape[a]}

    def mask(self, grid: Array) -> Array:
        """(S, *shape) enlarged to the input's positions."""
        for axis, matrix in self._matrices.items():
            grid = np.moveaxis(np.moveaxis(grid, axis, -1) @ matrix.T, -1, axis)
        return grid

    def slope(self, slope: Array) -> Array:
        """The derivative by the grid, given that by the mask: the adjoint of `mask`."""
        for axis, matrix in self._matrices.items():
            slope = np.moveaxis(np.moveaxis(slope, axis, -1) @ matrix, -1, axis)
        return slope
