"""`onnxplain export`: packages for Triton, KServe and MLflow."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Collection
from dataclasses import fields
from pathlib import Path

import click
import onnx_ir as ir
from click.core import ParameterSource

from onnxplain.cli.command import Command
from onnxplain.cli.options import (
    RecipeWords,
    explainer_of,
    recipe_options,
    recipes,
    request_options,
    subject_of,
)
from onnxplain.compile import Request, cuda
from onnxplain.errors import Unavailable, UsageError
from onnxplain.explainer import Explainer
from onnxplain.exports import kserve as kserve_export
from onnxplain.exports import triton as triton_export
from onnxplain.inputs import Preprocessing
from onnxplain.runtime.open import bytes_per_stream
from onnxplain.sources import ResolvedModel
from onnxplain.sources.directory import NAME

RECIPE = {"method", *(field.name for field in fields(RecipeWords))}
REQUEST = {"seed", "explain", "head", "attribute_to", "keep", "ledger", "fold"}
TAKES = {  # which options say something about which target
    "--triton": RECIPE | REQUEST | {"with_model", "force"},
    "--kserve": {"storage_uri", "image", "out", "force"},
    "--mlflow": RECIPE,
}
ALWAYS = {"model", "triton", "kserve", "mlflow"}


@click.command("export", cls=Command)
@click.argument("model")
@click.option(
    "--triton",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write MODEL.explain into a Triton model repository.",
)
@click.option("--kserve", is_flag=True, help="Print the KServe manifests that serve MODEL.")
@click.option("--mlflow", metavar="URI", help="Log and register MODEL at an MLflow tracking server.")
@click.option("--with-model", is_flag=True, help="Triton: write the model itself beside its explanation.")
@click.option("--storage-uri", metavar="URI", help="KServe: where the cluster finds the model repository.")
@click.option("--image", metavar="IMAGE", default=kserve_export.Runtime.image, show_default=True, help="KServe: ours.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="KServe: write the manifests there.",
)
@click.option("--force", is_flag=True, help="Replace what another export wrote.")
@click.option("--method", default=None, metavar="NAME", help="Method (see `onnxplain methods`); default lrp.")
@click.option(
    "--seed", type=click.Choice(["tensor", "index"]), default="tensor", help="Ask by a float seed or by class index."
)
@click.option("--fold", is_flag=True, help="Store derived weights instead of leaving them to onnxruntime.")
@recipe_options
@request_options
@click.pass_context
def export(
    context: click.Context, model: str, triton: Path | None, kserve: bool, mlflow: str | None,
    with_model: bool, storage_uri: str | None, image: str, out: Path | None, force: bool,
    method: str | None, seed: str, fold: bool, words: RecipeWords,
    explain: tuple[str, ...], head: str | None, attribute_to: tuple[str, ...],
    keep: tuple[str, ...], ledger: bool,
) -> None:  # fmt: skip
    """Package MODEL with its explanation for another system: one of --triton DIR, --kserve, --mlflow URI."""
    chosen = [f"--{key}" for key, value in (("triton", triton), ("kserve", kserve), ("mlflow", mlflow)) if value]
    if len(chosen) != 1:
        found = " and ".join(chosen) or "none of them"
        raise UsageError(f"export writes for one system: give --triton DIR, --kserve or --mlflow URI, not {found}.")
    (target,) = chosen
    _refuse_others(context, target, TAKES[target])
    if kserve and storage_uri is None:
        raise UsageError(
            "--kserve needs --storage-uri: where the cluster finds the folder with the model's folder, "
            "such as s3://bucket/models or pvc://claim/models."
        )
    if mlflow is not None and importlib.util.find_spec("mlflow") is None:
        raise UsageError("--mlflow needs MLflow, which is not installed: pip install 'onnxplain[mlflow]'.")
    request = Request(explain, head or "", seed, attribute_to, keep, ledger, fold)
    resolved, subject = subject_of(model, request)
    if not NAME.fullmatch(resolved.name):
        raise UsageError(
            f"{resolved.name!r} cannot be the name of a served model: letters, digits, '.', '_' and '-' only. "
            "Rename the file, or put it into a folder NAME/1/model.onnx."
        )
    (recipe,) = recipes([method] if method else [], words, resolved.settings, [])
    explainer = explainer_of(subject, recipe, bounds=Preprocessing.of(resolved.settings).bounds(subject.inputs))
    for note in explainer.notes:
        click.echo(f"note: {note}", err=True)
    if triton is not None:
        _triton(explainer, resolved, triton, with_model, force)
    elif storage_uri is not None:
        _kserve(explainer, resolved, storage_uri, image, out, force)
    elif mlflow is not None:
        _mlflow(explainer, resolved, mlflow)


def _refuse_others(context: click.Context, target: str, taken: Collection[str]) -> None:
    """An option that would do nothing is a misunderstanding."""
    for parameter in context.command.params:
        name = str(parameter.name)
        if name in ALWAYS or name in taken or context.get_parameter_source(name) != ParameterSource.COMMANDLINE:
            continue
        where = [key for key, names in TAKES.items() if name in names]
        hint = "The server explains as model.toml says." if target == "--kserve" and name in RECIPE | REQUEST else ""
        raise UsageError(
            f"{parameter.opts[0]} says nothing to {target}; it goes with {' and '.join(where)}. {hint}".rstrip()
        )


def _triton(explainer: Explainer, resolved: ResolvedModel, folder: Path, with_model: bool, force: bool) -> None:
    entries = triton_export.export(explainer, resolved.name, folder, with_model=with_model, force=force)
    for note in [*(n for entry in entries for n in entry.notes), *cuda.notes(explainer.compiled.model.graph)]:
        click.echo(f"note: {note}", err=True)
    for entry in entries:
        size = sum(file.stat().st_size for file in entry.path.rglob("*") if file.is_file()) / 1e6
        state = "" if entry.fresh else ", as it was"
        click.echo(f"{entry.path}  {size:.1f} MB, max_batch_size {entry.rows}{state}")


def _kserve(
    explainer: Explainer, resolved: ResolvedModel, storage: str, image: str, out: Path | None, force: bool
) -> None:
    weights = sum(value.const_value.nbytes for value in _weights(explainer) if value.const_value is not None)
    runtime = kserve_export.Runtime(image, weights, bytes_per_stream(explainer.compiled.model))
    files = kserve_export.manifests(resolved.name, storage, runtime)
    if out is None:
        click.echo("---\n".join(files.values()), nl=False)
        return
    fresh = kserve_export.write(files, out, force)
    for file in files:
        click.echo(f"{out / file}{'' if out / file in fresh else '  as it was'}")


def _weights(explainer: Explainer) -> Collection[ir.Value]:
    return list(explainer.subject.normalised.model.graph.initializers.values())


def _mlflow(explainer: Explainer, resolved: ResolvedModel, uri: str) -> None:
    files = resolved.settings.files
    if len(files) > 1:
        raise UsageError(
            f"--mlflow stores one model.toml, and {resolved.name} has {len(files)}: {', '.join(map(str, files))}. Put "
            "all keys into one of them."
        )
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # MLflow's own 7 keep a user waiting for minutes
    import mlflow  # type: ignore[import-not-found, unused-ignore]

    from onnxplain.mlflow import log_model  # imports MLflow, which takes seconds and may not be there

    mlflow.set_tracking_uri(uri)
    try:
        info = log_model(
            explainer,
            resolved.name,
            recipe=explainer.recipe,
            settings=files[0] if files else None,
            registered_model_name=resolved.name,
        )
    except mlflow.exceptions.MlflowException as error:
        reason = " ".join(str(error).split())
        raise Unavailable(f"MLflow at {uri} did not take {resolved.name}: {reason[:300]}") from error
    click.echo(f"{info.model_uri}  registered as {resolved.name}, version {info.registered_model_version}")
