"""`onnxplain run`: explain files, write pictures, arrays and a report."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from onnxplain import render
from onnxplain.cli.options import (
    explainer_of,
    machine_options,
    picture_options,
    recipe_options,
    recipes,
    request_options,
    subject_of,
)
from onnxplain.cli.output import write_run
from onnxplain.compile import Request
from onnxplain.coverage import Coverage, coverage
from onnxplain.errors import OnnxplainError, UnsupportedModel, UsageError
from onnxplain.explainer import Subject
from onnxplain.explanation import Explanation
from onnxplain.inputs import Loaded, Pictures, load, random_inputs
from onnxplain.recipes import Recipe
from onnxplain.sources import Resolved


@dataclass
class Run:
    """One invocation: what was asked, what came out."""

    resolved: Resolved
    subject: Subject
    loaded: Loaded
    explanations: list[Explanation] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    coverage: Coverage | None = None
    random_seed: int | None = None


@click.command("run")
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
    "--method", "methods", multiple=True, metavar="NAME", help="Method, repeatable (see `onnxplain methods`)."
)
@recipe_options
@request_options
@picture_options
@machine_options
@click.option(
    "--out", type=click.Path(path_type=Path), default=None, help="Folder to write to; default explanations/<model>."
)
@click.option("--palette", metavar="NAME", help="bwr, rdbu, seismic; inferno, viridis, grey.")
@click.option("--random-seed", type=int, default=0, help="For the random input when no file is given.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def run(
    model: str, files: tuple[str, ...], inputs: tuple[str, ...], targets: tuple[str, ...], methods: tuple[str, ...],
    composite: str | None, rules: tuple[str, ...], form: str | None, recipe_file: Path | None,
    explain: tuple[str, ...], head: str, attribute_to: tuple[str, ...], keep: tuple[str, ...], ledger: bool,
    preprocess: str | None, layout: str | None, mean: str | None, std: str | None, scale: str | None,
    labels: str | None, provider: str,
    threads: int, out: Path | None, palette: str | None, random_seed: int, as_json: bool,
) -> None:  # fmt: skip
    """Explain FILES by MODEL: a .onnx file, a folder, or a name in the model repository.

    Without files the model is run on random input, which shows what it supports and how long it takes.
    """
    begun = time.perf_counter()
    given = (*files, *inputs)
    with _progress(as_json) as progress:
        step = progress.add_task("loading the model")
        resolved, subject = subject_of(
            model, Request(explain, head, "tensor", attribute_to, keep, ledger), provider, threads
        )
        pictures = Pictures.of(resolved.settings, preprocess, layout, mean, std, scale, labels)
        fallback = [] if given else ["gradient", "lrp"]
        wanted = recipes(methods, composite, rules, form, recipe_file, resolved.settings, fallback)
        done = Run(resolved, subject, _load(subject, pictures, given, random_seed))
        if not given:
            done.coverage, done.random_seed = (
                coverage(subject.normalised, subject.resolved, subject.request),
                random_seed,
            )
        names = pictures.labels()
        for recipe in wanted:
            progress.update(step, description=f"explaining by {recipe.method}")
            _explain(done, recipe, pictures, names, targets or ("predicted",), strict=bool(given) or bool(methods))
        if not done.explanations and given:
            raise UnsupportedModel("; ".join(done.failed.values()))
        folder = None
        if done.explanations and (given or out is not None):
            progress.update(step, description="drawing")
            folder = out or Path("explanations") / render.safe_name(resolved.name)
            write_run(done, folder, palette)
    done.seconds["total"] = time.perf_counter() - begun
    if as_json:
        click.echo(json.dumps(_summary(done, folder), indent=2, ensure_ascii=False))
    else:
        _print(done, folder)


def _progress(quiet: bool) -> Progress:
    """A progress line on the terminal, nothing anywhere else."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=quiet or not sys.stderr.isatty())


def _load(subject: Subject, pictures: Pictures, given: Sequence[str], random_seed: int) -> Loaded:
    if given:
        return load(given, subject.inputs, pictures.of_input)
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
    done: Run, recipe: Recipe, pictures: Pictures, names: Sequence[str], targets: Sequence[str], strict: bool
) -> None:
    begun = time.perf_counter()
    settings = pictures.settings.output
    try:
        explainer = explainer_of(
            done.subject, recipe, bounds=pictures.bounds(done.subject.inputs), labels=names, kind=settings.kind
        )
        if len(explainer.explained) != 1:
            raise UsageError("run explains one tensor at a time; use compile for several (--explain once).")
        explanation = explainer.explain(done.loaded.feeds, targets)
    except OnnxplainError as error:
        if strict:
            raise
        done.failed[recipe.method] = str(error)
        return
    first = done.subject.inputs[0].name
    explanation.photos = done.loaded.pictures.get(first, ())
    if first in done.loaded.settings:
        explanation.layout = _sample_layout(done.loaded.settings[first].layout, explanation)
    done.explanations.append(explanation)
    done.seconds[recipe.method] = time.perf_counter() - begun
    done.notes += [note for note in explanation.notes if note not in done.notes]


def _sample_layout(layout: str | None, explanation: Explanation) -> str | None:
    """The picture layout, where the attributed tensor is the picture."""
    same = all(name in explanation.inputs for name in explanation.relevances)
    return layout if same and layout and len(layout) == 4 else None


def _summary(done: Run, folder: Path | None) -> dict[str, Any]:
    """What `--json` prints."""
    first = done.explanations[0] if done.explanations else None
    return {
        "model": str(done.resolved.path),
        "sha256": done.subject.source.sha256,
        "explained": list(done.subject.resolved.explained),
        "classes": []
        if first is None
        else [
            [{"index": c.index, "name": c.name, "score": c.score, "probability": c.probability} for c in first.top(n)]
            for n in range(first.samples)
        ],
        "outputs": {} if first is not None else _answer(done),
        "explanations": [
            {
                "method": e.method.name,
                "recipe": e.recipe.digest,
                "target": target.name,
                "sample": sample,
                "score": float(np.atleast_1d(target.score)[min(sample, np.size(target.score) - 1)]),
                "where": e.where(row),
                "seconds": e.seconds,
            }
            for e in done.explanations
            for target, sample, row in e.rows()
        ],
        "failed": done.failed,
        "notes": [*done.loaded.notes, *done.notes],
        "coverage": None if done.coverage is None else done.coverage.summary(),
        "seconds": {**done.subject.seconds, **done.seconds},
        "folder": None if folder is None else str(folder),
    }


def _print(done: Run, folder: Path | None) -> None:
    """What a person reads."""
    if done.explanations:
        _print_explanations(done)
    else:
        click.echo("the model answers; nothing can be explained of it yet")
        for output, text in _answer(done).items():
            click.echo(f"  {output}  {text}")
    listed = done.coverage.blocked.values() if done.coverage is not None else ()
    for method, reason in done.failed.items():
        if reason not in listed:
            click.echo(f"{method:<18} not possible: {reason}")
    if done.coverage is not None:
        click.echo(done.coverage.text())
    for note in dict.fromkeys((*done.loaded.notes, *done.notes)):
        click.echo(f"note: {note}", err=True)
    shown = {k: v for k, v in {**done.subject.seconds, **done.seconds}.items() if v >= 0.005}
    click.echo("time: " + ", ".join(f"{name} {value:.2f} s" for name, value in shown.items()))
    if folder is not None:
        click.echo(f"wrote {folder}/report.html, grid.png, heat maps, overlays, arrays, manifest.json")


def _answer(done: Run) -> dict[str, str]:
    """The model's outputs on the input, in brief."""
    found = done.subject.forward(done.loaded.feeds)
    return {
        name: f"{np.asarray(v).dtype}{list(np.shape(v))} {' '.join(str(v).split())[:80]}" for name, v in found.items()
    }


def _print_explanations(done: Run) -> None:
    first = done.explanations[0]
    files = [str(file) for file in done.loaded.files]
    for sample in range(first.samples):
        name = files[sample] if sample < len(files) else f"sample {sample}"
        if first.samples > 1 or files:
            click.secho(name, bold=True)
        for entry in first.top(sample, 5 if first.samples == 1 else 1):
            chance = "" if entry.probability is None else f"  p {entry.probability:.3f}"
            click.echo(f"  {entry.index:>5}  {entry.score:10.4f}{chance}  {entry.name}")
    for e in done.explanations:
        for target, sample, row in e.rows():
            where = e.where(row)
            score = float(np.atleast_1d(target.score)[min(sample, np.size(target.score) - 1)])
            parts = ", ".join(f"{name} {value:.4g}" for name, value in where.items())
            of = f" of sample {sample}" if e.samples > 1 else ""
            asked = target.names[sample] if len(target.names) > sample else target.name
            click.echo(f"{e.method.name:<18} {asked}{of}: score {score:.4g}; relevance sums to: {parts}")
