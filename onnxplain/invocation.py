"""One invocation: which model was asked for what, and what came out, as panels, a manifest and a report."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

from onnxplain import __version__, render
from onnxplain.coverage import Coverage
from onnxplain.explanation import Explanation
from onnxplain.inputs import Loaded


@dataclass
class Invocation:
    """One invocation: which model was asked, here or on a server, and what came out.

    where: the model's path, or its address. file: its name there. inputs: what it takes, in words. graph: what ran, in
    words. provider: of onnxruntime, "" where the server does not tell.
    """

    where: str
    name: str
    version: str
    file: str
    sha256: str
    explained: Sequence[str]
    inputs: Sequence[str]
    loaded: Loaded
    graph: str = ""
    provider: str = ""
    explanations: list[Explanation] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    coverage: Coverage | None = None
    random_seed: int | None = None

    @property
    def labels(self) -> list[str]:
        """Of each explanation: its recipe's label; where another recipe has the same, with its composite."""
        recipes = [e.recipe for e in self.explanations]
        return [
            r.title if any(other != r and other.label == r.label for other in recipes) else r.label for r in recipes
        ]


def panels_of(done: Invocation) -> list[render.Panel]:
    """Every row of every explanation, ready to be drawn."""
    samples = (
        [file.name for file in done.loaded.files] if len(done.loaded.files) == done.explanations[0].samples else []
    )
    features = next(iter(done.loaded.features.values()), ())
    pairs = zip(done.explanations, done.labels, strict=True)
    return [panel for e, label in pairs for panel in e.panels(samples, features, label)]


def manifest_of(done: Invocation) -> dict[str, Any]:
    """What ran on what, for a file or a report."""
    return {
        "onnxplain": __version__,
        "model": {
            "file": done.file, "name": done.name, "version": done.version, "sha256": done.sha256,
        },
        "inputs": [file.name for file in done.loaded.files],
        "random_seed": done.random_seed,
        "preprocessing": {name: dataclasses.asdict(s) for name, s in done.loaded.settings.items()},
        "recipes": [
            {
                **e.recipe.content(), "digest": e.recipe.digest, "provenance": e.provenance,
                **({} if e.standard_error is None else {"largest_relative_standard_error": e.standard_error}),
            }
            for e in done.explanations
        ],
        "targets": [t.name for t in done.explanations[0].targets],
        "versions": {"python": platform.python_version(), **{p: metadata.version(p) for p in ("onnx", "numpy")}},
        "providers": done.provider,
        "seconds": done.seconds,
        "notes": [*done.loaded.notes, *done.notes],
    }  # fmt: skip


def report_of(done: Invocation, panels: Sequence[render.Panel], grid: bytes, manifest: dict[str, Any]) -> render.Report:
    """The report. grid: PNG of all panels."""
    first = done.explanations[0]
    facts = {
        "model": f"{done.name} ({done.file})",
        "sha256": done.sha256,
        "explained tensor": first.explained,
        "input": ", ".join(done.inputs),
        "nodes": done.graph,
        "methods": ", ".join(dict.fromkeys(done.labels)),
        "files": ", ".join(file.name for file in done.loaded.files) or "random input",
    }
    classes = [
        dataclasses.replace(row, sample=panels[0].sample and f"sample {n}" if first.samples > 1 else "")
        for n in range(first.samples)
        for row in first.top(n, 5 if first.samples == 1 else 2)
    ]
    return render.Report(
        title=f"Why {done.name} decided",
        facts=facts,
        classes=classes,
        panels=panels,
        grid_png=grid,
        recipe={label: e.recipe.content() for e, label in zip(done.explanations, done.labels, strict=True)},
        provenance=manifest,
        notes=[*done.loaded.notes, *done.notes],
    )
