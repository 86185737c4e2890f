"""Channels: the reduction from a tensor of relevance to the one map that is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from onnxplain.errors import InputError

Reduction = Literal["sum", "max", "mean"]


def reduce_channels(array: Any, layout: str = "NCHW", how: Reduction = "sum") -> NDArray[np.float32]:
    """One sample (C, H, W) or (H, W, C) -> (H, W), float32; a leading batch axis of one is dropped.

    layout: letters as in "NCHW", "NHWC", "NLC"; without a C nothing is reduced. how: `sum` (in float64) keeps
    conservation, for relevance; `max` is the largest |value|, for saliency (Simonyan et al. 2014); `mean` the average.
    """
    values = np.asarray(array)
    axes = layout.upper().replace("N", "")
    if values.ndim == len(axes) + 1 and values.shape[0] == 1:
        values = values[0]
    if values.ndim != len(axes):
        raise InputError(
            f"layout {layout} means {len(axes)} axes for one sample, but the array has shape {values.shape}."
        )
    if "C" not in axes:
        return values.astype(np.float32)
    axis = axes.index("C")
    match how:
        case "sum":
            reduced = values.sum(axis, dtype=np.float64)
        case "mean":
            reduced = values.mean(axis, dtype=np.float64)
        case "max":
            reduced = np.abs(values).max(axis)
        case _:
            raise InputError(f"no channel reduction named {how!r}: use sum, max or mean.")
    return np.asarray(reduced, dtype=np.float32)


def sample_layout(shape: Sequence[int]) -> str | None:
    """NCHW or NHWC for the shape of one sample of a picture, None for anything else."""
    if len(shape) != 3:
        return None
    if shape[0] in (1, 2, 3, 4) and min(shape[1:]) > 4:
        return "NCHW"
    if shape[2] in (1, 2, 3, 4) and min(shape[:2]) > 4:
        return "NHWC"
    return "NCHW"
