"""What `run` and `explain` write: pictures, arrays, report, manifest. All of it or nothing."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

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


def write_run(done: Invocation, folder: Path, palette: str | None) -> None:
    """Write everything into `folder`. Raises InputError; nothing half written is left."""
    samples = (
        [file.name for file in done.loaded.files] if len(done.loaded.files) == done.explanations[0].samples else []
    )
    features = next(iter(done.loaded.features.values()), ())
    panels = [panel for e in done.explanations for panel in e.panels(samples, features)]
    names = _unique([_stem(e, panel) for e in done.explanations for panel in e.panels(samples, features)])
    with render.OutputFolder(folder) as out:
        for name, panel in zip(names, panels, strict=True):
            out.write(f"{name}.png", render.png(render.picture(panel, palette)))
            over = render.over_photo(panel, palette)
            if over is not None:
                out.write(f"{name}.overlay.png", render.png(over))
        for name, e in zip(_unique([e.recipe.label for e in done.explanations]), done.explanations, strict=True):
            out.write(f"{render.safe_name(name)}.npz", e.npz())
        grid = render.png(render.grid(panels, palette=palette))
        out.write("grid.png", grid)
        for name, array in _kept(done).items():
            safe = render.safe_name(name)
            np.save(out.new(f"{safe}.npy"), np.asarray(array))
            if np.asarray(array).dtype.kind == "f" and np.ndim(array) in (2, 3, 4):
                out.write(f"{safe}.features.png", render.png(render.features(np.asarray(array[:1], np.float32), name)))
        manifest = _manifest(done)
        out.write("manifest.json", json.dumps(manifest, indent=2, ensure_ascii=False, default=str))
        out.write("report.html", render.html(_report(done, panels, grid, manifest), palette))


def _stem(e: Explanation, panel: render.Panel) -> str:
    parts = [panel.sample.rsplit(".", 1)[0], panel.method, panel.target_name or str(panel.target)]
    return render.safe_name("_".join(part for part in parts if part))


def _unique(names: list[str]) -> list[str]:
    """Names told apart by a number where two are the same."""
    seen: dict[str, int] = {}
    found = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return found


def _kept(done: Invocation) -> dict[str, Any]:
    return dict(done.explanations[0].kept)


def _manifest(done: Invocation) -> dict[str, Any]:
    return {
        "onnxplain": __version__,
        "model": {
            "file": done.file, "name": done.name, "version": done.version, "sha256": done.sha256,
        },
        "inputs": [file.name for file in done.loaded.files],
        "random_seed": done.random_seed,
        "preprocessing": {name: dataclasses.asdict(s) for name, s in done.loaded.settings.items()},
        "recipes": [
            {**e.recipe.content(), "digest": e.recipe.digest, "provenance": e.provenance}
            for e in done.explanations
        ],
        "targets": [t.name for t in done.explanations[0].targets],
        "versions": {"python": platform.python_version(), **{p: metadata.version(p) for p in ("onnx", "numpy")}},
        "providers": done.provider,
        "seconds": done.seconds,
        "notes": [*done.loaded.notes, *done.notes],
    }  # fmt: skip


def _report(done: Invocation, panels: list[render.Panel], grid: bytes, manifest: dict[str, Any]) -> render.Report:
    first = done.explanations[0]
    facts = {
        "model": f"{done.name} ({done.file})",
        "sha256": done.sha256,
        "explained tensor": first.explained,
        "input": ", ".join(done.inputs),
        "nodes": done.graph,
        "methods": ", ".join(dict.fromkeys(e.recipe.label for e in done.explanations)),
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
        recipe={e.recipe.label: e.recipe.content() for e in done.explanations},
        provenance=manifest,
        notes=[*done.loaded.notes, *done.notes],
    )
