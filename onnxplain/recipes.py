"""A recipe: a serialisable choice of method, composite and options, with a digest."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from onnxplain.compile.assemble import Recipe as Passes
from onnxplain.compile.provenance import digest
from onnxplain.composites import COMPOSITES, Bounds, Composite, parse_assignments, parse_composite
from onnxplain.errors import InputError, UnknownName, UsageError
from onnxplain.methods.registry import METHODS, Method
from onnxplain.rules.finishes import FINISHES
from onnxplain.rules.starts import STARTS


@dataclass(frozen=True)
class Recipe:
    """What is to be done, by names only. composite None: the method's own. rules: entries as on the command line."""

    method: str = "lrp"
    composite: str | None = None
    rules: tuple[str, ...] = ()
    form: str | None = None

    @classmethod
    def read(cls, path: Path) -> Recipe:
        """From a TOML file with the keys method, composite, rules, form. Raises InputError, UnknownName."""
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
        """From a table of the same keys."""
        names = [field.name for field in dataclasses.fields(cls)]
        for key in content:
            if key not in names:
                raise UnknownName(f"key of {where}", key, names)
        for key, value in content.items():
            if key != "rules" and not isinstance(value, str):
                raise UsageError(f"{where}: {key} is a name, not {value!r}.")
        rules = content.get("rules", ())
        if isinstance(rules, str) or not isinstance(rules, Sequence) or not all(isinstance(r, str) for r in rules):
            raise UsageError(f"{where}: rules is a list such as ['type:Conv=flat'], not {rules!r}.")
        return cls(**{**content, "rules": tuple(rules)})

    def toml(self) -> str:
        """The recipe as a TOML file that `read` takes."""
        lines = [f"{key} = {_toml(value)}" for key, value in dataclasses.asdict(self).items() if value]
        return "\n".join(lines) + "\n"

    @property
    def title(self) -> str:
        """The method, with the composite where it is not the method's own."""
        own = self.composite in (None, METHODS[self.method].composite)
        return self.method if own else f"{self.method}-{self.composite}"

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that name the recipe."""
        return digest(dataclasses.asdict(self))

    @property
    def without_bounds(self) -> str:
        """What the composite does where the input's bounds are not known, in a sentence; "" where it wants none."""
        name = self.composite or METHODS[self.method].composite
        instead = parse_composite(name)[0].without_bounds
        if not instead or any(rule.partition("=")[0].strip() == "first" for rule in self.rules):
            return ""
        return (
            f"composite {name}: the input's bounds are not known, so box is not possible and there is {instead} "
            "(give --rule first=box(low=…,high=…), or bounds in model.toml)"
        )

    def passes(self, bounds: Bounds = None) -> tuple[Passes, Method]:
        """The composite, start and finish to compile, and the method. bounds: of the input, where they are known."""
        method = METHODS[self.method]
        form = method.form(self.form)
        if self.composite is not None and not _relevance(method) and self.composite != method.composite:
            raise UsageError(f"method {self.method} takes no composite; composites are for lrp, clrp1 and clrp2.")
        if self.rules and not _relevance(method):
            raise UsageError(f"method {self.method} takes no rules; rules are for lrp, clrp1 and clrp2.")
        base, base_options = parse_composite(self.composite or method.composite)
        composite: Composite = parse_assignments(self.rules) | base.make(bounds, **base_options)
        options = {"form": self.form} if self.form else {}
        return Passes(self.method, composite, STARTS[form.start], FINISHES[form.finish], form.passes, options), method


@cache
def recipe_names() -> tuple[str, ...]:
    """Every recipe that has a name of its own: each method, and each relevance method with each composite."""
    relevant = [name for name, entry in COMPOSITES.items() if entry.make(None).relevance]
    pairs = [f"{m.name}-{c}" for m in METHODS.values() if _relevance(m) for c in relevant if c != m.composite]
    return (*METHODS, *pairs)


def named(name: str) -> Recipe:
    """The recipe of a name: `gradient`, `lrp`, `lrp-epsilon_plus_flat`. Raises UnknownName."""
    if name not in recipe_names():
        raise UnknownName("recipe", name, recipe_names())
    method, _, composite = name.partition("-")
    return Recipe(method, composite or None)


def _relevance(method: Method) -> bool:
    return method.form().start != "seed"


def _toml(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'
