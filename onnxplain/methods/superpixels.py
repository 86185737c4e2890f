"""Superpixels: regions of alike pixels, as scikit-image finds them."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from onnxplain.errors import UsageError
from onnxplain.methods.tensors import Array

Segmentation = Literal["superpixels", "quickshift"]
COMPACTNESS = 10.0  # of SLIC: scikit-image's default; larger regions are squarer
QUICKSHIFT = {"kernel_size": 4, "max_dist": 200, "ratio": 0.2}  # as the lime package


def superpixels(x: Array, axes: tuple[int, int], segmentation: Segmentation, count: int) -> Array:
    """The number of the region of each position, int64, (1, …) with length one along the channels.

    x: one picture (1, …) in model units; its range becomes 0..1, in which colours are compared. axes: of its height and
    width. superpixels: SLIC (Achanta et al. 2012), about `count` of them; quickshift (Vedaldi and Soatto 2008): as many
    as there are with lime's settings. Raises UsageError without scikit-image.
    """
    try:
        from skimage import segmentation as regions
    except ImportError as error:
        raise UsageError(
            f"groups={segmentation} needs scikit-image, which is not installed: pip install 'onnxplain[superpixels]'."
        ) from error
    channels = next(axis for axis in range(1, 4) if axis not in axes)
    picture = np.moveaxis(x.astype(np.float64), channels, 3)[0]
    low, high = float(picture.min()), float(picture.max())
    picture = (picture - low) / (high - low or 1.0)
    options: dict[str, Any] = {"n_segments": count, "compactness": COMPACTNESS, "start_label": 0, "channel_axis": -1}
    if segmentation == "superpixels":
        found = regions.slic(picture, **options)
    else:
        picture = picture if picture.shape[2] == 3 else np.repeat(picture.mean(2, keepdims=True), 3, 2)
        found = regions.quickshift(picture, **QUICKSHIFT, rng=0)  # type: ignore[no-untyped-call, unused-ignore]
    numbers = np.unique(found, return_inverse=True)[1].reshape(found.shape)
    return np.expand_dims(numbers, (0, channels)).astype(np.int64)
