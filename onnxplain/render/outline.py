"""An outline: a localisation box drawn on a picture."""

from __future__ import annotations

from PIL import Image, ImageDraw

from onnxplain.localisation import LocalisationBox

LINE = (0, 200, 83)  # a green that no palette has
EDGE = (0, 0, 0)  # beside it, so that it shows on any ground


def outlined(image: Image.Image, box: LocalisationBox | None) -> Image.Image:
    """The picture with the box on it, whatever the picture's size; the same picture where there is no box."""
    if box is None:
        return image
    drawn = image.copy()
    draw = ImageDraw.Draw(drawn)
    left, top, right, bottom = box.within(image.size)
    corners = (left, top, max(left, right - 1), max(top, bottom - 1))
    for inset, colour in ((0, EDGE), (1, LINE), (2, LINE), (3, EDGE)):
        inner = (corners[0] + inset, corners[1] + inset, corners[2] - inset, corners[3] - inset)
        if inner[0] <= inner[2] and inner[1] <= inner[3]:
            draw.rectangle(inner, outline=colour)
    return drawn
