"""Options of what is registered by a function: read from its signature, written `name(option=value,…)`.

The keyword arguments of the function are the options, their defaults the defaults. A number or a list of numbers is
taken where nothing else is said; for an option with words, one of them.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from onnxplain.errors import UnknownName, UsageError

LARGEST = sys.float_info.max  # Python's whole numbers go beyond, and raise where they become floats
LITERAL = 10_000  # characters of a value; thousands of bounds, one per channel, are shorter
STABILISERS = ("epsilon",)  # of whatever name is a number that keeps a sum from 0: it has no sign
Choices = Mapping[str, Sequence[str]]
"""The words of those options that take words."""


def options_of(make: Callable[..., Any], without: Sequence[str] = ()) -> dict[str, Any]:
    """Option names with defaults; `inspect.Parameter.empty` where there is none. without: arguments that are none."""
    parameters = inspect.signature(make).parameters.items()
    return {name: parameter.default for name, parameter in parameters if name not in without}


def checked(what: str, defaults: Mapping[str, Any], given: Mapping[str, Any], choices: Choices) -> dict[str, Any]:
    """Every option with its value, in the order of the signature. what: "rule gamma", for the error.

    Raises UnknownName, UsageError.
    """
    kind, _, name = what.partition(" ")
    for option, value in given.items():
        if option not in defaults:
            raise UnknownName(f"option of the {what}", option, defaults)
        if option in choices:
            if value not in choices[option]:
                raise UsageError(f"{what}: {option} is {' or '.join(choices[option])}, not {value!r}.")
            continue
        default = defaults[option]
        lists = default is inspect.Parameter.empty or isinstance(default, (list, tuple))  # bounds: one or per channel
        if value is None and default is None:
            continue
        if not _numeric(value) or (isinstance(value, (list, tuple)) and not lists):
            raise UsageError(f"{what}: {option} is a number, not {value!r}.")
        if option in STABILISERS and value < 0:
            raise UsageError(f"{what}: {option} is a number at least 0, not {value!r}.")
    missing = [o for o, default in defaults.items() if default is inspect.Parameter.empty and o not in given]
    if missing:
        example = ",".join(f"{option}=…" for option in missing)
        raise UsageError(f"{kind} {name} needs {' and '.join(missing)}: {name}({example}).")
    return {option: given.get(option, default) for option, default in defaults.items()}


def parse_call(kind: str, text: str) -> tuple[str, dict[str, Any]]:
    """`alpha_beta(alpha=2,beta=1)` or `flat` as name and options. Values are numbers, lists of numbers or bare words.

    kind: "rule", for the error. Raises UsageError.
    """
    match = re.fullmatch(r"\s*([A-Za-z_]\w*)\s*(?:\((.*)\))?\s*", text, re.S)
    if match is None:
        raise UsageError(f"cannot read the {kind} {text!r}; write it as name or name(option=value,…).")
    name, inside = match[1], (match[2] or "").strip()
    options: dict[str, Any] = {}
    for part in re.split(r",(?![^\[(]*[\])])", inside) if inside else []:
        option, equals, value = (word.strip() for word in part.partition("="))
        if not equals:
            raise UsageError(f"{kind} {name}: cannot read {part.strip()!r}; options are written option=value.")
        if option in options:
            raise UsageError(f"{kind} {name}: {option} is given twice.")
        options[option] = value_of(value)
    return name, options


def value_of(text: str) -> Any:
    """The number, list or other literal that a text says; the text itself where it says none, or far too much."""
    try:
        return ast.literal_eval(text) if len(text) <= LITERAL else text
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def call_text(name: str, options: Mapping[str, Any]) -> str:
    """As `parse_call` reads it."""
    text = ",".join(f"{option}={literal(value)}" for option, value in options.items())
    return f"{name}({text})" if text else name


def literal(value: Any) -> str:
    """A value as it is written in a call."""
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(literal(v) for v in value) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def described(defaults: Mapping[str, Any], choices: Choices) -> dict[str, str]:
    """Options for people: the default, with the other words behind it; "" where it has to be given."""

    def text(option: str, value: Any) -> str:
        if option in choices:
            return "|".join(dict.fromkeys((value, *choices[option])))
        return "" if value is inspect.Parameter.empty else literal(value)

    return {option: text(option, value) for option, value in defaults.items()}


def _numeric(value: Any) -> bool:
    """A finite number, or a list of such."""
    if isinstance(value, (list, tuple)):
        return bool(value) and all(_numeric(v) for v in value)
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= LARGEST


def toml_text(content: Mapping[str, Any]) -> str:
    """A table of names, numbers, words and lists as TOML, tables in it last; None is left out."""
    lines = [f"{k} = {_literal(v)}" for k, v in content.items() if v is not None and not isinstance(v, Mapping)]
    tables = [f"\n[{name}]\n{toml_text(v)}" for name, v in content.items() if isinstance(v, Mapping)]
    return "\n".join(lines) + "\n" + "".join(tables)


def _literal(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_literal(v) for v in value) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'
