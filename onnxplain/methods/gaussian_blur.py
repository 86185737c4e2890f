"""Gaussian blur of one sample, to any number of standard deviations at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxplain.errors import UsageError
from onnxplain.methods.tensors import Array, Tensors

REACH = 4.0  # standard deviations at which the kernel is cut off, as scipy.ndimage has it
LONGEST = 2048  # elements of a blurred axis: its transform is a matrix
PLANES = (1, 2, 3, 4)  # lengths that the channels of a picture have


def blurred_axes(x: Tensors, axes: Sequence[float] | None) -> dict[str, tuple[int, ...]]:
    """The axes of each input along which it is blurred. axes: None for the two of a picture.

    Raises UsageError for an input that is no picture where none are given, and for axes that it has not.
    """
    found = {name: _axes(name, array.shape, axes) for name, array in x.items()}
    for name, length in longest(x, found).items():
        if length > LONGEST:
            raise UsageError(f"{name} has a blurred axis of {length} elements; blurs are of {LONGEST} at most.")
    return found


def _axes(name: str, shape: tuple[int, ...], axes: Sequence[float] | None) -> tuple[int, ...]:
    if axes is None:
        if len(shape) != 4:
            raise UsageError(
                f"{name} {list(shape)} is no picture: say along which axes it is blurred, counted from that of the "
                "samples, such as axes=[1] for time steps in (samples, time, features)."
            )
        last = shape[3] in PLANES and not (shape[1] in PLANES and min(shape[2:]) > max(PLANES))
        return (1, 2) if last and min(shape[1:3]) > max(PLANES) else (2, 3)
    found = tuple(int(axis) for axis in axes)
    if list(found) != list(axes) or len(set(found)) != len(found) or not all(0 < axis < len(shape) for axis in found):
        raise UsageError(
            f"axes {list(axes)} of {name} {list(shape)}: whole numbers from 1 to {len(shape) - 1}, each once."
        )
    return found


def longest(x: Tensors, axes: dict[str, tuple[int, ...]]) -> dict[str, int]:
    """The length of the longest blurred axis of each input."""
    return {name: max(array.shape[axis] for axis in axes[name]) for name, array in x.items()}


def blurred(array: Array, sigmas: Sequence[float] | Array, axes: Sequence[int]) -> Array:
    """The array (1, …) blurred by each standard deviation (in elements): (S, …) in its type; 0 leaves it as it is.

    The kernel is sampled at whole elements, cut off at 4 standard deviations, and sums to 1; beyond the ends the values
    are mirrored (d c b a | a b c d | d c b a), so that no edge darkens: scipy.ndimage.gaussian_filter, mode reflect.
    Such a filter is a factor for each frequency of the cosine transform, so that each blur costs one transform back.
    """
    kind = array.dtype
    waves, gains = array, {axis: _gains(array.shape[axis], sigmas) for axis in axes}
    for axis in axes:
        waves = _along(waves, axis, _cosines(array.shape[axis]).T.astype(kind))
    for axis in axes:
        shape = [len(sigmas), *(1,) * (array.ndim - 1)]
        shape[axis] = array.shape[axis]
        waves = waves * gains[axis].reshape(shape).astype(kind)
    for axis in axes:
        waves = _along(waves, axis, _cosines(array.shape[axis]).astype(kind))
    waves[np.asarray(sigmas) == 0] = array
    return np.asarray(waves, kind)


def _along(array: Array, axis: int, matrix: Array) -> Array:
    """The vectors along an axis, times the matrix."""
    return np.moveaxis(np.moveaxis(array, axis, -1) @ matrix, -1, axis)


def _cosines(length: int) -> Array:
    """The orthonormal cosine transform (DCT-II), float64 (frequency, element)."""
    waves = np.sqrt(2 / length) * np.cos(np.pi * np.outer(np.arange(length), np.arange(length) + 0.5) / length)
    waves[0] /= np.sqrt(2)
    return np.asarray(waves)


def _gains(length: int, sigmas: Sequence[float] | Array) -> Array:
    """What is left of each frequency, float64 (S, frequency)."""
    gains = np.ones((len(sigmas), length))
    for row, sigma in enumerate(sigmas):
        reach = int(REACH * min(sigma, REACH * length) + 0.5)
        if sigma >= REACH * length:
            gains[row, 1:] = 0.0  # less than exp(-78) is left of any wave
        elif reach:
            distances = np.arange(1, reach + 1)
            weights = np.exp(-0.5 * (distances / sigma) ** 2)
            total = 1 + 2 * weights.sum()
            waves = np.cos(np.pi * np.outer(np.arange(length), distances) / length)
            gains[row] = (1 + 2 * waves @ weights) / total
    return gains
