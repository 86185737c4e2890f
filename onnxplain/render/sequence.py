"""Sequences: relevance of tokens as coloured words, of positions as a curve over a strip or a map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from onnxplain.errors import InputError
from onnxplain.render.colour import Limits, colours, limits
from onnxplain.render.heatmap import colour_bar, tile, warning
from onnxplain.render.layout import GAP, column, framed
from onnxplain.render.text import GREY, INK, PAPER, RULE, SMALL, elide, font, line_height, lines, number, wrap
from onnxplain.render.vector import WIDTH, flat

CURVE = 110  # pixels, height of the curve
STRIP = 26  # pixels, height of the strip below it
PRINTED = 128  # tokens; above it the numbers under the words are left out


def strip(
    values: Any,
    tokens: Sequence[str] = (),
    *,
    caption: str = "",
    signed: bool = True,
    palette: str | None = None,
    width: int = WIDTH,
    margin: bool = True,
) -> Image.Image:
    """Relevance of positions (L,) or (L, D): with tokens coloured words, else a curve over a strip with its positions.

    (L, D) is summed over D for the words and the curve; without tokens the map itself follows, D from top to bottom.
    """
    array = np.asarray(values)
    table = array.astype(np.float64) if array.ndim == 2 and array.size else flat(array)[:, None]
    with np.errstate(invalid="ignore", over="ignore"):
        total = table.sum(axis=1)
    if len(tokens) not in (0, total.size):
        raise InputError(f"{len(tokens)} tokens for {total.size} positions.")
    bounds = limits(total, signed)
    parts = [lines(wrap(caption, width, 3), width)] if caption else []
    if len(tokens):
        parts += [_words(total, tokens, bounds, palette, width)]
    else:
        finite = total[np.isfinite(total)]
        ends = f"{number(finite.min(initial=0), sign=True)} to {number(finite.max(initial=0), sign=True)}"
        parts += [lines([(f"relevance by position, {ends}", GREY)], width, SMALL), _curve(total, width)]
        parts += [column([tile(total[None], (width, STRIP), bounds, palette), _ticks(total.size, width)], 2)]
    parts += [colour_bar(min(width, 320), bounds, palette)]
    if table.shape[1] > 1 and not len(tokens):
        inner = limits(table, signed)
        parts += [lines([(f"{table.shape[1]} values per position, first on top", GREY)], width, SMALL)]
        parts += [tile(table.T, (width, int(np.clip(table.shape[1] * 8, 48, 256))), inner, palette)]
        parts += [colour_bar(min(width, 320), inner, palette)]
    if warning(table):
        parts += [lines(warning(table), width, SMALL)]
    picture = column(parts)
    return framed(picture) if margin else picture


def _words(
    total: NDArray[np.float64], tokens: Sequence[str], bounds: Limits, palette: str | None, width: int
) -> Image.Image:
    """The tokens as running text on their colours, the relevance below each."""
    pixels, _ = colours(total[None], bounds, palette)
    printed = total.size <= PRINTED
    word, small, pad = font(), font(10), 5
    height = line_height() + 4 + (14 if printed else 0)
    boxes, left, top = [], 0, 0
    for token, value in zip(tokens, total, strict=True):
        text = elide(token, width - 2 * pad) or "␣"
        below = number(float(value), sign=True) if printed else ""
        box = round(max(word.getlength(text), small.getlength(below))) + 2 * pad
        if left and left + box > width:
            left, top = 0, top + height + GAP
        boxes.append((left, top, box, text, below))
        left += box + 3
    image = Image.new("RGB", (width, top + height), PAPER)
    draw = ImageDraw.Draw(image)
    for (left, top, box, text, below), rgb in zip(boxes, pixels[0], strict=True):
        paper = tuple(map(int, rgb))
        bright = 0.299 * paper[0] + 0.587 * paper[1] + 0.114 * paper[2] > 120
        bottom = top + line_height() + 2
        draw.rounded_rectangle((left, top, left + box - 1, bottom), 4, fill=paper, outline=RULE)
        middle = left + box / 2
        draw.text((middle, (top + bottom) / 2), text, fill=INK if bright else PAPER, font=word, anchor="mm")
        draw.text((middle, bottom + 9), below, fill=GREY, font=small, anchor="mm")
    return image


def _curve(total: NDArray[np.float64], width: int) -> Image.Image:
    """Relevance over position, filled from zero: red above, blue below; a pixel shows the strongest value it covers."""
    finite = np.where(np.isfinite(total), total, 0.0)
    places = np.arange(width) * total.size // width
    if total.size > width:
        parts = np.array_split(finite, width)
        heights = np.array([part[np.abs(part).argmax()] for part in parts])
    else:
        heights = finite[places]
    low, high = min(float(finite.min()), 0.0), max(float(finite.max()), 0.0)
    span = (high - low) or 1.0
    image = Image.new("RGB", (width, CURVE), PAPER)
    draw = ImageDraw.Draw(image)
    zero = round((CURVE - 1) * high / span)
    for x, value in enumerate(heights):
        if value:
            end = round((CURVE - 1) * (high - value) / span)
            draw.line((x, zero, x, end), fill=(190, 40, 50) if value > 0 else (45, 95, 175))
    draw.line((0, zero, width, zero), fill=GREY)
    return image


def _ticks(count: int, width: int) -> Image.Image:
    """Positions below a strip: a round step, at most ten, the first is 0."""
    image = Image.new("RGB", (width, line_height(SMALL)), PAPER)
    draw = ImageDraw.Draw(image)
    step = next(s * 10**e for e in range(10) for s in (1, 2, 5) if s * 10**e * 10 >= count)
    for place in range(0, count, step):
        x = (place + 0.5) * width / count
        draw.line((x, 0, x, 3), fill=GREY)
        half = font(SMALL).getlength(str(place)) / 2
        draw.text((min(max(x, half), width - half), 10), str(place), fill=GREY, font=font(SMALL), anchor="mm")
    return image
