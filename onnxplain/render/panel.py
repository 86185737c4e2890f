"""A panel: one explanation with what is needed to draw it and to say what it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from PIL import Image

from onnxplain.localisation import LocalisationBox
from onnxplain.render.colour import limits, plane
from onnxplain.render.heatmap import SIDE, heatmap
from onnxplain.render.layout import fit
from onnxplain.render.outline import outlined
from onnxplain.render.overlay import overlay, smoothing
from onnxplain.render.photo import as_photo
from onnxplain.render.sequence import strip
from onnxplain.render.vector import bars

Kind = Literal["image", "features", "tokens"]


@dataclass(frozen=True)
class Panel:
    """One explanation of one target by one method.

    Attributes:
        method: its name, the column of a grid.
        target: the explained index (or indices), as the user gave it.
        target_name: its class name, or "".
        score: the explained tensor at the target, in its own unit.
        probability: of the target, 0..1, or None where the model gives none.
        relevance_sum: sum of the relevance over the whole tensor, in the unit of the score for conserving methods; None
            where the elements have no shares.
        map: (H, W), channels reduced; (F,) for kind "features"; (L,) or (L, D) for kind "tokens".
        signed: False for absolute or squared maps, which get a sequential palette.
        notes: one line each, what a reader must know.
        kind: how the map is drawn.
        names: of the features, or the tokens; empty: numbers.
        values: of the features, printed beside their names.
        photo: what the model saw (see as_photo), for overlays and the first column of a grid.
        sample: the name of the input, with the target the row of a grid.
        predicted: the name and probability of the predicted class, as a text.
        where: relevance by where it went ("input" and the columns of the ledger), in the unit of relevance_sum.
        box: drawn on the map and on the photo.
        localised: whether a box was asked for; without a box nothing in the map is positive.
    """

    method: str
    target: int | str | tuple[int, ...]
    target_name: str
    score: float
    probability: float | None
    relevance_sum: float | None
    map: Any
    signed: bool = True
    notes: Sequence[str] = ()
    kind: Kind = "image"
    names: Sequence[str] = ()
    values: Sequence[Any] = ()
    photo: Any = None
    sample: str = ""
    predicted: str = ""
    where: Mapping[str, float] = field(default_factory=dict)
    box: LocalisationBox | None = None
    localised: bool = False

    @property
    def target_text(self) -> str:
        """The target as a reader wants it: its name and its index."""
        return f"{self.target_name} ({self.target})" if self.target_name else str(self.target)


def picture(panel: Panel, palette: str | None = None, side: int = SIDE) -> Image.Image:
    """The panel's map with its scale, framed: a heat map, bars or a strip, after its kind."""
    match panel.kind:
        case "features":
            return bars(panel.map, panel.names, panel.values, palette=bar_palette(palette))
        case "tokens":
            return strip(panel.map, panel.names, signed=panel.signed, palette=palette)
        case _:
            return heatmap(panel.map, signed=panel.signed, palette=palette, side=side, box=panel.box)


def over_photo(panel: Panel, palette: str | None = None, side: int = SIDE) -> Image.Image | None:
    """The panel's map over its photo at the size of its heat map, or None where there is no photo."""
    if panel.photo is None or panel.kind != "image":
        return None
    photo = as_photo(panel.photo)
    array = plane(panel.map)
    size = fit((photo.height, photo.width), side)
    bounds = limits(array, panel.signed)
    drawn = overlay(array, photo, bounds=bounds, palette=palette, size=size, smooth=smoothing(array, photo))
    return outlined(drawn, panel.box)


def bar_palette(palette: str | None) -> str:
    """Bars are solid: pale palettes lose them on paper, and an unsigned palette has no two signs."""
    return palette if palette in ("rdbu", "seismic") else "rdbu"


def number_of_bad(panel: Panel) -> int:
    """How many values of the map are NaN or Inf."""
    return int((~np.isfinite(np.asarray(panel.map, dtype=np.float64))).sum())
