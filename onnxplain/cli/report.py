"""What `run` and `explain` say: a line while they work, then the result for a person or for a program."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from onnxplain.invocation import Invocation


def progress_line(quiet: bool) -> Progress:
    """A progress line on the terminal, nothing anywhere else."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=quiet or not sys.stderr.isatty())


def tell(done: Invocation, folder: Path | None, as_json: bool, answer: Mapping[str, str]) -> None:
    """Print the result. answer: the model's outputs in brief, where there are no explanations."""
    if as_json:
        click.echo(json.dumps(_summary(done, folder, answer), indent=2, ensure_ascii=False))
    else:
        _print(done, folder, answer)


def _summary(done: Invocation, folder: Path | None, answer: Mapping[str, str]) -> dict[str, Any]:
    """What `--json` prints."""
    first = done.explanations[0] if done.explanations else None
    return {
        "model": done.where,
        "sha256": done.sha256,
        "explained": list(done.explained),
        "classes": []
        if first is None
        else [
            [{"index": c.index, "name": c.name, "score": c.score, "probability": c.probability} for c in first.top(n)]
            for n in range(first.samples)
        ],
        "outputs": dict(answer),
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
        "seconds": done.seconds,
        "folder": None if folder is None else str(folder),
    }


def _print(done: Invocation, folder: Path | None, answer: Mapping[str, str]) -> None:
    """What a person reads."""
    if done.explanations:
        _print_explanations(done)
    else:
        advice = "" if done.coverage is None else done.coverage.without_derivative
        hint = f"explain it by --method {advice}" if advice else "nothing can be explained of it yet"
        click.echo(f"the model answers; {hint}")
        for output, text in answer.items():
            click.echo(f"  {output}  {text}")
    listed = done.coverage.blocked.values() if done.coverage is not None else ()
    for method, reason in done.failed.items():
        if reason not in listed:
            click.echo(f"{method:<18} not possible: {reason}")
    if done.coverage is not None:
        click.echo(done.coverage.text())
    for note in dict.fromkeys((*done.loaded.notes, *done.notes)):
        click.echo(f"note: {note}", err=True)
    shown = {k: v for k, v in done.seconds.items() if v >= 0.005}
    click.echo("time: " + ", ".join(f"{name} {value:.2f} s" for name, value in shown.items()))
    if folder is not None:
        click.echo(f"wrote {folder}/report.html, grid.png, heat maps, overlays, arrays, manifest.json")


def _print_explanations(done: Invocation) -> None:
    first = done.explanations[0]
    files = [str(file) for file in done.loaded.files]
    for sample in range(first.samples):
        name = files[sample] if sample < len(files) else f"sample {sample}"
        top = first.top(sample, 5 if first.samples == 1 else 1)
        if top and (first.samples > 1 or files):
            click.secho(name, bold=True)
        for entry in top:
            chance = "" if entry.probability is None else f"  p {entry.probability:.3f}"
            click.echo(f"  {entry.index:>5}  {entry.score:10.4f}{chance}  {entry.name}")
    width = max(18, *map(len, done.labels))
    for e, label in zip(done.explanations, done.labels, strict=True):
        doubt = "" if not e.standard_error else f"; standard error at most {e.standard_error:.2g} of the largest"
        for target, sample, row in e.rows():
            where = e.where(row)
            score = float(np.atleast_1d(target.score)[min(sample, np.size(target.score) - 1)])
            parts = "; relevance sums to: " + ", ".join(f"{name} {value:.4g}" for name, value in where.items())
            parts = parts if e.method.sums else ""
            of = f" of sample {sample}" if e.samples > 1 else ""
            asked = target.names[sample] if len(target.names) > sample else target.name
            click.echo(f"{label:<{width}} {asked}{of}: score {score:.4g}{parts}{doubt}")
