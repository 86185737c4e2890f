"""Options of a method: what may be said, checked and converted in one place whoever says it."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from onnxplain.errors import UnknownName, UsageError
from onnxplain.options import LARGEST, value_of

NUMBERS = "a list of numbers"


@dataclass(frozen=True)
class Range:
    """Bounds of a number, both included; None: open. Written `Annotated[int, Range(1)]` in a signature."""

    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if self.low is None:
            return f"at most {self.high}"
        return f"at least {self.low}" if self.high is None else f"from {self.low} to {self.high}"


@dataclass(frozen=True)
class Doc:
    """What an option means that several methods have: written `Annotated[…, Doc("…")]`, once, in its type."""

    text: str


@dataclass(frozen=True)
class Option:
    """One option: its default, the types of value it takes, the words or the range it is limited to, what it means.

    types: of int, float, bool, str, list (of numbers) and texts (of words). none: whether it may be left open (None).
    """

    name: str
    default: Any
    types: tuple[str, ...]
    choices: tuple[str, ...] = ()
    range: Range | None = None
    none: bool = False
    doc: str = ""

    def convert(self, value: Any, method: str) -> Any:
        """A value as the method takes it, from Python, TOML, a message or the text of a command line.

        Raises UsageError for one that it does not take.
        """
        if isinstance(value, (np.ndarray, np.generic)):
            value = value.tolist()  # numpy's numbers are numbers; an array of more axes than one is none of these
        found = _read(value, self.types) if isinstance(value, str) else value
        if isinstance(found, (list, tuple)):
            found = tuple(found)
        if found is None:
            if not self.none:
                raise UsageError(f"method {method}: {self.name} is {self.takes}, not None.")
            return None
        if self.choices and found in self.choices and not isinstance(found, bool):
            return found
        for kind in self.types:
            fit = _fits(found, kind)
            if fit is not None and (self.range is None or _inside(fit, self.range)):
                return fit
        raise UsageError(f"method {method}: {self.name} is {self.takes}, not {value!r}.")

    @property
    def takes(self) -> str:
        """What it takes, in words."""
        words = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a name"}
        words |= {"list": NUMBERS, "texts": "a list of texts"}
        kinds = [words[kind] for kind in self.types]
        limit = f" {self.range}" if self.range is not None else ""
        return " or ".join([*self.choices, *kinds]) + limit


def _inside(value: Any, limits: Range) -> bool:
    numbers = value if isinstance(value, tuple) else (value,)
    return all((limits.low is None or n >= limits.low) and (limits.high is None or n <= limits.high) for n in numbers)


def _fits(value: Any, kind: str) -> Any:
    """The value as one of a kind, None where it is none."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= LARGEST
    if kind == "int":
        return int(value) if number and float(value).is_integer() else None
    if kind == "float":
        return float(value) if number else None
    if kind == "bool":
        return value if isinstance(value, bool) else None
    if kind == "str":
        return value if isinstance(value, str) else None
    if kind == "list":
        fits = isinstance(value, tuple) and value and all(_fits(v, "float") is not None for v in value)
        return tuple(float(v) for v in value) if fits else None
    return value if isinstance(value, tuple) and all(isinstance(v, str) for v in value) else None


def _read(text: str, types: tuple[str, ...]) -> Any:
    """The value that a text says, where anything but text is taken."""
    if text.lower() in ("true", "false") and "bool" in types:
        return text.lower() == "true"
    return value_of(text) if set(types) - {"str", "texts"} else text


class Options(Mapping[str, Any]):
    """Options with values, in the order in which the method declares them; equal and hashed by content."""

    def __init__(self, values: Mapping[str, Any] | None = None):
        self._values = dict(values or {})

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return hash(tuple((name, _frozen(value)) for name, value in sorted(self._values.items())))

    def __repr__(self) -> str:
        return repr(self._values)


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, (list, tuple)) else value


def resolved(method: str, declared: Mapping[str, Option], given: Mapping[str, Any]) -> Options:
    """Every declared option with its value. Raises UnknownName and UsageError."""
    for name in given:
        if name not in declared:
            raise UnknownName(f"option of {method}", name, declared)
    return Options(
        {
            name: option.convert(given[name], method) if name in given else option.default
            for name, option in declared.items()
        }
    )


def declared(function: Callable[..., Any]) -> dict[str, Option]:
    """The options of a looped method: its keyword-only arguments, their annotations and its docstring's lines.

    A line `name: what it means` of the docstring documents an option, behind the `Doc` of its annotation. Raises
    TypeError for an annotation that no option can have: a programming error.
    """
    hints = typing.get_type_hints(function, include_extras=True)
    parameters = inspect.signature(function).parameters.values()
    found = {}
    for parameter in parameters:
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            continue
        if parameter.default is inspect.Parameter.empty:
            raise TypeError(f"{function.__name__}: the option {parameter.name} has no default")
        kinds, choices, limits, none = _annotation(hints[parameter.name], f"{function.__name__}: {parameter.name}")
        found[parameter.name] = Option(
            parameter.name,
            parameter.default,
            kinds,
            choices,
            limits,
            none,
            f"{_doc(hints[parameter.name])} {_line(function.__doc__ or '', parameter.name)}".strip(),
        )
    return found


def _annotation(hint: Any, who: str) -> tuple[tuple[str, ...], tuple[str, ...], Range | None, bool]:
    """(types, words, range, whether None) of an annotation."""
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        inner, *extra = typing.get_args(hint)
        kinds, choices, limits, none = _annotation(inner, who)
        return kinds, choices, next((e for e in extra if isinstance(e, Range)), limits), none
    if origin in (typing.Union, types.UnionType):
        parts = [_annotation(part, who) for part in typing.get_args(hint)]
        limits = next((part[2] for part in parts if part[2] is not None), None)
        return (
            tuple(kind for part in parts for kind in part[0]),
            tuple(word for part in parts for word in part[1]),
            limits,
            any(part[3] for part in parts),
        )
    if origin is Literal:
        return (), tuple(map(str, typing.get_args(hint))), None, False
    if hint is type(None):
        return (), (), None, True
    if hint in (int, float, bool, str):
        return (hint.__name__,), (), None, False
    if origin in (list, tuple) and typing.get_args(hint)[0] in (int, float, str):
        return ("texts",) if typing.get_args(hint)[0] is str else ("list",), (), None, False
    raise TypeError(f"{who}: options are numbers, words, lists of numbers, not {hint}")


def _doc(hint: Any) -> str:
    """The text of a `Doc` in an annotation."""
    return next((extra.text for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, Doc)), "")


def _line(doc: str, name: str) -> str:
    """What a docstring says of an argument, up to the next argument or empty line."""
    found = re.search(rf"^\s*{name}: (.*(?:\n(?!\s*\w+: )\s*\S.*)*)", doc, re.M)
    return " ".join(found[1].split()) if found else ""
