"""Tensors as JSON and back: every number checked, none rounded into another type."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from onnxplain.errors import InputError
from onnxplain.server.http.body import kind_of
from onnxplain.wire.tensors import DATATYPES, Array, datatype_of, size_of

NOT_NUMBERS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}  # as JSON's own words lack them
SLICE = 8192  # numbers written at a time: between two, other threads get their turn


def json_array(datatype: str, shape: Sequence[int], data: Any, field: str) -> Array:
    """The array that `data`, flat or nested as `shape`, stands for.

    A whole number is written without a point; BOOL is true or false; BYTES are strings; a float may be "NaN",
    "Infinity" or "-Infinity". Raises InputError for anything that does not fit exactly (a float is rounded to its type
    as any decimal is).
    """
    count, _ = size_of(datatype, shape, field)
    where = f"{field}.data"
    values = _flat(data, shape, count, where)
    dtype = DATATYPES[datatype]
    convert = {"b": _bools, "i": _ints, "u": _ints, "O": _strings}.get(dtype.kind, _floats)
    return convert(values, dtype, datatype, where).reshape(tuple(shape))


def json_tensor(name: str, array: Array) -> dict[str, Any]:
    """A tensor of a reply, its data a flat list in row-major order."""
    return {
        "name": name,
        "datatype": datatype_of(array.dtype),
        "shape": list(array.shape),
        "data": json_values(array.reshape(-1)),
    }


def json_values(array: Array) -> Any:
    """Numbers as JSON has them, nested as the array is; exact, so that reading them in the same type gives the same."""
    if array.dtype.kind in "fV":  # V: bfloat16
        wide = array.astype(np.float64)
        if not np.isfinite(wide).all():
            words = wide.astype(object)
            for word, value in NOT_NUMBERS.items():
                words[np.isnan(wide) if math.isnan(value) else wide == value] = word
            return words.tolist()
        return wide.tolist()
    return array.tolist()


def write_json(value: Any) -> bytes:
    """JSON of a reply. Long lists are written in slices, so that the event loop is not held up meanwhile."""
    return "".join(_pieces(value)).encode("utf-8", "surrogatepass")


def _pieces(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield "{"
        for n, (name, inner) in enumerate(value.items()):
            yield f"{', ' if n else ''}{json.dumps(str(name), ensure_ascii=False)}: "
            yield from _pieces(inner)
        yield "}"
    elif isinstance(value, list):
        yield "["
        if {list, dict} & set(map(type, value)):
            for n, inner in enumerate(value):
                yield ", " if n else ""
                yield from _pieces(inner)
        else:
            for n in range(0, len(value), SLICE):
                yield f"{', ' if n else ''}{_dumps(value[n : n + SLICE])[1:-1]}"
        yield "]"
    else:
        yield _dumps(value)


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _flat(data: Any, shape: Sequence[int], count: int, where: str) -> list[Any]:
    """The elements in row-major order."""
    if not isinstance(data, list):
        if shape:
            raise InputError(f"{where}: {kind_of(data)}, expected an array of {count} elements.").at(where)
        data = [data]
    values: list[Any] = data
    if not any(type(value) is list for value in values):
        if len(values) != count:
            raise InputError(f"{where}: {len(values)} elements, shape {list(shape)} takes {count}.").at(where)
        return values
    values = [data]
    for axis, side in enumerate(shape):
        if not all(type(value) is list and len(value) == side for value in values):
            raise InputError(
                f"{where}: not nested as shape {list(shape)} says: axis {axis} is not {side} long everywhere."
            ).at(where)
        values = list(itertools.chain.from_iterable(values))
    return values


def _bools(values: list[Any], dtype: np.dtype[Any], datatype: str, where: str) -> Array:
    _only({bool}, values, "true or false", datatype, where)
    return np.fromiter(values, dtype, len(values))


def _ints(values: list[Any], dtype: np.dtype[Any], datatype: str, where: str) -> Array:
    _only({int}, values, "whole numbers without a point", datatype, where)
    limits = np.iinfo(dtype)
    if values and not limits.min <= min(values) <= max(values) <= limits.max:
        wrong = next(value for value in values if not limits.min <= value <= limits.max)
        raise InputError(f"{where}: {str(wrong)[:40]} is beyond {datatype}.").at(where)
    return np.fromiter(values, dtype, len(values))


def _floats(values: list[Any], dtype: np.dtype[Any], datatype: str, where: str) -> Array:
    kinds = set(map(type, values))
    wanted = 'numbers, or "NaN", "Infinity", "-Infinity"'
    if str in kinds:
        wrong = next((v for v in values if type(v) is str and v not in NOT_NUMBERS), None)
        if wrong is not None:
            raise InputError(f"{where}: {wrong[:40]!r}, {datatype} takes {wanted}.").at(where)
    _only({int, float, str}, values, wanted, datatype, where)
    infinite = sum(value in ("Infinity", "-Infinity") for value in values) if str in kinds else 0
    numbers = [NOT_NUMBERS[v] if type(v) is str else v for v in values] if str in kinds else values
    try:
        wide = np.fromiter(numbers, np.float64, len(numbers))
    except OverflowError as error:  # a whole number beyond any float
        raise InputError(f"{where}: a number is beyond {datatype}.").at(where) from error
    with np.errstate(over="ignore"):
        narrow: Array = wide.astype(dtype)
    if np.isinf(narrow.astype(np.float64)).sum() != infinite:
        raise InputError(f"{where}: a number is beyond {datatype}.").at(where)
    return narrow


def _strings(values: list[Any], dtype: np.dtype[Any], datatype: str, where: str) -> Array:
    _only({str}, values, "strings", datatype, where)
    for text in values:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{where}: a string with half a surrogate pair is no text.").at(where) from error
    array = np.empty(len(values), object)
    array[:] = values
    return array


def _only(kinds: set[type], values: list[Any], wanted: str, datatype: str, where: str) -> None:
    if not set(map(type, values)) <= kinds:
        wrong = next(value for value in values if type(value) not in kinds)
        shown = repr(wrong) if isinstance(wrong, float) else kind_of(wrong)
        raise InputError(f"{where}: found {shown}, {datatype} takes {wanted}.").at(where)
