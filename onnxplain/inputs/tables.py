"""What a user gives becomes the arrays that a model takes, by name: tables with named columns, and arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxplain.errors import InputError, UnknownName, UsageError
from onnxplain.inputs.binding import bind, conform
from onnxplain.inputs.naming import match
from onnxplain.inputs.specs import InputSpec

Array = NDArray[Any]
Columns = Mapping[str, Sequence[str]]  # names of a table's columns in the model's order, by input


def is_table(x: Any) -> bool:
    """A DataFrame, of pandas or of another library: columns with names, and a way to numpy."""
    return hasattr(x, "columns") and hasattr(x, "to_numpy")


def from_table(table: Any, specs: Sequence[InputSpec], columns: Columns, where: str = "the table") -> dict[str, Array]:
    """One array for each input: its own column where there are several, all columns where there is one.

    columns: in the model's order, for the one input; the table's may stand in another. Each row is put into the input's
    shape. Raises InputError for names that are missing, not wanted or not known.
    """
    names = [str(name) for name in table.columns]
    if len(specs) > 1:
        order = match(names, [spec.name for spec in specs], "column", where, "The model takes a column for each input.")
        return {
            spec.name: shaped(np.stack([np.asarray(cell) for cell in table[table.columns[n]]]), spec)
            for spec, n in zip(specs, order, strict=True)
        }
    (spec,) = specs
    known = columns.get(spec.name, ())
    if not known and len(names) > 1:
        raise InputError(
            f"{where} has the columns {', '.join(names[:8])}{', …' if len(names) > 8 else ''}, and the names of the "
            f"model's are not known. Give [input] features in model.toml, features=…, or the numbers alone: "
            f".to_numpy(), in the model's order."
        )
    order = match(names, known, "column", where, f"The model takes {', '.join(known)}.") if known else [0]
    picked = [np.stack([np.asarray(cell) for cell in table[table.columns[n]]]) for n in order]
    if len(picked) > 1 and any(column.ndim > 1 for column in picked):
        raise InputError(f"{where}: a column holds arrays; give one number a cell, or arrays by input name.")
    return {spec.name: shaped(picked[0] if len(picked) == 1 else np.stack(picked, 1), spec)}


def shaped(array: Array, spec: InputSpec) -> Array:
    """Rows of numbers in the input's shape and type. Raises InputError where they do not fit."""
    inner = list((spec.shape or array.shape)[1:])
    unknown = [i for i, length in enumerate(inner) if not isinstance(length, int)]
    lengths = [-1 if i in unknown else int(length or 0) for i, length in enumerate(inner)]
    each = prod(array.shape[1:])
    fits = prod(lengths) == each if not unknown else len(unknown) == 1 and each % max(1, -prod(lengths)) == 0
    if spec.shape is not None and not fits:
        raise InputError(f"a row of the data has {each} numbers, the input {spec.name!r} takes {tuple(inner)}.")
    rows = replace(spec, shape=None if spec.shape is None else (None, *spec.shape[1:]))
    return conform(array.reshape(len(array), *lengths), rows, "the data")


def columns_by_input(given: Sequence[str] | Columns, inputs: Sequence[InputSpec]) -> Columns:
    """Names of columns, in the model's order, by input.

    Raises UsageError for names of several inputs' columns in one list, or of no input.
    """
    if isinstance(given, Mapping):
        if unknown := [name for name in given if all(name != spec.name for spec in inputs)]:
            raise UnknownName("input (of columns)", unknown[0], [spec.name for spec in inputs])
        return dict(given)
    if given and len(inputs) != 1:
        raise UsageError(
            f"columns: the model has {len(inputs)} inputs; give names by input, {{{inputs[0].name!r}: […]}}."
        )
    return {inputs[0].name: tuple(given)} if given else {}


def feeds_of(inputs: Any, specs: Sequence[InputSpec], columns: Columns) -> dict[str, Array]:
    """The model's feeds of what a user gives: a table, arrays by name, or one array for an only input.

    Raises InputError for anything that does not bind.
    """
    if is_table(inputs):
        return bind(from_table(inputs, specs, columns), specs)
    if not isinstance(inputs, Mapping):
        if len(specs) != 1:
            raise InputError(f"the model has the inputs {', '.join(s.name for s in specs)}: give arrays by name.")
        inputs = {"": inputs}
    return bind({name: np.asarray(array) for name, array in inputs.items()}, specs)
