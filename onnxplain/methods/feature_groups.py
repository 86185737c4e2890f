"""Feature groups: which elements of the inputs are switched together, and what switching makes of a point."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import ceil
from typing import Annotated, Literal

import numpy as np

from onnxplain.errors import UsageError
from onnxplain.methods.options import Doc, Range
from onnxplain.methods.run import Run
from onnxplain.methods.tensors import Array, Tensors

Groups = Annotated[
    Literal["auto", "elements", "inputs"] | list[float],
    Doc(
        "auto (patches of a picture, windows of a sequence, columns of a table), elements, inputs, or a number for "
        "each column or step: those of one number go together, such as the columns of a one-hot code."
    ),
]
Lengths = Annotated[
    int | list[float] | None,
    Range(0),
    Doc("lengths of patches or windows: one number, or one for each axis behind the first, 0 for a whole axis."),
]
CHANNELS = (1, 2, 3, 4)  # so long is an axis of channels of a picture, where an axis beside it is longer


@dataclass(frozen=True)
class FeatureGroups:
    """A partition of the elements of the inputs. Each group is present or absent as one.

    numbers: the group of each element, int64, broadcasting to the input's (1, …). like: the inputs, for their shapes.
    """

    numbers: Tensors
    count: int
    like: Tensors

    @cached_property
    def sizes(self) -> Array:
        """Elements of each group, float64 (count,)."""
        sizes = np.zeros(self.count)
        for name, numbers in self.numbers.items():
            sizes += np.bincount(numbers.ravel(), minlength=self.count) * (self.like[name].size / max(1, numbers.size))
        return sizes

    def points(self, x: Tensors, baseline: Tensors, present: Array) -> Tensors:
        """S points: x where a group is present, else the baseline. present bool (S, count)."""
        return Tensors(
            {name: np.where(present[:, self.numbers[name][0]], array, baseline[name]) for name, array in x.items()}
        )

    def spread(self, values: Array) -> Tensors:
        """Each element gets the value of its group. values (count,); result float64, shaped as the inputs."""
        return self.like.with_(self.numbers, lambda array, numbers: np.broadcast_to(values[numbers], array.shape))

    def shared(self, values: Array) -> Tensors:
        """The elements of a group share its value equally, so that their sum is the sum of the values."""
        return self.spread(values / np.maximum(self.sizes, 1))

    def scores(self, run: Run, x: Tensors, baseline: Tensors, seed: Array, present: Array) -> Array:
        """The score with the present groups, float64 (S,); of several baseline rows the mean over them.

        Call it in pieces that `run.batches` gives.
        """
        scores = [run.score(self.points(x, baseline.row(n), present), seed) for n in range(baseline.rows)]
        return np.mean(scores, 0) if len(scores) > 1 else scores[0]


def partition(x: Tensors, groups: Groups, patch: int | Sequence[float] | None, cells: int) -> FeatureGroups:
    """The feature groups that the options of a method name.

    groups: `auto`: patches of a picture, windows of a sequence, columns of a table; `elements`: each by itself;
    `inputs`: each input whole; or a number for each column or step, those of one number together. patch: lengths of
    patches and windows, see `lengths_of`. cells: in how many a side is cut where patch is None. Raises UsageError.
    """
    if groups != "auto" and patch is not None:
        raise UsageError("patch: how large the groups are is said by groups already; give one of the two.")
    numbers, count = {}, 0
    for name, array in x.items():
        if groups == "elements":
            found = np.arange(array[0].size).reshape(1, *array.shape[1:])
        elif groups == "inputs":
            found = np.zeros((1,) * array.ndim, np.int64)
        elif isinstance(groups, str):
            found = _cut(array.shape, lengths_of(array.shape, patch, cells))
        else:
            found = _named(name, array.shape, groups)
        numbers[name] = found + count
        count += int(found.max()) + 1 if array.size else 0
    return FeatureGroups(Tensors(numbers), count, x)


def group_axes(shape: Sequence[int]) -> tuple[int, ...]:
    """The axes along which positions lie: of pictures both sides, of sequences time, of a table its columns.

    The other axes behind the first are channels or features: they belong to a position.
    """
    if len(shape) == 3:
        return (2,) if shape[1] in CHANNELS and shape[2] > CHANNELS[-1] else (1,)
    if len(shape) == 4 and shape[3] in CHANNELS and shape[1] not in CHANNELS and min(shape[1:3]) > CHANNELS[-1]:
        return (1, 2)
    return tuple(range(1, len(shape))) if len(shape) <= 2 else tuple(range(2, len(shape)))


def channel_axis(shape: Sequence[int]) -> int | None:
    """The axis whose entries have numbers of their own in a baseline: channels, features, columns."""
    if len(shape) == 2:
        return 1
    rest = [axis for axis in range(1, len(shape)) if axis not in group_axes(shape)]
    return rest[0] if rest else None


def lengths_of(shape: Sequence[int], patch: int | Sequence[float] | None, cells: int) -> tuple[int, ...]:
    """Length of a patch along each axis behind the first.

    patch: one number for the sides of a picture or the time of a sequence; or one for each axis behind the first, 0 for
    a whole axis; None: a side in `cells` squares, a time axis in cells * cells windows, columns alone. Raises
    UsageError.
    """
    axes = group_axes(shape)
    if patch is not None and not isinstance(patch, int):
        if len(patch) != len(shape) - 1 or any(length != int(length) for length in patch):
            raise UsageError(
                f"{list(patch)} are no lengths of a patch of {list(shape)}: give one whole number, or one for each of "
                f"its {len(shape) - 1} axes behind the first, 0 for a whole axis."
            )
        return tuple(int(length) or shape[n + 1] for n, length in enumerate(patch))
    longest = max((shape[axis] for axis in axes), default=1)
    own = 1 if len(shape) <= 2 else ceil(longest / (cells if len(axes) > 1 else cells**2))
    length = own if patch is None else patch
    return tuple((length or shape[axis]) if axis in axes else shape[axis] for axis in range(1, len(shape)))


def windows(shape: Sequence[int], lengths: Sequence[int], strides: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    """Sliding windows over the axes behind the first, the last of an axis cut off at its end, as captum has them."""
    starts = [
        range(0, max(1, ceil((side - length) / stride) * stride + 1), stride)
        for side, length, stride in zip(shape[1:], lengths, strides, strict=True)
    ]
    for corner in product(*starts):
        yield tuple(slice(start, start + length) for start, length in zip(corner, lengths, strict=True))


def _cut(shape: Sequence[int], lengths: Sequence[int]) -> Array:
    """Numbers of the patches in row-major order; axes that are not cut have length one."""
    numbers = np.zeros((1,) * len(shape), np.int64)
    for axis, length in enumerate(lengths, 1):
        cells = ceil(shape[axis] / length) if shape[axis] else 1
        if cells > 1:
            along = (np.arange(shape[axis]) // length).reshape([-1 if n == axis else 1 for n in range(len(shape))])
            numbers = numbers * cells + along
    return numbers


def _named(name: str, shape: Sequence[int], groups: Sequence[float]) -> Array:
    """Positions by the number of their group, renumbered from 0 in order of these numbers."""
    axes = group_axes(shape)
    if len(axes) != 1 or shape[axes[0]] != len(groups):
        raise UsageError(
            f"groups has {len(groups)} numbers, one for each column of a table or step of a sequence, and {name} "
            f"{list(shape)} has not as many."
        )
    numbers = np.unique(np.asarray(groups), return_inverse=True)[1]
    return numbers.reshape([-1 if n == axes[0] else 1 for n in range(len(shape))]).astype(np.int64)
