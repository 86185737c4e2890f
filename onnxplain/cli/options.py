"""Options that several commands share, and what they turn into."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar
from zipfile import BadZipFile

import click
import numpy as np

from onnxplain.cli.command import refuse_idle
from onnxplain.compile import Request
from onnxplain.errors import InputError, UsageError
from onnxplain.explainer import Explainer
from onnxplain.localisation import THRESHOLD
from onnxplain.recipes import Recipe
from onnxplain.sources import ResolvedModel, resolve_model
from onnxplain.subject import Subject

Command = TypeVar("Command", bound=Callable[..., Any])


def all_of(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """A decorator that gives a command several options."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


request_options = all_of(
    click.option("--explain", multiple=True, metavar="TENSOR", help="Tensor to explain; '*' for every float output."),
    click.option(
        "--head",
        type=click.Choice(["cut", "keep"]),
        default=None,
        help="Step back over a final softmax (default), or not.",
    ),
    click.option(
        "--attribute-to",
        "--layer",
        "attribute_to",
        multiple=True,
        metavar="TENSOR",
        help="Tensor to attribute to (default: the inputs; of a class activation map the last feature map).",
    ),
    click.option("--keep", multiple=True, metavar="TENSOR", help="Forward tensor to return as well."),
    click.option("--ledger", is_flag=True, help="Book where relevance went, node by node."),
)
machine_options = all_of(
    click.option("--provider", type=click.Choice(["auto", "cuda", "cpu"]), default="auto", show_default=True),
    click.option(
        "--threads", type=click.IntRange(0), default=0, help="Threads inside an op; 0 leaves it to onnxruntime."
    ),
)
background_option = click.option(
    "--background", "background", multiple=True, metavar="FILE",
    help="Rows of data that methods compare with (--option baseline=background); default: model.toml's.",
)  # fmt: skip
sample_options = all_of(
    click.option(
        "--sample", metavar="FILE", type=click.Path(path_type=Path),
        help="Input to verify on, where random input cannot run: npz with arrays by name, or npy for a single input.",
    ),
    click.option(
        "--shape", "shapes", multiple=True, metavar="NAME=N,N,…",
        help="Sizes of the random input to verify on, e.g. x=1,3,224,224; repeatable.",
    ),
)  # fmt: skip
picture_options = all_of(
    click.option("--preprocess", metavar="NAME", help="imagenet, imagenet_bgr_caffe, unit, symmetric or none."),
    click.option("--layout", metavar="NCHW", help="Axes of the picture input."),
    click.option("--mean", metavar="A,B,C", help="Subtracted per channel."),
    click.option("--std", metavar="A,B,C", help="Divided by per channel."),
    click.option("--scale", metavar="X", help="Multiplies pixel values 0..255 first, e.g. 1/255."),
    click.option("--labels", metavar="FILE", help="Class names: a txt or json file, or 'imagenet'."),
)


def box_options(command: Command) -> Command:
    """Give a command the options of localisation boxes; it gets them as one argument, `box`: a threshold or None."""

    @wraps(command)
    def with_box(*args: Any, box: bool, box_threshold: float, **values: Any) -> Any:
        if not box:
            refuse_idle(["box_threshold"], "it is the threshold of the boxes that --box draws; give --box too.")
        return command(*args, box=box_threshold if box else None, **values)

    return _box_flags(with_box)  # type: ignore[return-value]


_box_flags = all_of(
    click.option(
        "--box", is_flag=True, help="Localisation box: round the largest connected part of what stands out in a map."
    ),
    click.option(
        "--box-threshold", type=click.FloatRange(0, 1, min_open=True), default=THRESHOLD, show_default=True,
        help="What stands out: this share of the map's maximum, or more.",
    ),
)  # fmt: skip


def subject_of(
    model: str,
    request: Request,
    provider: str = "auto",
    threads: int = 0,
    sample: Path | None = None,
    shapes: Sequence[str] = (),
) -> tuple[ResolvedModel, Subject]:
    """Find, load, normalise and verify the model of a command. sample, shapes: as on the command line."""
    resolved = resolve_model(model)
    if not request.explain and resolved.settings.output.explain:
        request = replace(request, explain=tuple(resolved.settings.output.explain))
    arrays, sizes = verification_input(sample, shapes)
    return resolved, Subject.of(resolved.path, request, provider, threads, sample=arrays, shapes=sizes)


def verification_input(
    sample: Path | None, shapes: Sequence[str]
) -> tuple[np.ndarray | dict[str, np.ndarray] | None, dict[str, tuple[int, ...]]]:
    """What `--sample` and `--shape` say: arrays, sizes of random input."""
    return None if sample is None else _read_sample(sample), dict(_size(text) for text in shapes)


def _read_sample(path: Path) -> np.ndarray | dict[str, np.ndarray]:
    try:
        found = np.load(path, allow_pickle=False)
        return found if isinstance(found, np.ndarray) else {name: found[name] for name in found.files}
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise InputError(f"--sample {path}: not an npz or npy file that can be read ({error}).") from error


def _size(text: str) -> tuple[str, tuple[int, ...]]:
    """x=1,3,224,224 as name and numbers; the name may hold a `=` itself."""
    name, mark, numbers = text.rpartition("=")
    try:
        sizes = tuple(int(number) for number in numbers.split(",")) if numbers else ()
    except ValueError:
        mark = ""
    if not mark or not name or any(size < 0 for size in sizes):
        raise UsageError(f"--shape {text}: give the input's name and whole numbers, as in x=1,3,224,224.")
    return name, sizes


def explainer_of(subject: Subject, recipe: Recipe, **more: Any) -> Explainer:
    """An explainer of a subject by a recipe."""
    return Explainer(subject, recipe, **more)
