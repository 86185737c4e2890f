"""`onnxplain run`: explain files, write pictures, arrays and a report."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np

from onnxplain import render
from onnxplain.cli.bulk import BulkWords, bulk_options, run_bulk
from onnxplain.cli.command import Command, refuse_idle
from onnxplain.cli.early_end import EarlyEnd
from onnxplain.cli.options import (
    background_option,
    box_options,
    explainer_of,
    machine_options,
    picture_options,
    request_options,
    sample_options,
    subject_of,
)
from onnxplain.cli.output import write_run
from onnxplain.cli.recipe_words import RecipeWords, recipe_options, recipes, refuse_idle_background
from onnxplain.cli.report import progress_line, tell
from onnxplain.compile import Request
from onnxplain.coverage import coverage
from onnxplain.errors import Cancelled, NotFinite, OnnxplainError, UnsupportedModel, UsageError
from onnxplain.inputs import Loaded, Preprocessing, load, random_inputs
from onnxplain.inputs.targets import labels_unfit
from onnxplain.invocation import Invocation
from onnxplain.recipes import Recipe
from onnxplain.runtime.memory_budget import nbytes_of
from onnxplain.subject import Subject

PICTURE = ("preprocess", "layout", "mean", "std", "scale")


@click.command("run", cls=Command)
@click.argument("model")
@click.argument("files", nargs=-1)
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="FILE",
    help="Input file; also INPUT=FILE and glob patterns. Several are a batch.",
)
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="TARGET",
    help="predicted (default), top3, a class name, an index, 'A vs B'.",
)
@click.option(
    "--method",
    "methods",
    multiple=True,
    metavar="NAME",
    help="Method, repeatable (see `onnxplain methods`), or a recipe: lrp-epsilon.",
)
@recipe_options
@request_options
@picture_options
@background_option
@machine_options
@sample_options
@click.option(
    "--out", type=click.Path(path_type=Path), default=None, help="Folder to write to; default explanations/<model>."
)
@click.option("--palette", metavar="NAME", help="bwr, rdbu, seismic; inferno, viridis, grey.")
@box_options
@click.option("--random-seed", type=int, default=0, help="For the random input when no file is given.")
@click.option(
    "--memory",
    metavar="SIZE",
    help="What explaining may take above the loaded model, such as 1GB; default: a share of what is free.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@bulk_options
def run(
    model: str, files: tuple[str, ...], inputs: tuple[str, ...], targets: tuple[str, ...], methods: tuple[str, ...],
    words: RecipeWords, explain: tuple[str, ...], head: str | None, attribute_to: tuple[str, ...],
    keep: tuple[str, ...], ledger: bool,
    preprocess: str | None, layout: str | None, mean: str | None, std: str | None, scale: str | None,
    labels: str | None, background: tuple[str, ...], provider: str,
    threads: int, sample: Path | None, shapes: tuple[str, ...],
    out: Path | None, palette: str | None, box: float | None, random_seed: int, memory: str | None, as_json: bool,
    bulk: BulkWords,
) -> None:  # fmt: skip
    """Explain FILES by MODEL: a .onnx file, a folder, or a name in the model repository.

    Without files the model is run on random input, which shows what it supports and how long it takes.

    With --engine FILES are folders, patterns, tables or s3:// addresses of any size. Every row becomes a row of a
    partition in --out; a run that was stopped goes on by --resume.
    """
    begun = time.perf_counter()
    given = (*files, *inputs)
    if bulk.engine is not None:
        request = Request(explain, head or "", "tensor", attribute_to)
        picture = (preprocess, layout, mean, std, scale, labels, background)
        run_bulk(
            model, given, bulk, targets, methods, words, request, picture, provider, threads, sample, shapes, out,
            as_json,
        )  # fmt: skip
        return
    refuse_idle(BulkWords.names(), "it is of a bulk run; give --engine too.")
    if given:
        refuse_idle(["random_seed"], "the input is given, so nothing is random.")
    else:
        refuse_idle(PICTURE, "it says how a picture becomes an input, and no file is given.")
        if out is None:
            refuse_idle(["palette", "box"], "without an input file nothing is drawn; give --out too.")
    with progress_line(as_json) as progress:
        step = progress.add_task("loading the model")
        resolved, subject = subject_of(
            model, Request(explain, head or "", "tensor", attribute_to, keep, ledger), provider, threads, sample, shapes
        )
        subject.memory = None if memory is None else nbytes_of(memory)
        if len(subject.resolved.explained) != 1:
            raise UsageError("run explains one tensor at a time; use compile for several (--explain once).")
        pictures = Preprocessing.of(resolved.settings, preprocess, layout, mean, std, scale, labels, background)
        fallback = [] if given else ["gradient", "lrp"]
        wanted = recipes(methods, words, resolved.settings, fallback)
        refuse_idle_background(wanted)
        done = Invocation(
            where=str(resolved.path),
            name=resolved.name,
            version=resolved.version,
            file=resolved.path.name,
            sha256=subject.source.sha256,
            explained=subject.resolved.explained,
            inputs=[str(spec) for spec in subject.inputs],
            loaded=_load(subject, pictures, given, random_seed, sample),
            graph=f"{len(list(subject.normalised.model.graph))} after normalisation",
            provider=subject.provider,
            seconds=dict(subject.seconds),
            box=box,
        )
        if not done.loaded.pictures:
            refuse_idle(PICTURE, "it says how a picture becomes an input, and the files are arrays, taken as they are.")
        if not given:
            done.coverage, done.random_seed = (
                coverage(subject.normalised, subject.resolved, subject.request),
                random_seed,
            )
        names = pictures.labels()
        unfinished: NotFinite | None = None
        interrupted, strict = False, bool(given) or bool(methods)
        for recipe in wanted:
            with EarlyEnd(recipe, progress, step) as end:
                failure = _explain(done, subject, recipe, pictures, names, targets or ("predicted",), strict, end)
            unfinished, interrupted = unfinished or failure, end.asked
            if interrupted:
                break
        if not done.explanations and given:
            raise UnsupportedModel("; ".join(done.failed.values()))
        folder = None
        if done.explanations and (given or out is not None):
            progress.update(step, description="drawing")
            folder = out or Path("explanations") / render.safe_name(resolved.name)
            write_run(done, folder, palette)
    done.seconds["total"] = time.perf_counter() - begun
    tell(done, folder, as_json, {} if done.explanations else _answer(subject, done.loaded))
    if interrupted:
        raise KeyboardInterrupt
    if unfinished is not None:
        raise unfinished


def _load(
    subject: Subject, pictures: Preprocessing, given: Sequence[str], random_seed: int, sample: Path | None
) -> Loaded:
    if given:
        return load(given, subject.inputs, pictures.of_input, pictures.columns(subject.inputs))
    if sample is not None:
        loaded = Loaded(feeds=dict(subject.normalised.reference.feeds))
        loaded.note(f"no input file: the sample {sample} is explained")
        return loaded
    sizes = {
        axis: length
        for spec in subject.inputs
        for axis, length in zip(spec.shape or (), subject.normalised.reference.feeds[spec.name].shape, strict=False)
        if isinstance(axis, str)
    }
    loaded = Loaded(feeds=random_inputs(subject.inputs, np.random.default_rng(random_seed), sizes=sizes))
    loaded.note(
        f"no input file: random input of the declared shapes (random seed {random_seed}), so the pictures mean nothing"
    )
    return loaded


def _explain(
    done: Invocation, subject: Subject, recipe: Recipe, pictures: Preprocessing, names: Sequence[str],
    targets: Sequence[str], strict: bool, progress: EarlyEnd,
) -> NotFinite | None:  # fmt: skip
    """Explain by one recipe. What failed is noted where `strict` is False; what was not finite is returned too."""
    begun = time.perf_counter()
    settings = pictures.settings.output
    try:
        explainer = explainer_of(
            subject, recipe, bounds=pictures.bounds(subject.inputs), labels=names, kind=settings.kind,
            columns=done.loaded.features,
            background=pictures.background(subject.inputs) if recipe.background != "none" else None,
        )  # fmt: skip
        explanation = explainer.explain(done.loaded.feeds, targets, progress)
        explanation.show(done.loaded, subject.inputs[0].name)
        if pictures.labels_option and (unfit := labels_unfit(explanation.scores, names, explainer.kind)):
            raise UsageError(f"--labels {pictures.labels_option}: {unfit} of {explanation.explained}.")
    except Cancelled as error:  # it had no answer yet
        click.echo(f"{recipe.method}: {error}", err=True)
        raise KeyboardInterrupt from None
    except OnnxplainError as error:
        if strict or isinstance(error, UsageError):
            raise
        done.failed[recipe.label] = str(error)
        return error if isinstance(error, NotFinite) else None
    done.explanations.append(explanation)
    done.seconds[recipe.label] = time.perf_counter() - begun
    done.notes += [note for note in explanation.notes if note not in done.notes]
    return None


def _answer(subject: Subject, loaded: Loaded) -> dict[str, str]:
    """The model's outputs on the input, in brief."""
    found = subject.forward(loaded.feeds)
    return {
        name: f"{np.asarray(v).dtype}{list(np.shape(v))} {' '.join(str(v).split())[:80]}" for name, v in found.items()
    }
