"""A grid: methods beside each other, samples and targets below each other, the input first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from onnxplain.errors import InputError
from onnxplain.render.colour import limits, plane
from onnxplain.render.heatmap import colour_bar, tile, warning
from onnxplain.render.layout import MARGIN, column, fit, framed, table
from onnxplain.render.outline import outlined
from onnxplain.render.overlay import overlay, smoothing
from onnxplain.render.panel import Panel, bar_palette
from onnxplain.render.photo import as_photo, resized
from onnxplain.render.sequence import strip
from onnxplain.render.text import GREY, RULE, SMALL, Text, elide, font, lines, number, wrap
from onnxplain.render.vector import bars

SIDE = 224  # pixels, of a tile
NARROW = 168  # pixels, the least a caption needs
WIDE = 340  # pixels, of bars and words
TOP = 8  # bars in a cell


def grid(
    panels: Sequence[Panel], *, title: str = "", overlaid: bool = False, palette: str | None = None, side: int = SIDE
) -> Image.Image:
    """Panels as a table: a column for every method, a row for every sample and target, both in order of appearance.

    Every map has its own limits, printed below it. overlaid: over the photo instead of on white, where a map with fewer
    positions than the photo has pixels always lies. A method without a panel in a row leaves an empty frame.
    """
    if not panels:
        raise InputError("a grid needs at least one explanation.")
    methods = list(dict.fromkeys(panel.method for panel in panels))
    rows: dict[tuple[str, str], dict[str, Panel]] = {}
    for panel in panels:
        cells = rows.setdefault((panel.sample, str(panel.target)), {})
        if panel.method in cells:
            raise InputError(f"two explanations by {panel.method} of {panel.target_text} for one row of the grid.")
        cells[panel.method] = panel
    body = []
    for cells in rows.values():
        drawn = {method: _cell(panel, overlaid, palette, side) for method, panel in cells.items()}
        first = next(iter(drawn.values()))
        body.append([_input(list(cells.values()), side), *(drawn.get(m) or _empty(first) for m in methods)])
    widths = [max(row[place].width for row in body) for place in range(len(methods) + 1)]
    head = _head(["input", *methods], widths)
    sheet = table([head, *body], MARGIN)
    return framed(
        column([lines(wrap(title, sheet.width, 2, 18, True), sheet.width, 18, True), sheet]) if title else sheet
    )


def _head(names: Sequence[str], widths: Sequence[int]) -> list[Image.Image]:
    """The names of the columns, over two lines where one is too narrow, standing on one line."""
    wrapped = []
    for name, width in zip(names, widths, strict=True):
        fits = elide(name, width, bold=True) == name
        wrapped.append([name] if fits else wrap(name.replace("_", " "), width, 2, bold=True))
    rows = max(map(len, wrapped))
    padded = [[""] * (rows - len(texts)) + texts for texts in wrapped]
    return [lines(texts, width, bold=True) for texts, width in zip(padded, widths, strict=True)]


def _cell(panel: Panel, overlaid: bool, palette: str | None, side: int) -> Image.Image:
    match panel.kind:
        case "features":
            shown = [
                bars(
                    panel.map,
                    panel.names,
                    panel.values,
                    top=TOP,
                    width=WIDE,
                    palette=bar_palette(palette),
                    margin=False,
                )
            ]
        case "tokens":
            shown = [strip(panel.map, panel.names, signed=panel.signed, palette=palette, width=WIDE, margin=False)]
        case _:
            shown = _image(panel, overlaid, palette, side)
    width = max(NARROW, shown[0].width)
    probability = "" if panel.probability is None else f" · p {number(panel.probability)}"
    target = f"{panel.target}: {panel.target_name}" if panel.target_name else f"target {panel.target}"
    text: Text = [*wrap(target, width, 2, SMALL, True)]
    facts: Text = [f"score {number(panel.score)}{probability}"]
    facts += [] if panel.relevance_sum is None else [f"ΣR {number(panel.relevance_sum)}"]
    facts += warning(panel.map) if panel.kind == "image" else []
    return column([*shown, column([lines(text, width, SMALL, True), lines(facts, width, SMALL)], 0)], 4)


def _image(panel: Panel, overlaid: bool, palette: str | None, side: int) -> list[Image.Image]:
    array = plane(panel.map)
    bounds = limits(array, panel.signed)
    photo = None if panel.photo is None else as_photo(panel.photo)
    if photo is not None and (overlaid or smoothing(array, photo)):
        size = fit((photo.height, photo.width), side)
        picture = overlay(array, photo, bounds=bounds, palette=palette, size=size, smooth=smoothing(array, photo))
    else:
        picture = tile(array, fit((array.shape[0], array.shape[1]), side), bounds, palette)
        ImageDraw.Draw(picture).rectangle((0, 0, picture.width - 1, picture.height - 1), outline=RULE)
    return [outlined(picture, panel.box), colour_bar(max(NARROW, picture.width), bounds, palette)]


def _input(panels: Sequence[Panel], side: int) -> Image.Image:
    """The photo where there is one, with the name of the sample and what the model made of it."""
    panel = next((p for p in panels if p.photo is not None), panels[0])
    shown, width = [], NARROW
    if panel.photo is not None:
        photo = as_photo(panel.photo)
        shown = [resized(photo, fit((photo.height, photo.width), side))]
        width = max(NARROW, shown[0].width)
    text: Text = [*(wrap(panel.sample, width, 2, SMALL) if panel.sample else [])]
    if panel.predicted:
        text += [("predicted", GREY), *wrap(panel.predicted, width, 2, SMALL)]
    return column([*shown, lines(text or [" "], width, SMALL)], 4)


def _empty(like: Image.Image) -> Image.Image:
    size = min(like.size)
    image = Image.fromarray(np.full((size, like.width, 3), 255, np.uint8))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, image.width - 1, image.height - 1), outline=RULE)
    draw.text((image.width // 2, image.height // 2), "–", fill=GREY, font=font(), anchor="mm")
    return image
