"""How every row of a bulk run is explained: all that a worker, here or on another machine, must know."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxplain import __version__
from onnxplain.compile import Request
from onnxplain.cpu_session import VERSION
from onnxplain.errors import InputError
from onnxplain.explainer import Explainer
from onnxplain.inputs import Preprocessing
from onnxplain.inputs.background import Background
from onnxplain.recipes import Recipe
from onnxplain.subject import Subject

Array = NDArray[Any]


@dataclass(frozen=True)
class BulkJob:
    """Model, recipe and targets of a bulk run. It can be pickled, and opens anywhere the model's file can be read.

    sha256: of the model; columns: of tables, by input; sample, shapes: as in `Subject.of`. threads: inside one run of
    one worker: results depend in their last digits on it, so it is part of the job. batch: rows of one run.
    """

    model: Path
    sha256: str
    recipe: Mapping[str, Any]
    targets: tuple[str, ...] = ("predicted",)
    request: Request = field(default_factory=Request)
    pictures: Preprocessing | None = None
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    provider: str = "auto"
    threads: int = 1
    batch: int = 8
    format: str = "npz"
    sample: Array | Mapping[str, Array] | None = None
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    background: Background | None = None

    def open(self) -> Explainer:
        """The explainer. Raises InputError where the file is not the model that the job was made for."""
        subject = Subject.of(
            self.model, self.request, self.provider, self.threads, sample=self.sample, shapes=self.shapes
        )
        return self.explainer(subject)

    def explainer(self, subject: Subject) -> Explainer:
        """The same of a subject that is open already."""
        if subject.source.sha256 != self.sha256:
            raise InputError(
                f"{self.model} is not the model that this run was begun with (sha256 {subject.source.sha256[:12]}…, "
                f"not {self.sha256[:12]}…). Every machine needs the same file at the same path."
            )
        pictures, labels = self.pictures, list[str]()
        bounds, kind, columns = None, None, self.columns
        if pictures is not None:
            labels, bounds = pictures.labels(), pictures.bounds(subject.inputs)
            kind, columns = pictures.settings.output.kind, pictures.columns(subject.inputs)
        recipe = Recipe.of(self.recipe)
        return Explainer(
            subject, recipe, bounds=bounds, labels=labels, kind=kind, columns=columns, background=self.background
        )  # fmt: skip

    def content(self) -> dict[str, Any]:
        """What decides the numbers, as JSON has it: another content, another data set."""
        pictures = None
        if self.pictures is not None:
            settings = self.pictures.settings
            pictures = {
                "input": settings.input, "inputs": dict(settings.inputs), "kind": settings.output.kind,
                "options": self.pictures.options, "labels": self.pictures.labels(),
            }  # fmt: skip
        sample = self.sample if isinstance(self.sample, Mapping) or self.sample is None else {"": self.sample}
        said = {
            "onnxplain": __version__,
            "onnxruntime": VERSION,
            "model": {"file": self.model.name, "sha256": self.sha256},
            "recipe": self.recipe,
            "targets": self.targets,
            "request": self.request,
            "preprocessing": pictures,
            "columns": dict(self.columns),
            "provider": self.provider,
            "threads": self.threads,
            "batch": self.batch,
            "format": self.format,
            "sample": None if sample is None else {name: _digest(array) for name, array in sample.items()},
            "shapes": dict(self.shapes),
            "background": None if self.background is None else self.background.sha256,
        }
        plain: dict[str, Any] = json.loads(json.dumps(said, default=_plain))
        return plain


def _plain(value: Any) -> Any:
    return asdict(value) if hasattr(value, "__dataclass_fields__") else str(value)


def _digest(array: Array) -> str:
    head = f"{array.dtype} {array.shape}".encode()
    return hashlib.sha256(head + np.ascontiguousarray(array).tobytes()).hexdigest()
