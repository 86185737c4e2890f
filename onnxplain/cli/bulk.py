"""`onnxplain run --engine`: data sets of any size, into a folder of partitions."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from onnxplain import render
from onnxplain.bulk import EXECUTORS, BulkJob, Summary, explain_all, plan
from onnxplain.bulk.partition import FORMATS, require
from onnxplain.bulk.ray_data import require_ray
from onnxplain.bulk.run import rows_per_partition
from onnxplain.cli.command import refuse_idle
from onnxplain.cli.options import subject_of, verification_input
from onnxplain.cli.recipe_words import RecipeWords, recipes, refuse_idle_background
from onnxplain.cli.report import progress_line
from onnxplain.compile import Request
from onnxplain.errors import InputError, UsageError
from onnxplain.inputs import Preprocessing
from onnxplain.inputs.pictures import SUFFIXES as PICTURES

Command = TypeVar("Command", bound=Callable[..., Any])
BATCH = 8  # rows of one run
PREPARATION = ("preprocess", "layout", "mean", "std", "scale")
OF_PICTURES = ("palette", "box", "box_threshold", "keep", "ledger", "random_seed")  # what partitions have no place for


@dataclass(frozen=True)
class BulkWords:
    """What a command line says of a bulk run; engine None: there is none."""

    engine: str | None = None
    workers: int = 0
    batch_size: int = BATCH
    partition_rows: int = 0
    format: str = "npz"
    resume: bool = False

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Of the options that go with --engine."""
        return ("workers", "batch_size", "partition_rows", "format", "resume")


def bulk_options(command: Command) -> Command:
    """Give a command the options of a bulk run; it gets them as one argument, `bulk`."""

    @wraps(command)
    def with_words(*args: Any, **values: Any) -> Any:
        words = BulkWords(**{name: values.pop(name) for name in ("engine", *BulkWords.names())})
        return command(*args, bulk=words, **values)

    options = (
        click.option(
            "--engine", type=click.Choice(list(EXECUTORS)),
            help="Bulk run of folders and tables of any size: here, or on Ray. Writes partitions instead of pictures.",
        ),
        click.option(
            "--workers", type=click.IntRange(0), default=0,
            help="With --engine: explainers at work; 0: as many as there are CPUs for.",
        ),
        click.option("--batch-size", type=click.IntRange(1), default=BATCH, help="With --engine: rows of one run."),
        click.option(
            "--partition-rows", type=click.IntRange(0), default=0,
            help="With --engine: rows of one partition; 0: some 32 MiB of them.",
        ),
        click.option("--format", type=click.Choice(list(FORMATS)), default="npz", help="With --engine: of partitions."),
        click.option("--resume", is_flag=True, help="With --engine: go on with what --out was begun with."),
    )  # fmt: skip
    for option in reversed(options):
        with_words = option(with_words)
    return with_words  # type: ignore[return-value]


def run_bulk(
    model: str, files: Sequence[str], bulk: BulkWords, targets: Sequence[str], methods: Sequence[str],
    words: RecipeWords, request: Request, picture: Sequence[Any], provider: str, threads: int,
    sample: Path | None, shapes: Sequence[str], out: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Explain every row of the files. picture: the words of `Preprocessing.of`."""
    assert bulk.engine is not None
    refuse_idle(["memory"], "a bulk run (--engine) takes --batch-size rows at a time, by each of its --workers.")
    refuse_idle(OF_PICTURES, "a bulk run (--engine) draws nothing and writes relevances and scores alone.")
    if not files:
        raise UsageError("--engine explains files, and none is given: name files, folders or patterns.")
    require(bulk.format)
    if bulk.engine == "ray":
        require_ray()
    with progress_line(as_json) as progress:
        step = progress.add_task("loading the model")
        threads = threads or 1  # results depend in the last digits on it; workers use the other CPUs
        resolved, subject = subject_of(model, request, provider, threads, sample, shapes)
        if len(subject.resolved.explained) != 1:
            raise UsageError("run explains one tensor at a time; use compile for several (--explain once).")
        pictures = Preprocessing.of(resolved.settings, *picture)
        wanted = recipes(methods, words, resolved.settings, [])
        if len(wanted) != 1:
            raise UsageError("a bulk run (--engine) is of one recipe: give --method once, and run again for others.")
        refuse_idle_background(wanted)
        background = pictures.background(subject.inputs) if wanted[0].background != "none" else None
        progress.update(step, description="looking at the files")
        rows = bulk.partition_rows or rows_per_partition(subject.inputs, bulk.batch_size)
        found = plan(files, subject.inputs, pictures.columns(subject.inputs), rows)
        if not any(piece.file.suffix in PICTURES for block in found.blocks for piece in block.pieces):
            refuse_idle(PREPARATION, "it says how a picture becomes an input, and no file is a picture.")
        arrays, sizes = verification_input(sample, shapes)
        job = BulkJob(
            resolved.path.absolute(), subject.source.sha256, wanted[0].content(), tuple(targets) or ("predicted",),
            replace(subject.request), pictures, found.columns, provider, threads, bulk.batch_size, bulk.format,
            arrays, sizes, background,
        )  # fmt: skip
        folder = out or Path("explanations") / render.safe_name(resolved.name)
        total = len(found.blocks)

        def tell(done: int, of: int) -> None:
            progress.update(step, description=f"explaining by {wanted[0].label}: {done} of {of} partitions")

        tell(0, total)
        explainer = job.explainer(subject)
        summary = explain_all(job, explainer, found, folder, bulk.engine, bulk.workers, bulk.resume, tell)
    _tell(summary, folder, as_json, [*found.notes, *summary.notes])


def _tell(summary: Summary, folder: Path, as_json: bool, notes: Sequence[str]) -> None:
    if as_json:
        said = {"out": str(folder), **vars(summary), "notes": list(notes)}
        click.echo(json.dumps(said, indent=2, ensure_ascii=False))
    else:
        for note in notes:
            click.echo(f"note: {note}", err=True)
        good, before = summary.rows - summary.errors, f", {summary.resumed} from before" if summary.resumed else ""
        click.echo(f"{good} of {summary.rows} rows explained, in {summary.partitions} partitions{before}: {folder}")
    if summary.errors:
        raise InputError(
            f"{summary.errors} of {summary.rows} rows have no explanation (their `error` says why); the first: "
            f"{summary.first_errors[0]}"
        )
