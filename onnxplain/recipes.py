"""A recipe: a serialisable choice of method, options and base, with a digest."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from onnxplain.compile.assemble import Propagation
from onnxplain.compile.provenance import digest
from onnxplain.compile.reference_forward import FED
from onnxplain.composites import COMPOSITES, Bounds, Composite, parse_assignments, parse_composite
from onnxplain.errors import InputError, UnknownName, UsageError
from onnxplain.methods.background import BACKGROUND_WORDS
from onnxplain.methods.options import Options, resolved
from onnxplain.methods.registry import METHODS, Looped, Need, OnePass, one_pass
from onnxplain.options import call_text, toml_text
from onnxplain.rules.finishes import FINISHES
from onnxplain.rules.starts import STARTS


@dataclass(frozen=True)
class Recipe:
    """What is to be done, by names and numbers only. Every option has its value, given or not.

    options: of the method, see `onnxplain methods`. base: the one-pass recipe a looped method runs; None: its own
    choice. A method that is not known here (a newer server's) keeps what it is given. Raises UnknownName, UsageError.
    """

    method: str = "lrp"
    options: Mapping[str, Any] = field(default_factory=Options)
    base: Recipe | None = None

    def __post_init__(self) -> None:
        if isinstance(self.base, str):
            object.__setattr__(self, "base", named(self.base))
        if self.method not in METHODS:
            object.__setattr__(self, "options", Options(self.options))
            return
        entry = METHODS[self.method]
        for name in self.options:
            takers = [other.name for other in METHODS.values() if name in other.options]
            if takers and name not in entry.options:
                raise UsageError(f"method {self.method} takes no {name}; that is for {', '.join(takers)}.")
        options = resolved(self.method, entry.options, self.options)
        if "composite" in options:
            options = Options({**options, "composite": composite_text(str(options["composite"]))})
        object.__setattr__(self, "options", options)
        if not isinstance(entry, Looped) or not entry.base:
            if self.base is not None:
                raise UsageError(f"method {self.method} takes no base: it is {entry.family}.")
        else:
            base = named(entry.base) if self.base is None else self.base
            why = f"the base of {self.method} is a one-pass method"
            base = _compared(entry, base, why)
            if entry.maps and base.method != entry.base:
                raise UsageError(f"method {self.method} is about a feature map, and runs {entry.base} on it, no other.")
            if base.method in METHODS and one_pass(base.method, why).maps and not entry.maps:
                raise UsageError(
                    f"method {self.method} moves the inputs and needs a base that attributes to them; "
                    f"{base.method} attributes to a feature map."
                )
            object.__setattr__(self, "base", base)

    @classmethod
    def asked(cls, method: str | Recipe, base: str | Recipe | None = None, **options: Any) -> Recipe:
        """From Python's words: None is not given, a recipe is taken as it is."""
        given = {name: value for name, value in options.items() if value is not None and not _empty(value)}
        if isinstance(method, Recipe):
            if given or base is not None:
                raise UsageError(
                    f"the recipe says all: {', '.join([*given, *(['base'] if base else [])])} is beside it."
                )
            return method
        METHODS[method]  # says which are near where there is none
        return cls(method, given, named(base) if isinstance(base, str) else base)

    @classmethod
    def read(cls, path: Path) -> Recipe:
        """From a TOML file with the keys method, base, and the method's options. Raises InputError, UnknownName."""
        try:
            content = tomllib.loads(path.read_text())
        except OSError as error:
            raise InputError(f"cannot read the recipe {path}: {error.strerror}.") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{path} is not TOML: {error}.") from error
        if isinstance(content.get("recipe"), dict):
            for key in content:
                if key != "recipe":
                    raise UnknownName(f"key of {path} beside [recipe]", key, ["recipe"])
            content = content["recipe"]
        return cls.of(content, str(path))

    @classmethod
    def of(cls, content: Mapping[str, Any], where: str = "the recipe") -> Recipe:
        """From a table of the same keys; base is a recipe's name or a table. where: for messages."""
        method, base = content.get("method", "lrp"), content.get("base")
        if not isinstance(method, str):
            raise UsageError(f"{where}: method is a name, not {method!r}.")
        options = {name: value for name, value in content.items() if name not in ("method", "base")}
        if method in METHODS:
            known = METHODS[method].options
            for name in options:
                if name not in known and not any(name in entry.options for entry in METHODS.values()):
                    raise UnknownName(f"key of {where}", name, ["method", "base", *known])
        if isinstance(base, str):
            base = named(base)
        elif isinstance(base, Mapping):
            base = cls.of(base, f"{where}, base")
        elif base is not None:
            raise UsageError(f"{where}: base is the name of a recipe or a table, not {base!r}.")
        return cls(method, options, base)

    def content(self) -> dict[str, Any]:
        """The table that `of` takes: plain names, numbers and lists, every option with its value."""
        plain = {name: list(v) if isinstance(v, tuple) else v for name, v in self.options.items()}
        return {"method": self.method, **plain, **({} if self.base is None else {"base": self.base.content()})}

    def toml(self) -> str:
        """The recipe as a TOML file that `read` takes."""
        return toml_text(self.content())

    @property
    def one_pass(self) -> Recipe:
        """What is compiled: the recipe itself, or the base that its method runs. UsageError where there is none."""
        if self.base is None:
            self.require_graph()
        return self if self.base is None else self.base

    @property
    def opened(self) -> Recipe:
        """What is opened to answer for it, by all recipes that differ only in how they look at it.

        Of a looped one its base, which is compiled; of a forward-only one its method, of which nothing is; else itself.
        """
        if self.base is not None:
            return self.base
        return Recipe(self.method) if self.looped else self

    def require_graph(self) -> None:
        """Raise UsageError where no one graph answers for the recipe: for what compiles, exports or serves a graph."""
        if not self.looped:
            return
        if self.base is None:
            raise UsageError(f"method {self.method} is forward-only: it runs the model itself, and has no graph.")
        base = self.base.title
        raise UsageError(
            f"method {self.method} has no graph of its own: it runs that of {base} many times. Compile or export "
            f"{base}, or explain by `onnxplain run` or the service."
        )

    @property
    def looped(self) -> bool:
        """Whether the method runs its graph, or the model, many times: looped or forward-only."""
        return isinstance(METHODS.get(self.method), Looped)

    @property
    def background(self) -> Need:
        """Whether it takes rows of data to compare with: as an option says, else its method."""
        if any(value in BACKGROUND_WORDS for value in self.options.values() if isinstance(value, str)):
            return "required"
        entry = METHODS.get(self.method)
        return entry.background if isinstance(entry, Looped) else "none"

    @property
    def title(self) -> str:
        """The method, with the composite or the base where these are not the method's own."""
        entry = METHODS[self.method]
        if isinstance(entry, Looped):
            own = self.base is None or self.base == _compared(entry, named(entry.base), "")
            return self.method if own or self.base is None else f"{self.method}-{self.base.title}"
        composite = self.options.get("composite", entry.composite if isinstance(entry, OnePass) else "")
        own = isinstance(entry, OnePass) and composite == entry.composite
        return self.method if own else f"{self.method}-{composite}"

    @property
    def label(self) -> str:
        """The method, with what it runs where that is not its own choice: for titles of pictures and files."""
        return self.method if self.base is None or self.method not in METHODS else self.title

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that name the recipe; the same however much of it was left to defaults."""
        return digest(self.content())

    @property
    def composite(self) -> str:
        """Name of the composite of what is compiled."""
        found = self.one_pass
        own = one_pass(found.method, "composites are of one-pass methods").composite
        return str(found.options.get("composite", own))

    @property
    def without_bounds(self) -> str:
        """What the composite does where the input's bounds are not known, in a sentence; "" where it wants none."""
        rules = self.one_pass.options.get("rules", ())
        instead = parse_composite(self.composite)[0].without_bounds
        if not instead or any(rule.partition("=")[0].strip() == "first" for rule in rules):
            return ""
        return (
            f"composite {self.composite}: the input's bounds are not known, so box is not possible and there is "
            f"{instead} (give --rule first=box(low=…,high=…), or bounds in model.toml)"
        )

    def check(self) -> None:
        """Raise UnknownName or UsageError for names and options that do not go together."""
        if METHODS[self.method].family != "forward-only":
            self.propagation()

    def propagation(self, bounds: Bounds = None) -> Propagation:
        """What is compiled: composite, start, finish. bounds: of the input, where they are known."""
        found = self.one_pass
        entry = one_pass(found.method, "a graph is compiled of a one-pass method")
        form = entry.form(found.options.get("form"))
        base, base_options = parse_composite(self.composite)
        composite: Composite = parse_assignments(found.options.get("rules", ())) | base.make(bounds, **base_options)
        if composite.differences and not entry.reference:
            takers = [m.name for m in METHODS.values() if isinstance(m, OnePass) and m.reference]
            raise UsageError(
                f"composite {self.composite} follows the difference from a baseline: use {' or '.join(takers)}."
            )
        return Propagation(
            found.method,
            composite,
            STARTS[form.start],
            FINISHES[form.finish],
            form.passes,
            found.content(),
            found.options.get("baseline"),
        )


@cache
def recipe_names() -> tuple[str, ...]:
    """Every recipe that has a name of its own.

    Each method, each relevance method with each composite, each looped method over each one-pass method.
    """
    one_pass_methods = [m for m in METHODS.values() if isinstance(m, OnePass)]
    relevant = [name for name, entry in COMPOSITES.items() if entry.make(None).relevance]
    pairs = [f"{m.name}-{c}" for m in one_pass_methods if m.relevance for c in relevant if c != m.composite]
    loops = [m for m in METHODS.values() if isinstance(m, Looped) and m.base and not m.maps]
    bases = [base for base in one_pass_methods if not base.maps]
    over = [
        f"{m.name}-{base.name}"
        for m in loops
        for base in bases
        if base.name != m.base and (base.reference or not m.references)
    ]
    return (*METHODS, *pairs, *over)


def named(name: str) -> Recipe:
    """The recipe of a name: `gradient`, `lrp-epsilon_plus_flat`, `smooth_grad-lrp-epsilon`. Raises UnknownName."""
    method, _, rest = name.partition("-")
    entry = METHODS.get(method)
    if isinstance(entry, Looped) and entry.base and rest:
        return Recipe(method, base=named(rest))
    if entry is None or (rest and "composite" not in entry.options):
        raise UnknownName("recipe", name, recipe_names())
    if not rest:
        return Recipe(method)
    if rest.partition("(")[0] not in COMPOSITES or not parse_composite(rest)[0].make(None).relevance:
        raise UnknownName("recipe", name, recipe_names())
    return Recipe(method, {"composite": rest})


def _compared(method: Looped, base: Recipe, why: str) -> Recipe:
    """The base as this method runs it: its baseline is told at each look, or said once. Raises UsageError."""
    if base.method not in METHODS:
        return base
    if not method.references:
        if base.options.get("baseline") == FED:
            raise UsageError(f"method {method.name} feeds no references: say the baseline of its base {base.method}.")
        return base
    if not one_pass(base.method, why).reference:
        takers = [m.name for m in METHODS.values() if isinstance(m, OnePass) and m.reference]
        raise UsageError(
            f"method {method.name} tells its base what to compare with, and {base.method} compares with nothing: "
            f"give {' or '.join(takers)}."
        )
    return Recipe(base.method, {**base.options, "baseline": FED})


def composite_text(text: str) -> str:
    """A composite as it is written, its options only where they are not the defaults.

    One that is not known here (a newer server's) is left as it is; what compiles it says so.
    """
    if text.partition("(")[0].strip() not in COMPOSITES:
        return text
    entry, options = parse_composite(text)
    return call_text(entry.name, {name: v for name, v in options.items() if v != entry.options[name]})


def _empty(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and not value
