"""Options that several commands share, and what they turn into."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast
from zipfile import BadZipFile

import click
import numpy as np

from onnxplain.cli.command import refuse_idle
from onnxplain.compile import Request
from onnxplain.errors import InputError, UsageError
from onnxplain.explainer import Explainer
from onnxplain.inputs import ModelSettings
from onnxplain.inputs.background import ASK_FOR_IT
from onnxplain.methods import METHODS, Looped
from onnxplain.recipes import Recipe, named
from onnxplain.sources import ResolvedModel, resolve_model
from onnxplain.subject import Subject

Command = TypeVar("Command", bound=Callable[..., Any])


def _all(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_recipe_flags = _all(
    click.option(
        "--base", metavar="RECIPE",
        help="What a looped method runs, such as gradient, lrp or lrp-epsilon; --composite, --rule and --form are its.",
    ),
    click.option(
        "--option", "options", multiple=True, metavar="NAME=VALUE",
        help="Option of the method, such as steps=100 (see `onnxplain methods`); repeatable.",
    ),
    click.option("--composite", metavar="NAME", help="Which rule where, for lrp and clrp (see `onnxplain methods`)."),
    click.option(
        "--rule", "rules", multiple=True, metavar="WHERE=RULE",
        help="type:Conv=…, name:fc*=…, first=…, last=…; the first match wins.",
    ),
    click.option("--form", type=click.Choice(["paper", "code"]), help="By the paper (default), or as its code has it."),
    click.option(
        "--recipe", "recipe_file", type=click.Path(path_type=Path), help="TOML file: method, its options, base."
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
machine_options = _all(
    click.option("--provider", type=click.Choice(["auto", "cuda", "cpu"]), default="auto", show_default=True),
    click.option(
        "--threads", type=click.IntRange(0), default=0, help="Threads inside an op; 0 leaves it to onnxruntime."
    ),
)
background_option = click.option(
    "--background", "background", multiple=True, metavar="FILE",
    help="Rows of data that methods compare with (--option baseline=background); default: model.toml's.",
)  # fmt: skip
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


@dataclass(frozen=True)
class RecipeWords:
    """What a command line says of a recipe besides its method, as `recipe_options` hands it over."""

    base: str | None = None
    options: tuple[str, ...] = ()
    composite: str | None = None
    rules: tuple[str, ...] = ()
    form: str | None = None
    recipe_file: Path | None = None

    def read(self, methods: Sequence[str]) -> Recipe | None:
        """The recipe of `--recipe`, which stands alone."""
        if self.recipe_file is None:
            return None
        if methods or replace(self, recipe_file=None) != RecipeWords():
            raise UsageError("--recipe stands alone: put method, base, composite, rules and form into the file.")
        return Recipe.read(self.recipe_file)

    def given(self) -> dict[str, Any]:
        """Options by name, those that were said."""
        found: dict[str, Any] = {}
        for text in self.options:
            name, equals, value = text.partition("=")
            name = name.strip()
            if not equals or not name:
                raise UsageError(f"--option {text}: write NAME=VALUE, as in steps=100.")
            if name in found:
                raise UsageError(f"--option {name} is given twice.")
            found[name] = value.strip()
        for name, word in (("composite", self.composite), ("rules", self.rules), ("form", self.form)):
            if word and name in found:
                raise UsageError(f"--option {name} and {FLAGS[name]} say the same; give one.")
            if word:
                found[name] = word
        return found

    def tables(self, names: Sequence[str], defaults: Mapping[str, Any] | None = None) -> dict[str, dict[str, Any]]:
        """A recipe's table for each method: every option goes to those that take it, to an only one in any case.

        defaults: the model's own recipe, which its method's options are laid over.

        A looped method hands on what its base takes. A method that is not known here is a newer server's, and takes
        all. Raises UsageError for an option that none takes.
        """
        found: dict[str, dict[str, Any]] = {name: _table(name) for name in names}
        for name, table in found.items():
            if "composite" in self.given() and "composite" in {**table, **table.get("base", {})}:
                raise UsageError(f"--composite: {name} names its composite already; give one of the two.")
        unknown = [name for name, table in found.items() if table["method"] not in METHODS]
        bases = [name for name, table in found.items() if _looped(table["method"])] + unknown
        if self.base is not None:
            if (both := next((name for name in bases if "base" in found[name]), None)) is not None:
                raise UsageError(f"--base {self.base}: {both} names its base already; give one of the two.")
            for name in bases or (list(found) if len(found) == 1 else []):
                found[name]["base"] = named(self.base).content()
            if not bases and len(found) > 1:
                raise UsageError(f"--base says nothing to {' and '.join(found)}; see `onnxplain methods`.")
        for option, value in self.given().items():
            takers = [place for name in found if (place := _place(found[name], option, defaults or {})) is not None]
            if not takers and len(found) > 1:
                flag = FLAGS.get(option, f"--option {option}")
                raise UsageError(f"{flag} says nothing to {' and '.join(found)}; see `onnxplain methods`.")
            for place in takers or found.values():
                place[option] = value
        return found


def recipe_options(command: Command) -> Command:
    """Give a command the options of a recipe; it gets them as one argument, `words`."""

    @wraps(command)
    def with_words(*args: Any, **values: Any) -> Any:
        words = RecipeWords(**{field.name: values.pop(field.name) for field in fields(RecipeWords)})
        return command(*args, words=words, **values)

    return _recipe_flags(with_words)  # type: ignore[return-value]


def _table(name: str) -> dict[str, Any]:
    """The table of a method, or of a recipe's name such as lrp-epsilon, with what that says and no more."""
    if "-" not in name or name.partition("-")[0] not in METHODS:
        return {"method": name}
    method, _, rest = name.partition("-")
    if named(name).base is not None:
        return {"method": method, "base": _table(rest)}
    return {"method": method, "composite": rest}


def _looped(method: str) -> bool:
    return method in METHODS and METHODS[method].family == "looped"


FLAGS = {"composite": "--composite", "rules": "--rule", "form": "--form"}


def _place(table: dict[str, Any], option: str, defaults: Mapping[str, Any]) -> dict[str, Any] | None:
    """Where an option belongs in a recipe's table: to the method, to its base, or nowhere."""
    name = table["method"]
    if name not in METHODS or option in METHODS[name].options:
        return table
    entry = METHODS[name]
    if not isinstance(entry, Looped) or not entry.base:
        return None
    own = defaults.get("base") if defaults.get("method") == name else None
    base: dict[str, Any] = table.get("base") or own or named(entry.base).content()
    if base["method"] in METHODS and option not in METHODS[base["method"]].options:
        return None
    return cast("dict[str, Any]", table.setdefault("base", base))


def recipes(
    methods: Sequence[str], words: RecipeWords, settings: ModelSettings | None, fallback: Sequence[str]
) -> list[Recipe]:
    """The recipes a command line asks for: `--recipe`, else options, over the model's defaults."""
    if (recipe := words.read(methods)) is not None:
        return [recipe]
    for name in methods:
        named(name) if "-" in name else METHODS[name]  # says which are near where there is none
    defaults = Recipe.of(settings.defaults, "[defaults]") if settings and settings.defaults else None
    names = list(methods) or ([defaults.method] if defaults and not fallback else list(fallback)) or ["lrp"]
    found = []
    for name, table in words.tables(names, defaults.content() if defaults else None).items():
        below = defaults.content() if defaults and defaults.method == name else {}
        if "rules" in table and "rules" in below:
            table["rules"] = (*table["rules"], *below["rules"])
        found.append(Recipe.of({**below, **table}, "the options"))
    return found


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


def refuse_idle_background(wanted: Sequence[Recipe]) -> None:
    """Raise UsageError for a --background that no recipe reads."""
    if all(recipe.background == "none" for recipe in wanted):
        refuse_idle(["background"], f"no method here reads it ({', '.join(r.method for r in wanted)}); {ASK_FOR_IT}.")


def explainer_of(subject: Subject, recipe: Recipe, **more: Any) -> Explainer:
    """An explainer of a subject by a recipe."""
    return Explainer(subject, recipe, **more)
