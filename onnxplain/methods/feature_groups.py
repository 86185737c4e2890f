"""Feature groups: which elements of the inputs are switched together, and what switching makes of a point."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from math import ceil, prod
from typing import Annotated, Literal

import numpy as np

from onnxplain.errors import UsageError
from onnxplain.methods.frequency_bands import SPECTRUM, spectrum_shape, with_bands
from onnxplain.methods.options import Doc, Range
from onnxplain.methods.run import Run
from onnxplain.methods.superpixels import Segmentation, superpixels
from onnxplain.methods.tensors import Array, Tensors, is_whole

Groups = Annotated[
    Literal["auto", "elements", "inputs", "superpixels", "quickshift", "bands"] | list[float] | list[str],
    Doc(
        "auto (patches of a picture, windows of a sequence, columns of a table), elements, inputs, superpixels or "
        "quickshift (regions of alike pixels, by scikit-image), bands (of frequencies of a signal), or a number for "
        "each column, step or token: those of one number go together, such as the columns of a one-hot code or the "
        "pieces of a word; or names of columns, with * for anything: ['color_*', 'size_*']."
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

    numbers: the group of each element, int64, broadcasting to the input's (1, …); `count`: of none, it is what it is in
    any case. like: what is switched and gets relevance: the inputs, or spectra of them. time: of inputs whose frequency
    bands are switched, the axis of time.
    """

    numbers: Tensors
    count: int
    like: Tensors
    time: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def sizes(self) -> Array:
        """Elements of each group, float64 (count,)."""
        sizes = np.zeros(self.count + 1)
        for name, numbers in self.numbers.items():
            sizes += np.bincount(numbers.ravel(), minlength=self.count + 1) * (
                self.like[name].size / max(1, numbers.size)
            )
        return sizes[: self.count]

    def points(self, x: Tensors, baseline: Tensors, present: Array) -> Tensors:
        """S points: x where a group is present, else the baseline. present bool (S, count)."""
        present = np.pad(present, ((0, 0), (0, 1)), constant_values=True)
        return Tensors({name: self._switched(name, array, baseline[name], present) for name, array in x.items()})

    def _switched(self, name: str, x: Array, baseline: Array, present: Array) -> Array:
        if name in self.time:
            return with_bands(x, baseline, present[:, self.numbers[name + SPECTRUM][0]], self.time[name])
        points = np.repeat(baseline.astype(np.result_type(x, baseline), copy=False), len(present), 0)
        np.copyto(points, x, where=present.take(self.numbers[name][0], axis=1))  # half of the time of np.where
        return points

    def spread(self, values: Array) -> Tensors:
        """Each element gets the value of its group, or 0. values (count,); result float64, shaped as the inputs."""
        values = np.append(values, 0.0)
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


def partition(
    x: Tensors, groups: Groups, patch: int | Sequence[float] | None, cells: int, absent: Tensors | None = None
) -> FeatureGroups:
    """The feature groups that the options of a method name.

    groups: `auto`: patches of a picture, windows of a sequence, columns of a table; `elements`: each by itself;
    `inputs`: each input whole; `superpixels`, `quickshift`: regions of alike pixels; `bands`: of frequencies; or a
    number for each column or step, or for each of several inputs of one number, those of one number together. patch:
    lengths of patches, windows and bands, see `lengths_of`; superpixels are as many as there would be patches. cells:
    in how many a side is cut where patch is None. absent: x with everything taken away; a group that is the same there
    is none, and no look is spent on it. Raises UsageError.
    """
    if groups not in ("auto", "superpixels", "bands") and patch is not None:
        raise UsageError("patch: how large the groups are is said by groups already; give one of the two.")
    if groups == "bands":
        return _bands(x, patch, cells)
    if not isinstance(groups, str) and 1 < len(x) == len(groups) and all(array[0].size == 1 for array in x.values()):
        own = np.unique(np.asarray(groups), return_inverse=True)[1].astype(np.int64)
        each = {name: own[n].reshape((1,) * array.ndim) for n, (name, array) in enumerate(x.items())}
        features = FeatureGroups(Tensors(each), int(own.max()) + 1, x)
        return features if absent is None else _that_change(features, x, absent)
    numbers, count = {}, 0
    for name, array in x.items():
        if groups == "elements":
            found = np.arange(array[0].size).reshape(1, *array.shape[1:])
        elif groups == "inputs":
            found = np.zeros((1,) * array.ndim, np.int64)
        elif groups == "superpixels" or groups == "quickshift":
            found = _regions(name, array, groups, patch, cells)
        elif isinstance(groups, str):
            found = _cut(array.shape, lengths_of(array.shape, patch, cells))
        else:
            found = _named(name, array.shape, groups)
        numbers[name] = found + count
        count += int(found.max()) + 1 if array.size else 0
    features = FeatureGroups(Tensors(numbers), count, x)
    return features if absent is None else _that_change(features, x, absent)


def _that_change(features: FeatureGroups, x: Tensors, absent: Tensors) -> FeatureGroups:
    """Without the groups whose elements are all the same when absent; one stays in any case."""
    changes = np.zeros(features.count, bool)
    for name, array in x.items():
        numbers = np.broadcast_to(features.numbers[name], array.shape)
        differs = (array != absent[name]) & ~(np.isnan(array) & np.isnan(absent[name]))
        changes[numbers[differs.any(0, keepdims=True)]] = True
    changes[0] |= not changes.any()
    count = int(changes.sum())
    renumbered = np.where(changes, np.cumsum(changes) - 1, count)
    return FeatureGroups(features.numbers.map(lambda numbers: renumbered[numbers]), count, x)


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


def _regions(name: str, x: Array, segmentation: Segmentation, patch: int | Sequence[float] | None, cells: int) -> Array:
    """Numbers of the superpixels of a picture; where patch is None at most `cells` squared."""
    axes = group_axes(x.shape)
    if x.ndim != 4 or len(axes) != 2:
        raise UsageError(f"groups={segmentation} are regions of a picture, and {name} {list(x.shape)} is none.")
    lengths = lengths_of(x.shape, patch, cells)
    count = round(prod(x.shape[axis] / lengths[axis - 1] for axis in axes))
    return superpixels(x, (axes[0], axes[1]), segmentation, max(1, count))


def _bands(x: Tensors, patch: int | Sequence[float] | None, cells: int) -> FeatureGroups:
    """Neighbouring frequencies of a signal, the same of all its channels."""
    numbers, time, spectra, count = {}, {}, {}, 0
    for name, array in x.items():
        axes = group_axes(array.shape)
        if array.ndim > 3 or len(axes) != 1 or is_whole(array):
            raise UsageError(f"groups=bands are of a signal over time, and {name} {list(array.shape)} is none.")
        time[name], key = axes[0], name + SPECTRUM
        shape = spectrum_shape(array.shape, axes[0])
        length = patch if isinstance(patch, int) and patch else ceil(shape[axes[0]] / cells**2)
        lengths = [length if axis == axes[0] else shape[axis] for axis in range(1, array.ndim)]
        if patch is not None and not isinstance(patch, int):
            lengths = list(lengths_of(shape, patch, cells))
        numbers[key] = _cut(shape, lengths) + count
        count = int(numbers[key].max()) + 1
        spectra[key] = np.zeros(shape, array.dtype)
    return FeatureGroups(Tensors(numbers), count, Tensors(spectra), time)


def _named(name: str, shape: Sequence[int], groups: Sequence[float] | Sequence[str]) -> Array:
    """Positions by the number of their group, renumbered from 0 in order of these numbers."""
    axes = group_axes(shape)
    if len(axes) != 1 or shape[axes[0]] != len(groups):
        raise UsageError(
            f"groups has {len(groups)} numbers, one for each column of a table or step of a sequence, and {name} "
            f"{list(shape)} has not as many."
        )
    numbers = np.unique(np.asarray(groups), return_inverse=True)[1]
    return numbers.reshape([-1 if n == axes[0] else 1 for n in range(len(shape))]).astype(np.int64)
