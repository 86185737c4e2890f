"""How the points of a sample become feeds of runs, and how what a run answers becomes theirs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from onnxplain.errors import InputError, NotFinite
from onnxplain.inputs import InputSpec
from onnxplain.inputs.targets import Target
from onnxplain.methods.tensors import Tensors
from onnxplain.runtime import chunking
from onnxplain.runtime.finite import Holes
from onnxplain.runtime.session import Array


class PointRuns:
    """The inputs of a call, of which some move. `row` is the sample that is looked at; it is set from outside.

    stacked: many points go to a run, along axis 0. whole: a point is the whole input, one a run. Else a point takes its
    sample's place in the batch, the other rows as they are. rows: samples. fixed: the batch that the model asks for, if
    it does.
    """

    def __init__(
        self, specs: Sequence[InputSpec], feeds: Mapping[str, Array], moving: Sequence[str], shape: tuple[int, ...],
        samples: bool, proven: bool, method: str,
    ):  # fmt: skip
        """shape: of the explained tensor. samples, proven: see `Loop`. method: its name.

        Raises InputError for an input that has not a row for each sample.
        """
        self.row = 0
        self.rows = shape[0] if samples and shape else 1
        self._specs, self._feeds, self._moving, self._shape = {s.name: s for s in specs}, feeds, moving, shape
        rows_of = {name: len(feeds[name]) if feeds[name].ndim else -1 for name in moving}
        each = all(rows == self.rows for rows in rows_of.values())
        self.stacked = samples and proven and each
        self.whole = not self.stacked and self.rows == 1
        if not self.stacked and not self.whole and not each:
            name = next(name for name, rows in rows_of.items() if rows != self.rows)
            raise InputError(
                f"{name} {list(feeds[name].shape)} has not one row for each of {self.rows} samples, and method "
                f"{method} moves each sample by itself: explain one at a time, or attribute to other inputs."
            )
        lengths = {(self._specs[name].shape or (None,))[0] for name in moving} if self.stacked else set()
        self.fixed = next((length for length in lengths if isinstance(length, int)), None)

    def point(self) -> Tensors:
        """The sample's own values of what moves, float32, float64 or int64."""
        point = {}
        for name in self._moving:
            array = self._feeds[name]
            if not self.whole:
                array = array[self.row : self.row + 1]
            elif not _leads(array):
                array = array[None]
            point[name] = real(array)
        return Tensors(point)

    def feeds(self, points: Tensors, size: int) -> Iterator[tuple[dict[str, Array], int]]:
        """Feeds of each run, and how many of its rows are points: a fixed batch is filled up with the last."""
        count = len(next(iter(points.values())))
        for part in chunking.chunks(count, size):
            rows = part.stop - part.start
            feeds = {
                name: array if name in points else self._companion(name, max(rows, self.fixed or 0))
                for name, array in self._feeds.items()
            }
            for name, array in points.items():
                feeds[name] = self._placed(name, array[part])
            yield feeds, rows

    def own(self, array: Array, rows: int, moved: bool = True) -> Array:
        """Of a run's output what belongs to its points, (points, …).

        moved: whether an axis 0 of length one of a whole input is that of the points, as it is in what moves.
        """
        if self.stacked:
            return array[:rows]
        if self.whole:
            return array if moved and _leads(array) else array[None]
        return array[self.row : self.row + 1]

    def seed(self, target: Target, dtype: type[np.floating]) -> Array:
        """(1, …the explained tensor's axes behind the samples); of a whole input (…all its axes)."""
        seed = np.asarray(target.seed).astype(dtype)
        if self.whole:
            return seed.reshape(self._shape)
        return seed[min(self.row, len(seed) - 1)][None] if seed.ndim else seed

    def seeds(self, seed: Array, rows: int) -> Array:
        """For one run."""
        if self.whole:
            return seed
        if self.stacked:
            return np.repeat(seed[:1], max(rows, self.fixed or 0), 0)
        seeds = np.zeros(self._shape, seed.dtype)
        seeds[self.row] = seed[0]
        return seeds

    # Inside

    def _companion(self, name: str, held: int) -> Array:
        """An input that does not move, for a run of `held` rows."""
        array, shape = self._feeds[name], self._specs[name].shape
        if not self.stacked or not array.ndim or not shape:
            return array
        open_rows = not isinstance(shape[0], int) or shape[0] == self.fixed
        if len(array) == self.rows and open_rows:
            return np.repeat(array[self.row : self.row + 1], held, 0)
        return array

    def _placed(self, name: str, points: Array) -> Array:
        """Points as one run is fed them, in the input's type. Raises NotFinite where it cannot hold them."""
        before = self._feeds[name]
        if before.dtype.kind in "iu" and points.dtype.kind == "f":
            points = np.rint(points)  # of a picture in bytes; tokens are switched whole
        if self.stacked:
            if self.fixed and len(points) < self.fixed:
                points = np.concatenate([points, np.repeat(points[-1:], self.fixed - len(points), 0)])
            moved = points.astype(before.dtype, copy=False)
        elif self.whole:
            moved = np.asarray(points if _leads(before) else points[0]).astype(before.dtype)
        else:
            moved = before.copy()
            moved[self.row] = points[0]
        if (holes := Holes.of(moved)) is not None:
            raise NotFinite(
                f"a point that the method makes of {name} ({before.dtype}) is none: {holes}. Its baseline or noise is "
                "beyond the range of the input's type."
            )
        return moved


def real(array: Array) -> Array:
    """In float64 if it is, whole numbers in int64, else in float32."""
    if array.dtype.kind in "iu":
        return array.astype(np.int64)
    return array if array.dtype == np.float64 else array.astype(np.float32)


def _leads(array: Array) -> bool:
    """Whether a whole input has an axis 0 of length one, which then is that of the points."""
    return array.shape[:1] == (1,)
