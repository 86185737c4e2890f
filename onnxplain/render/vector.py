"""Vectors: relevance of named features as horizontal bars, red to the right, blue to the left of zero."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from onnxplain.errors import InputError
from onnxplain.render.colour import HATCH, lut
from onnxplain.render.layout import GAP, column, framed
from onnxplain.render.text import GREY, INK, RULE, SMALL, WARNING, elide, font, lines, number, wrap

TOP = 30
WIDTH = 720  # pixels, of the picture without its margin
BAND = 22  # pixels, one bar with the space around it
SHARE = 0.42  # of the width, at most, for the names


def flat(values: Any) -> NDArray[np.float64]:
    """`values` as a float64 vector (F,): axes of length one are dropped, anything else is an InputError."""
    array = np.asarray(values)
    if array.size == 0 or array.size != max(array.shape, default=1) or array.dtype.kind not in "fiub":
        raise InputError(f"bars need one real number per feature (F,), not shape {array.shape} of {array.dtype}.")
    return array.reshape(-1).astype(np.float64)


def strongest(values: NDArray[np.float64], top: int) -> NDArray[np.intp]:
    """Indices of the `top` largest |value|, largest first, ties in order; NaN and Inf come first: they must be seen."""
    strength = np.where(np.isfinite(values), np.abs(values), np.inf)
    return np.argsort(-strength, kind="stable")[:top]


def bars(
    values: Any,
    names: Sequence[str] = (),
    inputs: Sequence[Any] = (),
    *,
    caption: str = "",
    top: int = TOP,
    width: int = WIDTH,
    palette: str = "rdbu",
    what: str = "features",
    order: Sequence[int] | None = None,
    margin: bool = True,
) -> Image.Image:
    """Relevance (F,) as bars with names and values, the `top` largest |R| first (or in `order`); the rest as a sum.

    names: default "feature 0" …; inputs: the features' own values, printed beside the names. Bars start at zero.
    """
    array = flat(values)
    for given, label in ((names, "names"), (inputs, "inputs")):
        if len(given) not in (0, array.size):
            raise InputError(f"{len(given)} {label} for {array.size} features.")
    picked = strongest(array, top) if order is None else np.asarray(order, dtype=np.intp)[:top]
    labels = [names[i] if len(names) else f"{what.removesuffix('s')} {i}" for i in picked]
    ends = [f" = {_shown(inputs[i])}" if len(inputs) else "" for i in picked]
    room = round(width * SHARE)
    fitted = [_label(name, end, room) for name, end in zip(labels, ends, strict=True)]
    chart = _chart(array[picked], fitted, width, palette)
    below = []
    if len(picked) < array.size:
        rest = np.delete(array, picked)
        kind = f"{len(picked)} of {array.size} {what}" + (" by |R|" if order is None else "")
        below.append((f"{kind}; the others sum to {number(float(rest[np.isfinite(rest)].sum()), sign=True)}", GREY))
    bad = int((~np.isfinite(array)).sum())
    if bad:
        below.append((f"{bad} of {array.size} not finite (grey)", WARNING))
    parts = [chart]
    if caption:
        parts.insert(0, lines(wrap(caption, width, 3), width))
    if below:
        parts.append(lines(below, width, SMALL))
    picture = column(parts)
    return framed(picture) if margin else picture


def _label(name: str, end: str, room: int) -> str:
    """Name and value in `room` pixels: the name is cut first."""
    end = elide(end, room // 2, SMALL)
    return elide(name, room - math.ceil(font(SMALL).getlength(f" {end}")), SMALL) + (f" {end}" if end else "")


def _shown(value: Any) -> str:
    return number(float(value)) if isinstance(value, (int, float, np.number)) else str(value)


def _chart(values: NDArray[np.float64], labels: Sequence[str], width: int, palette: str) -> Image.Image:
    face = font(SMALL)
    finite = np.where(np.isfinite(values), values, 0.0)
    printed = [number(float(v), sign=True) for v in values]
    left = math.ceil(max(face.getlength(label) for label in labels)) + GAP
    right = width - math.ceil(max(face.getlength(text) for text in printed)) - GAP
    low, high = min(finite.min(), 0.0), max(finite.max(), 0.0)
    span = (high - low) or 1.0
    zero = left + (right - left) * (-low / span)
    table = lut(palette)
    red, blue = tuple(map(int, table[225])), tuple(map(int, table[31]))
    image = Image.new("RGB", (width, BAND * len(values) + 1), "white")
    draw = ImageDraw.Draw(image)
    for place, (value, label, text) in enumerate(zip(values, labels, printed, strict=True)):
        middle = place * BAND + BAND // 2
        draw.line((left, middle + BAND // 2, width, middle + BAND // 2), fill=(240, 241, 243))
        draw.text((left - GAP, middle), label, fill=INK, font=face, anchor="rm")
        draw.text((width - 1, middle), text, fill=INK if np.isfinite(value) else WARNING, font=face, anchor="rm")
        box = (middle - BAND // 2 + 4, middle + BAND // 2 - 4)
        if not np.isfinite(value):
            for x in range(left, right):
                draw.line((x, box[0], x, box[1]), fill=HATCH[x // 4 % 2])
        elif value:
            end = zero + (right - left) * (value / span)
            start, stop = sorted((round(zero), round(end)))
            draw.rectangle((start, box[0], max(stop, start + 1), box[1]), fill=red if value > 0 else blue)
    draw.line((round(zero), 0, round(zero), image.height), fill=RULE if low < 0 < high else GREY)
    return image
