"""`onnxplain export`: packages for other systems, those of `exports`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from onnxplain.cli import bundle  # noqa: F401 - registers its target
from onnxplain.cli.command import Command
from onnxplain.cli.options import explainer_of, request_options, subject_of
from onnxplain.cli.recipe_words import RecipeWords, recipe_options, recipes
from onnxplain.compile import Request
from onnxplain.errors import UsageError
from onnxplain.exports import EXPORTS, Exported, ExportJob, ExportOption, ExportTarget
from onnxplain.exports.registry import own_options, values_of
from onnxplain.inputs import Preprocessing
from onnxplain.sources.directory import NAME

OPTIONS = {  # of a recipe and of a request: a target takes all of them or none
    "recipe": {"method", *(field.name for field in fields(RecipeWords))},
    "request": {"seed", "explain", "head", "attribute_to", "keep", "ledger", "fold"},
}
TARGETS = [str(target.option) for target in EXPORTS.values()]


def _options_of_targets(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed([*(target.option for target in EXPORTS.values()), *own_options().values()]):
        command = _option(option)(command)
    return command


def _option(option: ExportOption) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    if option.kind is bool:
        return click.option(option.flag, is_flag=True, help=option.help)
    kind = click.Path(path_type=Path, file_okay=False) if option.kind is Path else click.STRING
    shown = option.default is not None
    return click.option(
        option.flag, type=kind, metavar=option.metavar, default=option.default, show_default=shown, help=option.help
    )


@click.command(
    "export",
    cls=Command,
    help=f"Package MODEL with its explanation for another system: one of {', '.join(TARGETS)}.",
)
@click.argument("models", nargs=-1, required=True, metavar="MODEL…")
@_options_of_targets
@click.option("--method", default=None, metavar="NAME", help="Method (see `onnxplain methods`); default lrp.")
@click.option(
    "--seed", type=click.Choice(["tensor", "index"]), default="tensor", help="Ask by a float seed or by class index."
)
@click.option("--fold", is_flag=True, help="Store derived weights instead of leaving them to onnxruntime.")
@recipe_options
@request_options
@click.pass_context
def export(
    context: click.Context, /, models: tuple[str, ...], method: str | None, seed: str, fold: bool, words: RecipeWords,
    explain: tuple[str, ...], head: str | None, attribute_to: tuple[str, ...],
    keep: tuple[str, ...], ledger: bool, **given: Any,
) -> None:  # fmt: skip
    """Package a model; given: the options of the targets."""
    chosen = [target for name, target in EXPORTS.items() if given[name]]
    if len(chosen) != 1:
        found = " and ".join(target.option.flag for target in chosen) or "none of them"
        offered = f"{', '.join(TARGETS[:-1])} or {TARGETS[-1]}"
        raise UsageError(f"export writes for one system: give {offered}, not {found}.")
    (target,) = chosen
    _refuse_others(context, target)
    own = values_of(target, given)
    if target.check is not None:
        target.check(**own)
    if target.places:
        _report(target.write(models, given[target.option.name], **own))
        return
    if len(models) > 1:
        raise UsageError(f"{target.option.flag} takes one model, not {len(models)}: {', '.join(models)}.")
    (model,) = models
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
    _report(target.write(ExportJob(explainer, resolved), given[target.option.name], **own))


def _report(exported: Exported) -> None:
    for note in exported.notes:
        click.echo(f"note: {note}", err=True)
    click.echo(exported.text)


def _taken(target: ExportTarget) -> set[str]:
    """Names of the parameters that say something to a target, beside those that choose it."""
    return {option.name for option in target.options}.union(*(OPTIONS[group] for group in target.takes))


def _refuse_others(context: click.Context, target: ExportTarget) -> None:
    """An option that would do nothing is a misunderstanding."""
    for parameter in context.command.params:
        name = str(parameter.name)
        given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if not given or name == "models" or name in EXPORTS or name in _taken(target):
            continue
        where = [other.option.flag for other in EXPORTS.values() if name in _taken(other)]
        hint = target.otherwise if any(name in group for group in OPTIONS.values()) else ""
        raise UsageError(
            f"{parameter.opts[0]} says nothing to {target.option.flag}; it goes with {' and '.join(where)}. "
            f"{hint}".rstrip()
        )
