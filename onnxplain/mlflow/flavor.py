"""The flavor `onnxplain`: beside `mlflow.onnx`'s files lie recipe.toml, explain.onnx and model.toml, with their hashes.

Nothing in the flavor is code. `sources/mlflow.py` serves a model so logged; one without the flavor gets the default
recipe.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from onnxplain import __version__
from onnxplain.compile import Request
from onnxplain.errors import InputError, UsageError
from onnxplain.explainer import Explainer
from onnxplain.frontend.load import external_tensors, load
from onnxplain.inputs import Preprocessing, load_settings
from onnxplain.recipes import Recipe
from onnxplain.sources.cache import BYTES, FILES, measured
from onnxplain.sources.mlflow import opened
from onnxplain.sources.mlflow_agent import MLMODEL, AgentError, about, check_content
from onnxplain.sources.resolved import ResolvedModel
from onnxplain.subject import Subject

FLAVOR = "onnxplain"
MODEL = "model.onnx"  # as mlflow.onnx calls it
RECIPE, GRAPH, SETTINGS, LABELS = "recipe.toml", "explain.onnx", "model.toml", "labels.txt"

Model = str | Path | onnx.ModelProto | Explainer
Choice = Recipe | Mapping[str, Any] | str | Path | None


def log_model(
    model: Model,
    name: str,
    *,
    recipe: Choice = None,
    settings: str | Path | None = None,
    registered_model_name: str | None = None,
    **options: Any,
) -> Any:
    """Log a model with its recipe and compiled graph to the active MLflow run; returns MLflow's ModelInfo.

    model, recipe, settings: as for `save_model`. options: of `mlflow.onnx.log_model`, such as signature, input_example,
    metadata, tags. Raises InputError, UsageError, UnsupportedModel, and whatever MLflow raises.
    """
    from mlflow.models import Model as Log  # type: ignore[import-not-found, unused-ignore]

    return Log.log(
        artifact_path=None,
        name=name,
        flavor=sys.modules[__name__],
        flavor_name=FLAVOR,
        registered_model_name=registered_model_name,
        model=model,
        recipe=recipe,
        settings=settings,
        **options,
    )


def save_model(
    model: Model,
    path: str | Path,
    *,
    recipe: Choice = None,
    settings: str | Path | None = None,
    mlflow_model: Any = None,
    **options: Any,
) -> None:
    """Write an MLflow model folder.

    model: path of an ONNX file, a ModelProto, or an Explainer, whose graph is stored as it was compiled. recipe: a
    Recipe, a table of its keys, or a TOML file; None: the Explainer's, else [defaults] of `settings`, else `lrp`.
    settings: a model.toml; the files that it names are stored too. options: of `mlflow.onnx.save_model`.
    """
    try:
        import mlflow.onnx  # type: ignore[import-not-found, unused-ignore]
        from mlflow.models import Model as Log
    except ImportError as error:
        raise UsageError(
            f"to save a model needs the whole of MLflow, not only its client ({error}): pip install mlflow."
        ) from error
    folder = Path(path)
    chosen = _recipe(model, recipe, settings)
    chosen.check()
    chosen.require_graph()
    log = Log() if mlflow_model is None else mlflow_model
    if not {"conda_env", "pip_requirements"} & options.keys():
        # else MLflow runs the model in another process to see what it imports: the same two packages, seconds later
        options["pip_requirements"] = mlflow.onnx.get_default_pip_requirements()
    mlflow.onnx.save_model(_proto(model), str(folder), mlflow_model=log, **options)

    beside = _write_settings(model, settings, folder)
    (folder / RECIPE).write_text(chosen.toml(), encoding="utf-8")
    names = {"recipe": RECIPE, "graph": GRAPH, "settings": SETTINGS if (folder / SETTINGS).exists() else None}
    if isinstance(model, Explainer) and model.recipe == chosen:
        model.save(folder / GRAPH)
    else:
        found = {"onnx": MODEL, "recipe": RECIPE, "settings": names["settings"]}
        _explainer(opened(folder, found, folder.name, ""), "auto", 0).save(folder / GRAPH)
    files = [
        MODEL,
        GRAPH,
        *_weights(folder / MODEL),
        *_weights(folder / GRAPH),
        RECIPE,
        names["settings"],
        *beside.values(),
    ]
    log.add_flavor(
        FLAVOR,
        onnxplain_version=__version__,
        **names,
        labels=beside.get("labels"),
        sha256={name: _sha256(folder / name) for name in dict.fromkeys(files) if name},
    )
    log.model_size_bytes = sum(measured(folder, FILES, BYTES).values())
    log.save(str(folder / MLMODEL))


def load_explainer(uri: str, *, provider: str = "auto", threads: int = 0, ledger: bool = False) -> Explainer:
    """An Explainer from any MLflow address of an ONNX model: models:/name@alias, runs:/…, a folder.

    Without the flavor `onnxplain` it has the default recipe. Raises InputError for files that are not those logged.
    """
    import mlflow.artifacts  # type: ignore[import-not-found, unused-ignore]

    folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri))
    try:
        measured(folder, FILES, BYTES)
        found = about(folder)
        check_content(folder, found)
    except AgentError as error:
        raise InputError(f"{uri}: {error}.") from error
    return _explainer(opened(folder, found, folder.name, ""), provider, threads, ledger, _signature(folder))


def _signature(folder: Path) -> list[str]:
    """Names of the columns that the logged signature declares; [] where it has none or declares tensors."""
    from mlflow.models import Model as Log

    signature = Log.load(str(folder / MLMODEL)).signature
    inputs = None if signature is None else signature.inputs
    return [] if inputs is None or inputs.is_tensor_spec() or not inputs.has_input_names() else inputs.input_names()


def _explainer(
    resolved: ResolvedModel, provider: str, threads: int, ledger: bool = False, columns: Sequence[str] = ()
) -> Explainer:
    """With the recipe that the settings hold. columns: of the signature; those of model.toml hold."""
    output, recipe = resolved.settings.output, Recipe.of(resolved.settings.defaults)
    subject = Subject.of(resolved.path, Request(explain=output.explain, ledger=ledger), provider, threads)
    pictures = Preprocessing.of(resolved.settings)
    return Explainer(
        subject,
        recipe,
        bounds=pictures.bounds(subject.inputs),
        labels=pictures.labels(),
        kind=output.kind,
        columns=pictures.columns(subject.inputs) or list(columns),
        background=pictures.background(subject.inputs) if recipe.background != "none" else None,
    )


def _recipe(model: Model, recipe: Choice, settings: str | Path | None) -> Recipe:
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, Mapping):
        return Recipe.of(recipe)
    if recipe is not None:
        return Recipe.read(Path(recipe))
    if isinstance(model, Explainer):
        return model.recipe
    return Recipe.of(load_settings(Path(settings)).defaults, str(settings)) if settings is not None else Recipe()


def _proto(model: Model) -> onnx.ModelProto:
    """A copy with all its weights: saving with external data empties the one it is given."""
    if isinstance(model, Explainer):
        source = model.subject.source
        if source.path is None:
            return ir.to_proto(source.model)
        model = source.path
    if isinstance(model, onnx.ModelProto):
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        return copy
    load(Path(model))  # says in one line what is wrong with the file; onnx does not
    return onnx.load(str(model))


def _write_settings(model: Model, settings: str | Path | None, folder: Path) -> dict[str, str]:
    """model.toml and the files it names, into `folder`; what an Explainer knows where no file is given.

    Returns the files beside it by what they are: labels, background.
    """
    if settings is None:
        return _write_known(model, folder) if isinstance(model, Explainer) else {}
    file, found = Path(settings), {}
    known = load_settings(file)
    shutil.copyfile(file, folder / SETTINGS)
    for named in known.named_files:
        key = "background" if str(named) == known.background else "labels"
        name = os.path.relpath(named, file.parent)
        if ".." in Path(name).parts or Path(name).is_absolute() or (folder / name).exists():
            raise UsageError(
                f"{file}: {key} = {name!r} cannot be stored with the model; put the file beside {file.name}."
            )
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(named, folder / name)
        found[key] = Path(name).as_posix()
    return found


def _write_known(explainer: Explainer, folder: Path) -> dict[str, str]:
    known: dict[str, Any] = {}
    if explainer.labels:
        known["labels"] = LABELS
        lines = (" ".join(label.split()) for label in explainer.labels)
        (folder / LABELS).write_text("\n".join(lines) + "\n", encoding="utf-8")
    if explainer.kind:
        known["kind"] = explainer.kind
    if explainer.subject.request.explain:
        known["explain"] = list(explainer.subject.request.explain)
    tables = {"output": known} if known else {}
    tables |= {f"inputs.{json.dumps(name)}": {"features": list(names)} for name, names in explainer.columns.items()}
    if tables:  # JSON's texts and lists are TOML's too
        text = "\n".join(
            line
            for title, table in tables.items()
            for line in (f"[{title}]", *(f"{k} = {json.dumps(v, ensure_ascii=False)}" for k, v in table.items()))
        )
        (folder / SETTINGS).write_text(text + "\n", encoding="utf-8")
    return {"labels": LABELS} if explainer.labels else {}


def _weights(file: Path) -> list[str]:
    """Files that a model's weights lie in."""
    proto = onnx.load(str(file), load_external_data=False)
    places = [{entry.key: entry.value for entry in tensor.external_data} for tensor in external_tensors(proto)]
    return sorted({place["location"] for place in places})


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
