"""An explanation becomes panels: what is drawn of each target, sample and attributed tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image

from onnxplain import render
from onnxplain.inputs.targets import Target
from onnxplain.methods.registry import Method
from onnxplain.recipes import Recipe
from onnxplain.runtime.session import Array


class Explained(Protocol):
    """What drawing asks of an explanation."""

    method: Method
    recipe: Recipe
    samples: int
    relevances: Mapping[str, Array]
    inputs: Mapping[str, Array]
    layout: str | None
    photos: Sequence[Any]

    def rows(self) -> list[tuple[Target, int, int]]:
        """(target, sample, row) of everything explained."""
        ...

    def row(self, row: int, name: str | None = None) -> Array:
        """Relevance of one row."""
        ...

    def row_map(self, row: int, name: str | None = None) -> Array:
        """The same, reduced over channels."""
        ...

    def probabilities(self) -> Array | None:
        """(N, classes) where the scores have any."""
        ...

    def predicted(self, sample: int) -> str:
        """The highest class in words."""
        ...

    def where(self, row: int) -> dict[str, float]:
        """Where relevance went."""
        ...


def panels(e: Explained, sample_names: Sequence[str], features: Sequence[str], label: str) -> list[render.Panel]:
    """One panel per target, sample and attributed tensor. features: names of the columns of a table."""
    probabilities = e.probabilities()
    return [
        _panel(e, name, target, sample, row, probabilities, sample_names, features, label)
        for name in e.relevances
        for target, sample, row in e.rows()
    ]


def _panel(
    e: Explained, name: str, target: Target, sample: int, row: int, probabilities: Array | None,
    sample_names: Sequence[str], features: Sequence[str], label: str,
) -> render.Panel:  # fmt: skip
    index = None if target.index is None else tuple(int(i) for i in target.index[min(sample, len(target.index) - 1)])
    single = index is not None and len(index) == 1
    asked = target.names[sample] if len(target.names) > sample else target.name
    array, values = e.row_map(row, name), _values(e, name, sample)
    kind, shown = panel_kind(array, e.layout or render.sample_layout(e.row(row, name).shape))
    numbered = f"sample {sample}" if e.samples > 1 else ""
    return render.Panel(
        method=label if len(e.relevances) == 1 else f"{label}: {name}",
        target=index[0] if single and index is not None else asked,
        target_name="" if index is None else asked,
        score=float(np.atleast_1d(target.score)[min(sample, np.size(target.score) - 1)]),
        probability=float(probabilities[sample, index[0]])
        if probabilities is not None and single and index is not None
        else None,
        relevance_sum=float(np.asarray(e.row(row, name), np.float64).sum()) if e.method.sums else None,
        map=shown,
        signed=e.method.signed,
        kind=kind,
        names=tuple(features) if len(features) == shown.size else (),
        values=tuple(values.reshape(-1).tolist()) if kind == "features" and values is not None else (),
        photo=e.photos[sample] if sample < len(e.photos) else _photo(e, name, sample, kind),
        sample=sample_names[sample] if sample < len(sample_names) else numbered,
        predicted=e.predicted(sample),
        where=e.where(row),
    )


def _values(e: Explained, name: str, sample: int) -> Array | None:
    """What the input was, without its axis for samples."""
    array = e.inputs.get(name)
    if array is None or array.shape == e.row(0, name).shape:
        return array
    return None if not array.ndim or array.shape[0] <= sample else array[sample]


def _photo(e: Explained, name: str, sample: int, kind: str) -> Any:
    """The input itself as a picture, scaled to its own range; of a tensor inside, the one input there is."""
    array = _values(e, name, sample)
    if array is None and len(e.inputs) == 1 and len(only := next(iter(e.inputs.values()))) == e.samples:
        array = only[sample]
    layout = None if array is None else render.sample_layout(array.shape)
    if array is None or layout is None or kind != "image":
        return None
    picture = np.moveaxis(array, 0, -1) if layout == "NCHW" else array
    if picture.shape[-1] not in (1, 3, 4):
        return None
    low, high = float(picture.min()), float(picture.max())
    return Image.fromarray(np.uint8(np.squeeze((picture - low) / (high - low or 1.0) * 255)))


def panel_kind(array: Array, layout: str | None) -> tuple[Any, Array]:
    """How to draw an array: as a picture, bars, or a strip of positions."""
    if layout is not None or (array.ndim == 2 and min(array.shape) > 4):
        return "image", array
    if array.ndim == 1:
        return "features", array
    if array.ndim == 2:
        return "tokens", array
    return "features", np.atleast_1d(array.reshape(-1))
