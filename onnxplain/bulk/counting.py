"""How many rows a file holds, found without reading its numbers where its type allows."""

from __future__ import annotations

import csv
import zipfile
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxplain.bulk.locations import FRESH, URI, InputFile
from onnxplain.errors import InputError, OnnxplainError, UsageError
from onnxplain.inputs import InputSpec
from onnxplain.inputs.binding import fits
from onnxplain.inputs.files import read
from onnxplain.inputs.formats import FORMATS
from onnxplain.inputs.pictures import SUFFIXES as PICTURES

PARQUET = ".parquet"
SUFFIXES = (*PICTURES, *FORMATS, PARQUET)


@dataclass(frozen=True)
class Counted:
    """rows: how many. columns: names in a table's head. places: where each row begins, for types that need it."""

    rows: int
    columns: tuple[str, ...] = ()
    places: Sequence[int] = ()


UNREADABLE = Counted(1)  # its one row becomes an error row, with the reason that reading it gives


def count(file: InputFile, inputs: Sequence[InputSpec]) -> Counted:
    """The rows of one file; one that cannot be read has one. Raises UsageError for a type that is not read."""
    if file.suffix not in SUFFIXES:
        raise UsageError(f"{file.name}: files of type {file.suffix or '(no suffix)'!r} are not read; {SUFFIXES} are.")
    if file.suffix in PICTURES:
        return Counted(1)
    try:
        return _COUNTERS.get(file.suffix, _whole)(file, inputs)
    except UsageError:
        raise
    except (OnnxplainError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        return UNREADABLE
    except OSError as error:
        if URI.match(file.name):
            raise InputError(f"{file.name} cannot be read: {error}.") from error
        return UNREADABLE


def csv_dialect(line: bytes) -> tuple[str, tuple[str, ...]]:
    """(separator, names of columns) by the first line; no names where it is all numbers."""
    text = line.decode("utf-8-sig").strip()
    separator = max(",;\t", key=text.count)
    (cells,) = csv.reader([text], delimiter=separator)
    names = tuple(cell.strip() for cell in cells)
    return separator, () if all(map(_number, names)) else names


def blank(line: bytes) -> bool:
    """Whether a csv's line holds no cell."""
    return not line.strip(b" \t\r\n,;")


def parquet_file(stream: Any) -> Any:
    """pyarrow's reader of an open stream. Raises UsageError where pyarrow is missing."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UsageError(f"Parquet is read by pyarrow; {FRESH}.") from error
    try:
        return parquet.ParquetFile(stream)
    except pyarrow.ArrowInvalid as error:
        raise InputError(f"not a Parquet file, or cut short ({' '.join(str(error).split())[:200]}).") from error


def _number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _csv(file: InputFile, inputs: Sequence[InputSpec]) -> Counted:
    columns: tuple[str, ...] = ()
    places, at, first = array("q"), 0, True
    with file.open() as stream:
        for line in stream:
            if not blank(line):
                if line.count(b'"') % 2:
                    raise InputError(f"{file.name}: a quoted cell with a line break; only numbers are read.")
                if first:
                    _, columns = csv_dialect(line)
                if not first or not columns:
                    places.append(at)
                first = False
            at += len(line)
    return Counted(len(places), columns, places) if places else UNREADABLE


def _parquet(file: InputFile, inputs: Sequence[InputSpec]) -> Counted:
    with file.open() as stream:
        found = parquet_file(stream)
        names = tuple(found.schema_arrow.names)
        single = len(inputs) == 1 and inputs[0].name in names
        return Counted(found.metadata.num_rows, () if single else names) if found.metadata.num_rows else UNREADABLE


def _npy(file: InputFile, inputs: Sequence[InputSpec]) -> Counted:
    with file.open() as stream:
        return Counted(_rows(_shape(stream), inputs[0]))


def _npz(file: InputFile, inputs: Sequence[InputSpec]) -> Counted:
    with file.open() as stream, zipfile.ZipFile(stream) as archive:
        names = archive.namelist()
        name = f"{inputs[0].name}.npy" if f"{inputs[0].name}.npy" in names else names[0]
        with archive.open(name) as member:
            return Counted(_rows(_shape(member), inputs[0]))


def _whole(file: InputFile, inputs: Sequence[InputSpec]) -> Counted:
    with file.path() as path:
        first = next(iter(read(path).arrays.values()))
    return Counted(_rows(first.shape, inputs[0]))


def _shape(stream: Any) -> tuple[int, ...]:
    version = np.lib.format.read_magic(stream)
    head = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, _ = head(stream)
    return tuple(shape)


def _rows(shape: tuple[int, ...], spec: InputSpec) -> int:
    """As `binding.conform` understands them: an array without a batch axis is one row."""
    open_batch = None if spec.shape is None else (None, *spec.shape[1:])
    if not fits(shape, open_batch) and fits((1, *shape), open_batch):
        return 1
    return max(1, shape[0]) if shape else 1


_COUNTERS: dict[str, Callable[[InputFile, Sequence[InputSpec]], Counted]] = {
    ".csv": _csv, ".npy": _npy, ".npz": _npz, PARQUET: _parquet,
}  # fmt: skip
