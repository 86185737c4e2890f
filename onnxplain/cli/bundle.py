"""`onnxplain export --bundle`: models with their compiled graphs, as the service would keep them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from onnxplain.exports import Exported, ExportOption, export_target
from onnxplain.exports.entry import FORCE
from onnxplain.recipes import named
from onnxplain.sources import DirectorySource, ResolvedModel
from onnxplain.sources.directory import resolve_model


@export_target(
    ExportOption("bundle", "Write models and their compiled graphs, ready for `onnxplain serve DIR`.", Path, "DIR"),
    options=[
        ExportOption("with_recipes", "Bundle: compiled beside each model's default recipe.", metavar="NAME,…"),
        FORCE,
    ],
    otherwise="A bundle has each model's own settings; name more recipes by --with-recipes.",
    places=True,
)
def to_bundle(models: Sequence[str], folder: Path, *, with_recipes: str | None, force: bool) -> Exported:
    """One line for every model: its folder, its size, that of all graphs."""
    recipes = [named(name.strip()) for name in (with_recipes or "").split(",") if name.strip()]
    for recipe in recipes:
        _ = recipe.one_pass  # a recipe without a graph is refused before anything is loaded
    from onnxplain.server.bundle import write_bundle  # the service, which other exports do without

    written = write_bundle([model for name in models for model in _models(name)], folder, recipes, force)
    lines = [f"{path}  {_megabytes(path):.1f} MB" for path, _ in written]
    notes = [f"{path.name}: {lack}" for path, lacks in written for lack in lacks]
    graphs = folder / ".graphs"
    return Exported("\n".join([*lines, f"{graphs}  {_megabytes(graphs):.1f} MB"]), tuple(notes))


def _models(name: str) -> list[ResolvedModel]:
    """The model of a name or path; of a repository all that it offers."""
    path = Path(name)
    if path.is_dir() and not any(path.glob("*.onnx")):
        source = DirectorySource(path)
        if releases := source.releases():
            return [source.fetch(release) for release in releases]
    return [resolve_model(name)]


def _megabytes(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6
