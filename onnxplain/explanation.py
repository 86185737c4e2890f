"""An Explanation: relevances of a batch for some targets, and what it takes to draw, keep and judge them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from onnxplain import render
from onnxplain.drawing import Patches, panels
from onnxplain.errors import InputError
from onnxplain.inputs.loading import Loaded
from onnxplain.inputs.targets import Target
from onnxplain.localisation import THRESHOLD, LocalisationBox
from onnxplain.methods.estimate import relative_error
from onnxplain.methods.notes import Note
from onnxplain.methods.registry import Method
from onnxplain.recipes import Recipe
from onnxplain.runtime.session import Array


@dataclass
class Explanation:
    """Relevances for K targets of N samples.

    relevances: by attributed tensor; the batch axis holds K * N rows, target-major. Where the model has no batch axis
    (a time axis in front, say), N is 1 and the K rows lie along an axis put before the tensor's own. standard_errors:
    of the relevances, in their shapes, where the method draws samples. row_notes: those of the notes that a looped
    method made, by row; none are sent over the wire. scores: (N, …) of the explained tensor. kept:
    forward tensors asked for by `keep`. ledger: float64 (rows, nodes, 5) or None. layout: of a picture input, e.g.
    "NCHW"; None: guessed from the shape.
    """

    method: Method
    recipe: Recipe
    targets: Sequence[Target]
    samples: int
    relevances: Mapping[str, Array]
    inputs: Mapping[str, Array]
    scores: Array
    explained: str
    outputs: Mapping[str, Array]
    kept: Mapping[str, Array]
    ledger: Array | None
    provenance: Mapping[str, Any]
    labels: Sequence[str] = ()
    kind: str | None = None
    notes: Sequence[str] = ()
    row_notes: Mapping[int, Sequence[Note]] = field(default_factory=dict)
    seconds: float = 0.0
    layout: str | None = None
    photos: Sequence[Any] = field(default_factory=tuple)
    standard_errors: Mapping[str, Array] = field(default_factory=dict)

    def show(self, loaded: Loaded, first: str) -> None:
        """Draw on the photographs that the batch was prepared from. first: name of the model's first input.

        Raises InputError for files that were put together along an axis that does not count samples.
        """
        if any(self.samples != len(loaded.feeds[name]) for name in loaded.joined):
            raise InputError(
                f"{len(loaded.files)} files were put together along axis 0, which counts no samples in this model; "
                "explain one file at a time."
            )
        self.photos = loaded.pictures.get(first, ())
        layout = loaded.settings[first].layout if first in loaded.settings else None
        attributed = all(name in self.inputs for name in self.relevances)  # the pictures themselves, nothing inside
        if first in loaded.settings:
            self.layout = layout if attributed and layout and len(layout) == 4 else None

    @property
    def relevance(self) -> Array:
        """Relevance of the one attributed tensor; see `relevances` where there are several."""
        if len(self.relevances) != 1:
            raise InputError(f"several tensors are attributed: take one of relevances[{', '.join(self.relevances)}].")
        return next(iter(self.relevances.values()))

    @property
    def standard_error(self) -> float | None:
        """The largest relative to the largest relevance, the worst of all rows; None where no samples are drawn."""
        found = [
            relative_error(self.relevances[name][row], errors[row])
            for name, errors in self.standard_errors.items()
            for row in range(len(errors))
        ]
        return max(found, default=None)

    @property
    def target(self) -> str:
        """What was explained, in words."""
        return ", ".join(target.name for target in self.targets)

    def rows(self) -> list[tuple[Target, int, int]]:
        """(target, sample, row) of every explanation in here."""
        return [(t, n, k * self.samples + n) for k, t in enumerate(self.targets) for n in range(self.samples)]

    def row(self, row: int, name: str | None = None) -> Array:
        """Relevance of one row, without its batch axis."""
        array = self.relevance if name is None else self.relevances[name]
        return self._of_row(array, row, next(k for k, v in self.relevances.items() if v is array))

    def standard_error_row(self, row: int, name: str) -> Array | None:
        """Standard errors of one row, shaped as `row`; None where the method draws no samples."""
        array = self.standard_errors.get(name)
        return None if array is None else self._of_row(array, row, name)

    def _of_row(self, array: Array, row: int, name: str) -> Array:
        axis = (self.provenance.get("stream_axis") or {}).get(f"{name}.relevance") or 0
        return np.take(array, row, axis) if array.ndim and array.shape[axis] > row else array

    @property
    def map(self) -> Array:
        """Relevance reduced over channels: float32 (rows, H, W) for pictures, else the relevance as it is."""
        return np.stack([self.row_map(row) for _, _, row in self.rows()])

    def patches(self, name: str | None = None) -> Patches | None:
        """Which tokens of an attributed tensor are patches of a picture, None where that is not proven."""
        maps = self.provenance.get("maps") or {}
        found = maps.get(name or next(iter(self.relevances)), {}).get("patches")
        return None if found is None else Patches(**found)

    def row_map(self, row: int, name: str | None = None) -> Array:
        """One row's map: (H, W) for a picture or tokens that are its patches, the array itself for anything else."""
        array = self.row(row, name)
        if (grid := self.patches(name)) is not None:
            return grid.picture(array)
        layout = self.layout or render.sample_layout(array.shape)
        if layout is None:
            return np.asarray(array, dtype=np.float32)
        return render.reduce_channels(array[None], layout, self.method.channels)

    def save(self, path: str | Path) -> Path:
        """Write relevances, maps, scores and the ledger as one float32 `.npz`. Raises InputError."""
        path = Path(path).with_suffix(".npz")
        with render.OutputFolder(path.parent) as folder:
            folder.write(path.name, self.npz())
        return path

    def npz(self) -> bytes:
        """The arrays of `save` as bytes.

        `<tensor>.relevance` (names verbatim), `<tensor>.standard_error` where there is one, `scores`, `ledger`,
        `targets`.
        """
        arrays: dict[str, Array] = {
            f"{name}.relevance": np.asarray(r, np.float32) for name, r in self.relevances.items()
        }
        arrays |= {f"{name}.standard_error": np.asarray(e, np.float32) for name, e in self.standard_errors.items()}
        arrays |= {"scores": self.scores, "targets": np.array([t.name for t in self.targets])}
        if self.ledger is not None:
            arrays["ledger"] = self.ledger
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        return buffer.getvalue()

    def panels(
        self, sample_names: Sequence[str] = (), features: Sequence[str] = (), label: str = "", box: float | None = None
    ) -> list[render.Panel]:
        """One drawable panel per target, sample and attributed tensor.

        label: their title; "": the recipe's. box: threshold of boxes that are drawn.
        """
        return panels(self, sample_names, features, label or self.recipe.label, box)

    def boxes(self, threshold: float = THRESHOLD) -> dict[str, list[LocalisationBox | None]]:
        """The localisation box of every row's map, by attributed tensor; see `localisation.localisation_box`.

        In pixels of the picture that the map lies over, where it is one of a layer inside. Raises UsageError where no
        relevance is a picture's.
        """
        drawn, rows = self.panels(box=threshold), len(self.rows())
        parts = {name: drawn[n * rows : (n + 1) * rows] for n, name in enumerate(self.relevances)}
        return {name: [p.box for p in part] for name, part in parts.items() if any(p.localised for p in part)}

    @property
    def classes(self) -> Array | None:
        """The scores as (N, classes), trailing axes of length one left out; None where they are no list of several."""
        shape = self.scores.shape
        if len(shape) < 2 or shape[1] < 2 or any(length != 1 for length in shape[2:]) or self.kind == "regression":
            return None
        return self.scores.reshape(shape[:2])

    def probabilities(self) -> Array | None:
        """(N, classes): the scores where they are probabilities, their softmax where they are known to be logits.

        Known by a softmax that was cut off, by `kind`, or by as many labels; four numbers of a box are neither.
        """
        scores = self.classes
        if scores is None:
            return None
        if np.all(scores >= 0) and np.allclose(scores.sum(1), 1, atol=1e-3):
            return scores
        head = (self.provenance.get("heads") or {}).get(self.explained, "")
        if "Softmax" not in head and self.kind != "classification" and len(self.labels) != scores.shape[1]:
            return None
        shifted = np.exp(scores.astype(np.float64) - scores.max(1, keepdims=True))
        return np.asarray(shifted / shifted.sum(1, keepdims=True))

    def top(self, sample: int, count: int = 5) -> list[render.ClassScore]:
        """The highest classes of one sample."""
        scores = self.classes
        if scores is None:
            return []
        probabilities = self.probabilities()
        named = len(self.labels) == scores.shape[1]
        return [
            render.ClassScore(
                int(i),
                self.labels[i] if named else f"class {i}",
                float(scores[sample, i]),
                None if probabilities is None else float(probabilities[sample, i]),
            )
            for i in np.argsort(-scores[sample])[:count]
        ]

    def predicted(self, sample: int) -> str:
        """The highest class in words."""
        top = self.top(sample, 1)
        if not top:
            return ""
        chance = "" if top[0].probability is None else f", p {top[0].probability:.2f}"
        return f"{top[0].name} ({top[0].index}){chance}"

    def where(self, row: int) -> dict[str, float]:
        """Where the relevance of one row went, by the ledger: inputs, bias, stabiliser, padding, rule."""
        total = sum(float(np.asarray(self.row(row, name), np.float64).sum()) for name in self.relevances)
        if self.ledger is None:
            return {"input": total}
        booked = self.ledger[row if row < len(self.ledger) else 0].sum(0)
        columns = self.provenance["ledger"]["columns"][2:]  # behind what came in and what went out
        return {"input": total, **dict(zip(columns, map(float, booked[2:]), strict=True))}

    def plot(self, palette: str | None = None) -> Image.Image:
        """A grid of all rows as a PIL image."""
        return render.grid(self.panels(), palette=palette)

    def _repr_png_(self) -> bytes:
        return render.png(self.plot())
