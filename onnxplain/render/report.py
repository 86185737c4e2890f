"""A report: one HTML file that stands alone, for a reader who was not there when it was made."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import jinja2
import numpy as np

from onnxplain.render.colour import limits
from onnxplain.render.layout import png
from onnxplain.render.panel import Panel, number_of_bad, over_photo, picture
from onnxplain.render.text import number

SIDE = 352  # pixels, of the pictures of one explanation
TEMPLATE = "report.html"


@dataclass(frozen=True)
class ClassScore:
    """One line of the table of top classes: score in the explained tensor's unit, probability 0..1 or None."""

    index: int | str
    name: str
    score: float
    probability: float | None = None
    sample: str = ""


@dataclass(frozen=True)
class Report:
    """All that a report shows.

    Attributes:
        title: its headline.
        facts: about the model and the run, as they are to be read.
        classes: the model's answer, best first (per sample where there are several).
        panels: the explanations, in order.
        grid_png: the overview (see grid), or b"" for none.
        recipe: what reproduces the run, JSON-serialisable.
        provenance: versions, digests, machine: JSON-serialisable.
        notes: one line each, shown first.
    """

    title: str
    facts: Mapping[str, Any]
    classes: Sequence[ClassScore]
    panels: Sequence[Panel]
    grid_png: bytes = b""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()


def html(report: Report, palette: str | None = None) -> str:
    """The report as one HTML text: pictures inside, no script, nothing fetched, everything of the caller's escaped."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(number=number, percent=_percent, image=_data_uri, json=_json)
    template = environment.from_string(files(__package__).joinpath(TEMPLATE).read_text("utf-8"))
    return template.render(
        report=report,
        entries=[_entry(panel, palette) for panel in report.panels],
        has_probability=any(row.probability is not None for row in report.classes),
        has_sample=any(row.sample for row in report.classes),
    )


def _entry(panel: Panel, palette: str | None) -> dict[str, Any]:
    """What the template needs of one panel, beyond the panel."""
    shown, over, bad = picture(panel, palette, SIDE), over_photo(panel, palette, SIDE), number_of_bad(panel)
    low, high = limits(panel.map, panel.signed)
    notes = list(panel.notes)
    if bad:
        notes.append(f"{bad} of {np.size(panel.map)} values are not finite; they are grey in the picture.")
    total = sum(panel.where.values())
    return {
        "panel": panel,
        "picture": png(shown),
        "size": shown.size,
        "overlay": png(over) if over else b"",
        "overlay_size": over.size if over else (0, 0),
        "limits": (low, high),
        "notes": notes,
        "where": [(name, value, value / total if total else None) for name, value in panel.where.items()],
    }


def _percent(share: float | None) -> str:
    if share is None or not np.isfinite(share):
        return "–"
    if 0 < share < 0.0005:
        return "<0.1 %"
    return f"{100 * share:.1f} %".replace("-", "−")


def _data_uri(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode("ascii")


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)
