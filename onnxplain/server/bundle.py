"""A model repository with its compiled graphs: what `onnxplain serve` opens without compiling."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from onnxplain.errors import InputError
from onnxplain.exports.entry import place, staging
from onnxplain.frontend.load import load
from onnxplain.prepared import FolderCache
from onnxplain.prepared.model_files import ModelFile, locations
from onnxplain.recipes import Recipe, named
from onnxplain.server.models.context import ServerContext
from onnxplain.server.models.loaded import LoadedModel
from onnxplain.server.models.warm_start import prepared_model
from onnxplain.server.options import ServerOptions
from onnxplain.server.scheduling.scheduler import Scheduler
from onnxplain.server.scheduling.session_cache import SessionCache
from onnxplain.server.telemetry.metrics import Metrics
from onnxplain.sources import ResolvedModel
from onnxplain.sources.directory import MODEL, SETTINGS
from onnxplain.sources.folder import GRAPHS


def write_bundle(
    models: Sequence[ResolvedModel], folder: Path, recipes: Sequence[Recipe], force: bool
) -> list[tuple[Path, list[str]]]:
    """Copy models into a repository and compile them there, beside their default recipes by others.

    Returns the folder of each, with what it lacks. recipes: those that one of the models cannot have are an error.
    Raises InputError where something else lies there, and what loading raises.
    """
    written = []
    with staging(folder) as stage, _context() as context:
        graphs = folder / GRAPHS
        graphs.mkdir(exist_ok=True)
        graphs.chmod(graphs.stat().st_mode & ~0o022)
        context = replace(context, graph_cache=FolderCache(graphs))
        for model in models:
            copy = replace(model, path=_copied(model, stage))
            loaded = LoadedModel(copy, context)
            try:
                for recipe in recipes:
                    loaded.variant(recipe.opened)
                written.append((folder / model.name, _lacks(copy, loaded, recipes, context)))
            finally:
                loaded.close()
        place(stage, folder, force)
    return written


@contextmanager
def _context() -> Iterator[ServerContext]:
    """What models of a server share, of no server."""
    scheduler, options = Scheduler(), ServerOptions()
    try:
        yield ServerContext(options, scheduler, SessionCache(options.session_bytes), Metrics())
    finally:
        scheduler.close()


def _lacks(model: ResolvedModel, loaded: LoadedModel, recipes: Sequence[Recipe], context: ServerContext) -> list[str]:
    """What a server that opens the bundle would not find there: read as it would read it."""
    problem = loaded.default_recipe_problem
    lacks = [f"its default recipe is not possible: {problem}"] if problem else []
    prepared = prepared_model(model, context, loaded.max_rows)
    subject = prepared.subject(loaded.request)
    if subject is None:
        return [*lacks, "nothing of it could be kept, so it is compiled wherever it is served"]
    own = [*([] if problem else [loaded.recipe]), *map(named, loaded.settings.serving.recipes)]
    for recipe in dict.fromkeys(recipe.opened for recipe in (*own, *recipes)):
        if not recipe.looped and prepared.graph(subject, recipe, loaded.bounds) is None:
            lacks.append(f"the graph of {recipe.title} could not be kept, so it is compiled wherever it is served")
    return lacks


def _copied(model: ResolvedModel, stage: Path) -> Path:
    """The model file as NAME/N/model.onnx, its weights, settings and labels around it as they were."""
    source = model.path.absolute()
    home = stage / model.name / (model.version or "1")
    places = {source.parent: home}
    if source.parent.parent in {file.absolute().parent for file in model.settings.files}:
        places[source.parent.parent] = home.parent
    if home.exists():
        raise InputError(f"two of the models are called {model.name}, version {home.name}. Give them one by one.")
    load(source)  # whatever is wrong with it, such as weights in files outside its folder, is said before any is copied
    home.mkdir(parents=True)
    shutil.copyfile(source, home / MODEL)
    for location in locations(ModelFile.read(source)):
        (home / location).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.parent / location, home / location)
    for file in model.settings.files:
        shutil.copyfile(file, places[file.absolute().parent] / SETTINGS)
    for extra in model.settings.named_files:
        at = next((folder for folder in places if extra.absolute().is_relative_to(folder)), None)
        if at is None:
            raise InputError(f"{model.name}: {extra} lies outside the model's folder. Put it in there.")
        target = places[at] / extra.absolute().relative_to(at)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(extra, target)
    return home / MODEL
