"""What `run` and `explain` write: pictures, arrays, report, manifest. All of it or nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from onnxplain import render
from onnxplain.invocation import Invocation, manifest_of, panels_of, report_of


def write_run(done: Invocation, folder: Path, palette: str | None) -> None:
    """Write everything into `folder`. Raises InputError; nothing half written is left."""
    panels = panels_of(done)
    names = _unique([_stem(panel) for panel in panels])
    with render.OutputFolder(folder) as out:
        for name, panel in zip(names, panels, strict=True):
            out.write(f"{name}.png", render.png(render.picture(panel, palette)))
            over = render.over_photo(panel, palette)
            if over is not None:
                out.write(f"{name}.overlay.png", render.png(over))
        for name, e in zip(_unique(done.labels), done.explanations, strict=True):
            out.write(f"{render.safe_name(name)}.npz", e.npz())
        grid = render.png(render.grid(panels, palette=palette))
        out.write("grid.png", grid)
        for name, array in _kept(done).items():
            safe = render.safe_name(name)
            np.save(out.new(f"{safe}.npy"), np.asarray(array))
            if np.asarray(array).dtype.kind == "f" and np.ndim(array) in (2, 3, 4):
                out.write(f"{safe}.features.png", render.png(render.features(np.asarray(array[:1], np.float32), name)))
        manifest = manifest_of(done)
        out.write("manifest.json", json.dumps(manifest, indent=2, ensure_ascii=False, default=str))
        out.write("report.html", render.html(report_of(done, panels, grid, manifest), palette))


def _stem(panel: render.Panel) -> str:
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
