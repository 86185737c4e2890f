"""Layout: pictures beside and below each other, and the size a picture is shown at."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

from PIL import Image

from onnxplain.render.text import PAPER

GAP = 8  # pixels between things that belong together
MARGIN = 16  # pixels around a finished picture
TINY = 64  # pixels: below it a pixel is a thing of its own and is enlarged as a square


def column(images: Sequence[Image.Image], gap: int = GAP) -> Image.Image:
    """Images below each other, left aligned."""
    width = max(image.width for image in images)
    sheet = Image.new("RGB", (width, sum(image.height + gap for image in images) - gap), PAPER)
    top = 0
    for image in images:
        sheet.paste(image, (0, top))
        top += image.height + gap
    return sheet


def row(images: Sequence[Image.Image], gap: int = GAP) -> Image.Image:
    """Images beside each other, top aligned."""
    height = max(image.height for image in images)
    sheet = Image.new("RGB", (sum(image.width + gap for image in images) - gap, height), PAPER)
    left = 0
    for image in images:
        sheet.paste(image, (left, 0))
        left += image.width + gap
    return sheet


def table(rows: Sequence[Sequence[Image.Image]], gap: int = MARGIN) -> Image.Image:
    """Cells in columns of their widest and rows of their highest cell, top left aligned."""
    widths = [max(cells[i].width for cells in rows if i < len(cells)) for i in range(max(map(len, rows)))]
    heights = [max(cell.height for cell in cells) for cells in rows]
    size = (sum(widths) + gap * (len(widths) - 1), sum(heights) + gap * (len(heights) - 1))
    sheet, top = Image.new("RGB", size, PAPER), 0
    for cells, height in zip(rows, heights, strict=True):
        left = 0
        for cell, width in zip(cells, widths, strict=False):
            sheet.paste(cell, (left, top))
            left += width + gap
        top += height + gap
    return sheet


def framed(image: Image.Image, margin: int = MARGIN) -> Image.Image:
    """The image with paper around it."""
    sheet = Image.new("RGB", (image.width + 2 * margin, image.height + 2 * margin), PAPER)
    sheet.paste(image, (margin, margin))
    return sheet


def fit(shape: tuple[int, int], side: int) -> tuple[int, int]:
    """Size (width, height) to show (height, width) values at: about side² pixels, aspect kept, at most 2 side long.

    Small maps are enlarged by a whole number, so that every value becomes a square of the same size.
    """
    height, width = shape
    scale = min(side / math.sqrt(height * width), 2 * side / max(height, width))
    if min(shape) < TINY and scale >= 2:
        scale = math.floor(scale)
    return max(1, round(width * scale)), max(1, round(height * scale))


def png(image: Image.Image) -> bytes:
    """The picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
