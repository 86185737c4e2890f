"""Features: what the channels of a layer see, as a sheet of small maps, or as bars where they have no space."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from onnxplain.errors import InputError
from onnxplain.render.colour import limits
from onnxplain.render.heatmap import tile, warning
from onnxplain.render.layout import GAP, TINY, column, fit, framed, table
from onnxplain.render.text import GREY, SMALL, Text, lines, number, wrap
from onnxplain.render.vector import bars, flat

CHANNELS = 64
SIDE = 96  # pixels, of one channel


def means(activation: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean activation per channel (C,), over the finite values; a channel without any gets minus infinity."""
    rows = activation.reshape(activation.shape[0], -1)
    finite = np.isfinite(rows)
    count = finite.sum(axis=1)
    total = np.where(finite, rows, 0.0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), -np.inf)


def features(
    activation: Any, caption: str = "", *, top: int = CHANNELS, palette: str | None = None, side: int = SIDE
) -> Image.Image:
    """An activation (C, H, W) as a sheet of its `top` channels of largest mean; (C,) or (C, 1, 1) as bars.

    Each channel is scaled on its own, from 0 to its largest value or, where the layer has negative values, evenly about
    0; the number under a tile is its channel, then the value of its strongest colour.
    """
    array = np.asarray(activation)
    if array.ndim == 4 and array.shape[0] == 1:
        array = array[0]
    if array.size and array.size == max(array.shape, default=1):
        return _bars(flat(array), caption, top)
    if array.ndim != 3 or array.size == 0 or array.dtype.kind not in "fiub":
        raise InputError(f"a feature sheet needs an activation (C, H, W) or (C,), not {array.shape} of {array.dtype}.")
    array = array.astype(np.float64)
    order = np.argsort(-means(array), kind="stable")[:top]
    signed = bool((array < 0).any())
    palette = palette or ("bwr" if signed else "viridis")
    size = fit((array.shape[1], array.shape[2]), side)
    cells = [_cell(array[channel], int(channel), size, signed, palette) for channel in order]
    across = max(1, round(math.sqrt(len(cells) * size[1] / size[0])))
    rows = [cells[start : start + across] for start in range(0, len(cells), across)]
    sheet = table(rows, GAP)
    width = max(sheet.width, 320)
    scale = "± its largest |value|" if signed else "0 to its largest value"
    count = f"{len(cells)} of {len(array)}" if len(cells) < len(array) else f"All {len(array)}"
    about = f"{count} channels, largest mean activation first. Each on its own scale: {scale}."
    note: Text = [(line, GREY) for line in wrap(about, width, 3, SMALL)]
    head = [lines(wrap(caption, width, 3), width)] if caption else []
    return framed(column([*head, lines([*note, *warning(array)], width, SMALL), sheet]))


def _cell(values: NDArray[np.float64], channel: int, size: tuple[int, int], signed: bool, palette: str) -> Image.Image:
    finite = np.abs(values[np.isfinite(values)])
    peak = float(finite.max()) if finite.size else 0.0
    bounds = (-peak if signed else 0.0, peak) if peak else limits(np.zeros(1), signed)
    picture = tile(values, size, bounds, palette, smooth=min(values.shape) >= TINY)
    width = max(size[0], 60)
    return column([picture, lines([(f"{channel}: {number(peak)}", GREY)], width, SMALL)], 1)


def _bars(values: NDArray[np.float64], caption: str, top: int) -> Image.Image:
    order = [int(i) for i in np.argsort(-np.where(np.isnan(values), np.inf, values), kind="stable")]
    about = f"{min(top, values.size)} of {values.size} channels, largest activation first"
    text = f"{caption} — {about}" if caption else about
    return bars(values, caption=text, top=top, what="channels", order=order)
