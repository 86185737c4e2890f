"""Photographs: whatever the caller holds, as an 8-bit picture of the right size."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from onnxplain.errors import InputError
from onnxplain.render.layout import TINY


def as_photo(photo: Any) -> Image.Image:
    """A Pillow image or an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) -> RGB; transparency goes onto white.

    uint8 is taken as it is, floats within 0..1 are multiplied by 255, any other range is stretched from minimum to
    maximum (a normalised model input). NaN and Inf become black: they belong to the input and hide nothing of the map.
    """
    if isinstance(photo, Image.Image):
        image = photo
    else:
        array = np.asarray(photo)
        if array.ndim == 3 and array.shape[2] == 1:
            array = array[:, :, 0]
        if array.ndim not in (2, 3) or array.size == 0 or (array.ndim == 3 and array.shape[2] not in (3, 4)):
            raise InputError(f"a photo has shape (H, W), (H, W, 3) or (H, W, 4), not {array.shape}.")
        image = Image.fromarray(_bytes(array))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _bytes(array: Any) -> Any:
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    values = array.astype(np.float64)
    finite = values[np.isfinite(values)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    scaled = (np.where(np.isfinite(values), values, low) - low) / (high - low or 1.0)
    return np.ascontiguousarray(np.rint(scaled * 255).astype(np.uint8))


def resized(photo: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The photo at `size` (width, height): tiny ones keep their square pixels when enlarged."""
    if photo.size == size:
        return photo
    enlarged = size[0] >= photo.width and size[1] >= photo.height
    squares = enlarged and min(photo.size) < TINY
    return photo.resize(size, Image.Resampling.NEAREST if squares else Image.Resampling.BICUBIC)
