"""Windows that slide over the inputs, one input after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from onnxplain.errors import UsageError
from onnxplain.methods.feature_groups import lengths_of, windows
from onnxplain.methods.tensors import Array, Tensors

Place = tuple[str, tuple[slice, ...]]  # an input, and the window in it behind axis 0


def all_windows(
    x: Tensors, patch: int | Sequence[float] | None, stride: int | Sequence[float] | None, cells: int
) -> Iterator[Place]:
    """Every window of every input. cells: beside each other along the longer side of a picture where patch is None.

    Raises UsageError for a stride that leaves elements out.
    """
    for name, array in x.items():
        lengths = lengths_of(array.shape, patch, cells)
        steps = tuple(max(1, length // 2) for length in lengths)
        if stride is not None:
            steps = lengths_of(array.shape, stride, cells)
            for length, step, side in zip(lengths, steps, array.shape[1:], strict=True):
                if step > length and length < side:
                    raise UsageError(f"a stride of {step} steps over elements that a window of {length} never covers.")
        for window in windows(array.shape, lengths, steps):
            yield name, window


def with_windows(x: Tensors, places: Sequence[Place], contents: Sequence[Array]) -> Tensors:
    """A point for each window: x, and in the window what it holds instead."""
    points = Tensors({name: np.repeat(array, len(places), 0) for name, array in x.items()})
    for row, ((name, window), content) in enumerate(zip(places, contents, strict=True)):
        points[name][row][window] = content
    return points


class WindowMeans:
    """The mean over the windows that cover an element of what each window is given, and its standard error."""

    def __init__(self, x: Tensors):
        self._sums, self._squares, self._count = (x.map(_zeros) for _ in range(3))

    def add(self, place: Place, value: float, error: float = 0.0) -> None:
        """The value of one window, with its standard error, which is independent of the others'."""
        name, window = place
        self._sums[name][0][window] += value
        self._squares[name][0][window] += error**2
        self._count[name][0][window] += 1

    def means(self) -> Tensors:
        """Shaped as the inputs, float64."""
        return self._sums / self._count

    def errors(self) -> Tensors:
        """Standard errors of the means."""
        return self._squares**0.5 / self._count


def _zeros(array: Array) -> Array:
    return np.zeros(array.shape, np.float64)
