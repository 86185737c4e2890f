"""Frequency bands of a signal: what is switched is a part of its spectrum."""

from __future__ import annotations

import numpy as np

from onnxplain.methods.tensors import Array

SPECTRUM = ".spectrum"  # behind the name of an input: that of the relevance of its frequencies


def spectrum_shape(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """Of the spectrum of a real signal: T // 2 + 1 frequencies in place of T points in time."""
    return (*shape[:axis], shape[axis] // 2 + 1, *shape[axis + 1 :])


def with_bands(x: Array, absent: Array, present: Array, axis: int) -> Array:
    """Signals of the bands of x that are present, and the others of `absent`. Shape (S, …), type of x.

    present bool (S, …), broadcasting to the spectrum. Frequency k of T points has k periods in them. x is real: the
    inverse of its spectrum is x but for rounding, so nothing but the bands changes.
    """
    spectrum = np.where(present, np.fft.rfft(x, axis=axis), np.fft.rfft(absent, axis=axis))
    return np.fft.irfft(spectrum, n=x.shape[axis], axis=axis).astype(x.dtype)
