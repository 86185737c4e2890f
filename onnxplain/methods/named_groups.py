"""Feature groups by the names of columns: `color_*` for the columns of a one-hot code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from onnxplain.errors import UnknownName, UsageError


def with_numbers(options: Mapping[str, Any], moved: Sequence[str], columns: Mapping[str, Sequence[str]]) -> Any:
    """The options of a method; feature groups said by name become numbers of columns.

    moved: the inputs that the method moves. columns: names of the columns of an input, in its order. Where several
    inputs move, each is a column by its own name. Raises UsageError, UnknownName.
    """
    groups = options.get("groups")
    if not isinstance(groups, tuple) or not groups or not all(isinstance(group, str) for group in groups):
        return options
    names = list(moved) if len(moved) > 1 else columns.get(moved[0], ())
    if not names:
        raise UsageError(
            f"groups: {', '.join(groups)} are names of columns, and those of {moved[0]} are not known: give [input] "
            "features in model.toml, a csv with a first row of names, or columns=…; or numbers of groups."
        )
    return {**options, "groups": numbered(groups, names)}


def numbered(patterns: Sequence[str], names: Sequence[str]) -> tuple[float, ...]:
    """The number of the group of each column. Those that one pattern fits are a group, any other is one by itself.

    patterns: names, with * for anything. Raises UnknownName for one that fits none, UsageError where two fit one.
    """
    found: dict[str, int] = {}
    for number, pattern in enumerate(patterns):
        own = [name for name in names if fnmatchcase(name, pattern)]
        if not own:
            raise UnknownName("column (of groups)", pattern, names)
        for name in own:
            if name in found:
                raise UsageError(f"groups: both {patterns[found[name]]} and {pattern} name the column {name}.")
            found[name] = number
    return tuple(float(found.get(name, len(patterns) + n)) for n, name in enumerate(names))
