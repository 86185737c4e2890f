"""Text in pictures: fonts, numbers and lines that never leave their column."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import matplotlib
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont

SIZE = 14  # pixels: readable at 224-pixel tiles
SMALL = 12
INK = (28, 30, 36)
GREY = (96, 100, 110)
WARNING = (176, 40, 20)
PAPER = (255, 255, 255)
RULE = (205, 208, 214)

Rgb = tuple[int, int, int]
Text = list[str | tuple[str, Rgb]]  # lines, some in a colour of their own


@cache
def font(size: int = SIZE, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings along: Latin, Greek, Cyrillic and the symbols we print."""
    return ImageFont.truetype(_path(bold), size)


def _path(bold: bool) -> str:
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name)


@cache
def glyphs() -> frozenset[int]:
    """The code points our font can draw."""
    return frozenset(FT2Font(_path(bold=True)).get_charmap()) & frozenset(FT2Font(_path(bold=False)).get_charmap())


def line_height(size: int = SIZE) -> int:
    """Pixels from one line to the next."""
    return round(size * 1.4)


def number(value: float | None, sign: bool = False) -> str:
    """Three significant digits with a real minus; `sign` prints the plus as well. None is a dash."""
    if value is None:
        return "–"
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "−∞" if value < 0 else "+∞"
    text = f"{value:.3g}" if value else "0"
    if 1000 <= abs(value) < 99_999.5:
        text = f"{value:.0f}"
    return ("+" if sign and value > 0 else "") + text.replace("-", "−")


def plain(text: str) -> str:
    """`text` on one line; characters the font lacks become their code: names come from models and label files."""
    known = glyphs()
    return "".join(c if ord(c) in known else ascii(c)[1:-1] for c in " ".join(str(text).split()))


def elide(text: str, width: int, size: int = SIZE, bold: bool = False) -> str:
    """The longest start of `text` that fits into `width` pixels, with an ellipsis where something was cut."""
    text, face = plain(text)[:1000], font(size, bold)
    if face.getlength(text) <= width:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if face.getlength(text[:middle] + "…") <= width else (low, middle - 1)
    return text[:low].rstrip(" ,") + "…"


def wrap(text: str, width: int, lines: int = 2, size: int = SIZE, bold: bool = False) -> list[str]:
    """`text` over at most `lines` lines of `width` pixels; the last one is elided. Breaks at spaces."""
    face, words = font(size, bold), plain(text)[:1000].split(" ")
    wrapped: list[str] = []
    while words and len(wrapped) < lines - 1:
        count = 1
        while count < len(words) and face.getlength(" ".join(words[: count + 1])) <= width:
            count += 1
        if face.getlength(words[0]) > width:
            break
        wrapped.append(" ".join(words[:count]))
        words = words[count:]
    return [*wrapped, elide(" ".join(words), width, size, bold)] if words else wrapped


def lines(texts: Sequence[str | tuple[str, Rgb]], width: int, size: int = SIZE, bold: bool = False) -> Image.Image:
    """A block of text `width` pixels wide: one elided line per text, in INK or in the colour beside it."""
    step = line_height(size)
    image = Image.new("RGB", (width, max(1, step * len(texts))), PAPER)
    draw = ImageDraw.Draw(image)
    for place, entry in enumerate(texts):
        text, ink = (entry, INK) if isinstance(entry, str) else entry
        position = (0, round((place + 0.5) * step))
        draw.text(position, elide(text, width, size, bold), fill=ink, font=font(size, bold), anchor="lm")
    return image
