"""Arrays from files: npy, npz, csv and ONNX test data. Pictures are read by `pictures`."""

from __future__ import annotations

import csv
import io
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxplain.errors import InputError
from onnxplain.inputs import pictures
from onnxplain.inputs.paths import read_bytes, read_text
from onnxplain.inputs.protobuf import read_tensor

Array = NDArray[Any]

# what numpy.load raises on files cut short, mislabelled or declaring absurd shapes
_BROKEN: tuple[type[Exception], ...] = (
    *(ValueError, OSError, EOFError, KeyError, SyntaxError, RuntimeError),
    *(MemoryError, OverflowError, zipfile.BadZipFile, zlib.error),
)


@dataclass(frozen=True)
class Contents:
    """What one file holds: arrays by name ("" where the file gives none), and the names of csv columns.

    A lone `arr_0` of an .npz has no name: so numpy calls what `savez` was given without one.
    """

    path: Path
    arrays: dict[str, Array]
    features: tuple[str, ...] = ()


def is_picture(path: Path) -> bool:
    """A file to be prepared as a photograph rather than read as an array."""
    return path.suffix.lower() in pictures.SUFFIXES


def read(path: str | Path, array: str = "") -> Contents:
    """Every array in the file, or the one named, which then needs no name; checked to be finite numbers."""
    path = Path(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        known = ", ".join([*_READERS, *pictures.SUFFIXES])
        raise InputError(f"{path}: inputs of type {path.suffix or '(no suffix)'!r} are not read. Give one of {known}.")
    contents = reader(path)
    if array:
        if array not in contents.arrays:
            known = ", ".join(name or "(no name)" for name in contents.arrays)
            raise InputError(f"{path}: holds no array named {array!r}; there is {known}.")
        contents = Contents(path, {"": contents.arrays[array]})
    for name, values in contents.arrays.items():
        _check(values, f"{path}{f' ({name})' if name else ''}", contents.features)
    return contents


def _check(array: Array, where: str, features: tuple[str, ...]) -> None:
    """Numbers, at least one of them, none NaN or infinite."""
    if array.dtype.kind in "OUSVMmc" and "float" not in array.dtype.name:  # bfloat16 is of kind V
        raise InputError(f"{where}: holds {array.dtype} values, expected real numbers.")
    if array.size == 0:
        raise InputError(f"{where}: shape {array.shape} holds no values.")
    if array.dtype.kind in "biu":
        return
    wrong = np.argwhere(~np.isfinite(array.astype(np.float64)))
    if len(wrong):
        position = tuple(int(axis) for axis in wrong[0])
        column = f" (column {features[position[1]]!r})" if features else ""
        value = float(array[position])
        raise InputError(
            f"{where}: {'NaN' if np.isnan(value) else 'infinity'} at {list(position)}{column}, {len(wrong)} in all. "
            f"Give finite numbers."
        )


def _npy(path: Path) -> Contents:
    return Contents(path, {"": _load(path)})


def _npz(path: Path) -> Contents:
    loaded = _load(path)
    if not isinstance(loaded, dict):
        return Contents(path, {"": loaded})
    return Contents(path, {"": loaded["arr_0"]} if list(loaded) == ["arr_0"] else loaded)


def _load(path: Path) -> Any:
    """The loader of numpy, without pickles."""
    data = read_bytes(path)
    try:
        loaded = np.load(io.BytesIO(data), allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            arrays = {name: loaded[name] for name in loaded.files}
    except _BROKEN as error:
        if "allow_pickle" in str(error) and (data[:6] == b"\x93NUMPY" or data[:2] == b"PK"):
            raise InputError(
                f"{path}: holds Python objects (pickled), which are never loaded. Save numbers."
            ) from error
        raise InputError(f"{path}: not a numpy file, or cut short. Save it with numpy.save or numpy.savez.") from error
    if not arrays or not all(isinstance(array, np.ndarray) for array in arrays.values()):
        raise InputError(f"{path}: holds no arrays, or something else as well. Save it with numpy.savez.")
    return arrays


def _csv(path: Path) -> Contents:
    """One sample a row. A first row that is not all numbers names the columns; separator , ; or tab."""
    text = read_text(path)
    first = text.lstrip().split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    try:
        rows = [(number, row) for number, row in enumerate(csv.reader(io.StringIO(text), delimiter=delimiter), 1)]
    except csv.Error as error:
        raise InputError(f"{path}: not a csv file ({error}).") from error
    rows = [(number, [cell.strip() for cell in row]) for number, row in rows if any(cell.strip() for cell in row)]
    features: tuple[str, ...] = ()
    if rows and not all(_is_number(cell) for cell in rows[0][1]):
        features = tuple(rows.pop(0)[1])
    if not rows:
        raise InputError(f"{path}: holds no row of numbers.")
    twice = [name for n, name in enumerate(features) if name in features[:n]]
    if twice:
        raise InputError(f"{path}: two columns are called {twice[0]!r}; each needs a name of its own.")
    width = len(features or rows[0][1])
    values = []
    for number, row in rows:
        if len(row) != width:
            raise InputError(f"{path}, line {number}: {len(row)} columns, expected {width}.")
        values.append([_number(cell, path, number, features[i] if features else i + 1) for i, cell in enumerate(row)])
    return Contents(path, {"": np.array(values, np.float64)}, features)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _number(cell: str, path: Path, line: int, column: str | int) -> float:
    if not _is_number(cell):
        found = repr(cell) if cell else "nothing"
        raise InputError(f"{path}, line {line}, column {column!r}: found {found}, expected a number.")
    return float(cell)


def _pb(path: Path) -> Contents:
    name, array = read_tensor(path)
    return Contents(path, {name: array})


_READERS: dict[str, Callable[[Path], Contents]] = {".npy": _npy, ".npz": _npz, ".csv": _csv, ".pb": _pb}
