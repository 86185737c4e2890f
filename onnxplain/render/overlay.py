"""An overlay: the heat map over the greyed photo, stronger where |R| is larger."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from onnxplain.render.colour import Limits, colours, default_palette, limits, plane
from onnxplain.render.heatmap import SIDE, sampled, unit
from onnxplain.render.layout import TINY, fit
from onnxplain.render.photo import as_photo, resized

ALPHA = 0.75  # of a map's strongest pixels; a pixel at half the limit gets about half of the photo through
GAMMA = 0.7  # alpha = ALPHA |R/limit|^GAMMA: below 1 keeps weak relevance visible, at 0.5 noise veils the photo


def smoothing(values: Any, photo: Image.Image) -> bool | None:
    """How a map is stretched over a photo, for `overlay`.

    A tiny photo's pixels stay squares. A map with fewer positions than the photo has pixels is that of a layer inside,
    and bilinear between them.
    """
    height, width = plane(values).shape
    if min(photo.size) < TINY:
        return False
    return True if width < photo.width and height < photo.height else None


def overlay(
    values: Any,
    photo: Any,
    *,
    signed: bool = True,
    palette: str | None = None,
    bounds: Limits | None = None,
    size: tuple[int, int] | None = None,
    smooth: bool | None = None,
    alpha: float = ALPHA,
) -> Image.Image:
    """The map (H, W) stretched over `photo` (see as_photo): the photo must show what the model saw, cropped as it was.

    size: (width, height) of the result; default the photo's, enlarged where that is below 64 pixels. NaN, Inf: hatched.
    """
    array, base = plane(values), as_photo(photo)
    bounds = bounds or limits(array, signed)
    if size is None:
        size = fit((base.height, base.width), SIDE) if min(base.size) < TINY else base.size
    scaled = sampled(array, size, bounds, smooth)
    pixels, _ = colours(scaled, unit(bounds), default_palette(bounds, palette))
    grey = np.asarray(resized(base, size).convert("L"), dtype=np.float64)[:, :, None]
    strength = np.where(np.isnan(scaled), 1.0, np.abs(scaled))[:, :, None]
    opacity = alpha * strength**GAMMA
    return Image.fromarray(np.rint(grey * (1 - opacity) + pixels * opacity).astype(np.uint8))
