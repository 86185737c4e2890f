"""Options that several commands share, and what they turn into."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar
from zipfile import BadZipFile

import click
import numpy as np

from onnxplain.compile import Request
from onnxplain.errors import InputError, UsageError
from onnxplain.explainer import Explainer
from onnxplain.inputs import ModelSettings
from onnxplain.methods import METHODS
from onnxplain.recipes import Recipe
from onnxplain.sources import Resolved
from onnxplain.sources import resolve as resolve_model
from onnxplain.subject import Subject

Command = TypeVar("Command", bound=Callable[..., Any])


def _all(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


recipe_options = _all(
    click.option("--composite", metavar="NAME", help="Which rule where, for lrp and clrp (see `onnxplain methods`)."),
    click.option(
        "--rule", "rules", multiple=True, metavar="WHERE=RULE",
        help="type:Conv=…, name:fc*=…, first=…, last=…; the first match wins.",
    ),
    click.option("--form", type=click.Choice(["paper", "code"]), help="CLRP by its paper (default) or by its code."),
    click.option(
        "--recipe", "recipe_file", type=click.Path(path_type=Path), help="TOML file: method, composite, rules, form."
    ),
)  # fmt: skip
request_options = _all(
    click.option("--explain", multiple=True, metavar="TENSOR", help="Tensor to explain; '*' for every float output."),
    click.option(
        "--head",
        type=click.Choice(["cut", "keep"]),
        default=None,
        help="Step back over a final softmax (default), or not.",
    ),
    click.option(
        "--attribute-to", multiple=True, metavar="TENSOR", help="Tensor to attribute to (default: the inputs)."
    ),
    click.option("--keep", multiple=True, metavar="TENSOR", help="Forward tensor to return as well."),
    click.option("--ledger", is_flag=True, help="Book where relevance went, node by node."),
)
machine_options = _all(
    click.option("--provider", type=click.Choice(["auto", "cuda", "cpu"]), default="auto", show_default=True),
    click.option(
        "--threads", type=click.IntRange(0), default=0, help="Threads inside an op; 0 leaves it to onnxruntime."
    ),
)
sample_options = _all(
    click.option(
        "--sample", metavar="FILE", type=click.Path(path_type=Path),
        help="Input to verify on, where random input cannot run: npz with arrays by name, or npy for a single input.",
    ),
    click.option(
        "--shape", "shapes", multiple=True, metavar="NAME=N,N,…",
        help="Sizes of the random input to verify on, e.g. x=1,3,224,224; repeatable.",
    ),
)  # fmt: skip
picture_options = _all(
    click.option("--preprocess", metavar="NAME", help="imagenet, imagenet_bgr_caffe, unit, symmetric or none."),
    click.option("--layout", metavar="NCHW", help="Axes of the picture input."),
    click.option("--mean", metavar="A,B,C", help="Subtracted per channel."),
    click.option("--std", metavar="A,B,C", help="Divided by per channel."),
    click.option("--scale", metavar="X", help="Multiplies pixel values 0..255 first, e.g. 1/255."),
    click.option("--labels", metavar="FILE", help="Class names: a txt or json file, or 'imagenet'."),
)


def recipes(
    methods: Sequence[str],
    composite: str | None,
    rules: Sequence[str],
    form: str | None,
    recipe_file: Path | None,
    settings: ModelSettings | None,
    fallback: Sequence[str],
) -> list[Recipe]:
    """The recipes a command line asks for: `--recipe`, else options, over the model's defaults."""
    if recipe_file is not None:
        if methods or composite or rules or form:
            raise UsageError("--recipe stands alone: put method, composite, rules and form into the file.")
        return [Recipe.read(recipe_file)]
    for name in methods:
        METHODS[name]  # says which are near where there is none
    defaults = Recipe.of(settings.defaults, "[defaults]") if settings and settings.defaults else None
    names = list(methods) or ([defaults.method] if defaults and not fallback else list(fallback)) or ["lrp"]
    found = []
    for name, given in shared(names, composite, rules, form).items():
        base = defaults if defaults and defaults.method == name else Recipe(name)
        found.append(
            replace(
                base,
                composite=given.composite or base.composite,
                rules=given.rules + base.rules,
                form=given.form or base.form,
            )
        )
    return found


def shared(names: Sequence[str], composite: str | None, rules: Sequence[str], form: str | None) -> dict[str, Recipe]:
    """What of the options goes to which of several methods: those that take it; to an only one in any case.

    A method that is not known here is a newer server's, and takes all. Raises UsageError for an option that none takes.
    """
    only = len(set(names)) == 1
    relevance = {n for n in names if only or n not in METHODS or METHODS[n].form().start != "seed"}
    forms = {n for n in names if only or n not in METHODS or len(METHODS[n].forms) > 1}
    for option, given, taken in (
        ("--composite", composite, relevance),
        ("--rule", rules, relevance),
        ("--form", form, forms),
    ):
        if given and not taken:
            raise UsageError(f"{option} says nothing to {' and '.join(dict.fromkeys(names))}; see `onnxplain methods`.")
    return {
        n: Recipe(
            n,
            composite if n in relevance else None,
            tuple(rules) if n in relevance else (),
            form if n in forms else None,
        )
        for n in dict.fromkeys(names)
    }


def subject_of(
    model: str,
    request: Request,
    provider: str = "auto",
    threads: int = 0,
    sample: Path | None = None,
    shapes: Sequence[str] = (),
) -> tuple[Resolved, Subject]:
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
    return Explainer(subject, recipe.method, composite=recipe.composite, rules=recipe.rules, form=recipe.form, **more)
