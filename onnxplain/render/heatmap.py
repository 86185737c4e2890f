"""A heat map: a map (H, W) as a picture, with the colour bar that says what its colours mean."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from onnxplain.localisation import LocalisationBox
from onnxplain.render.colour import Limits, colours, default_palette, limits, normalised, plane
from onnxplain.render.layout import TINY, column, fit, framed
from onnxplain.render.outline import outlined
from onnxplain.render.text import GREY, RULE, SMALL, WARNING, Text, font, line_height, lines, number, wrap

SIDE = 448  # pixels, of a heat map on its own
BAR = 10  # pixels, height of a colour bar


def sampled(values: Any, size: tuple[int, int], bounds: Limits, smooth: bool | None = None) -> np.ndarray[Any, Any]:
    """The map at `size` (width, height) in units of its limits, -1..1 or 0..1, float64; NaN where a value is no number.

    smooth: bilinear; else every value stays a rectangle. Default: bilinear from 64 pixels up, and whenever it shrinks.
    """
    array = plane(values)
    scaled = normalised(array, bounds)
    width, height = size
    if (height, width) == array.shape:
        return scaled
    shrinks = height < array.shape[0] or width < array.shape[1]
    bilinear = shrinks or (min(array.shape) >= TINY if smooth is None else smooth)
    kind = Image.Resampling.BILINEAR if bilinear else Image.Resampling.NEAREST
    bad = np.isnan(scaled)
    enlarged = Image.fromarray(np.where(bad, 0, scaled).astype(np.float32)).resize(size, kind)
    result = np.clip(np.asarray(enlarged, dtype=np.float64), -1, 1)
    if bad.any():  # a lost pixel must still show when the map shrinks
        how = Image.Resampling.BOX if shrinks else Image.Resampling.NEAREST
        result[np.asarray(Image.fromarray(bad.astype(np.float32)).resize(size, how)) > 0] = np.nan
    return result


def unit(bounds: Limits) -> Limits:
    """The limits of a map that is already in units of its limits."""
    return (-1.0, 1.0) if bounds[0] < 0 else (0.0, 1.0)


def tile(
    values: Any, size: tuple[int, int], bounds: Limits, palette: str | None = None, smooth: bool | None = None
) -> Image.Image:
    """The map's pixels at `size` (width, height), nothing around them."""
    pixels, _ = colours(sampled(values, size, bounds, smooth), unit(bounds), default_palette(bounds, palette))
    return Image.fromarray(pixels)


def colour_bar(width: int, bounds: Limits, palette: str | None = None) -> Image.Image:
    """The palette from left to right with its limits (and zero, where it is inside) printed below."""
    low, high = bounds
    ends = (-max(-low, high), max(-low, high)) if low < 0 else (low, high)
    ramp, _ = colours(np.linspace(*ends, width)[None].repeat(BAR, 0), bounds, palette)
    image = Image.new("RGB", (width, BAR + line_height(SMALL)), "white")
    image.paste(Image.fromarray(ramp), (0, 0))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, width - 1, BAR - 1), outline=RULE)
    middle = BAR + line_height(SMALL) // 2 + 1
    draw.text((0, middle), number(ends[0]), fill=GREY, font=font(SMALL), anchor="lm")
    draw.text((width - 1, middle), number(ends[1], sign=low < 0), fill=GREY, font=font(SMALL), anchor="rm")
    if low < 0:
        draw.text((width // 2, middle), "0", fill=GREY, font=font(SMALL), anchor="mm")
    return image


def warning(values: Any) -> Text:
    """The line that says how many values are NaN or Inf, or none."""
    bad = int((~np.isfinite(np.asarray(values, dtype=np.float64))).sum())
    return [(f"{bad} of {np.size(values)} not finite (grey)", WARNING)] if bad else []


def heatmap(
    values: Any,
    caption: str = "",
    *,
    signed: bool = True,
    palette: str | None = None,
    bounds: Limits | None = None,
    side: int = SIDE,
    smooth: bool | None = None,
    box: LocalisationBox | None = None,
) -> Image.Image:
    """A map (H, W) with colour bar and caption, about `side` pixels square; the limits are the map's own by default."""
    array = plane(values)
    bounds = bounds or limits(array, signed)
    size = fit((array.shape[0], array.shape[1]), side)
    width = max(size[0], 160)
    parts = [outlined(tile(array, size, bounds, palette, smooth), box), colour_bar(width, bounds, palette)]
    text: Text = [*(wrap(caption, width, 3) if caption else []), *warning(array)]
    return framed(column([*parts, lines(text, width)] if text else parts))
