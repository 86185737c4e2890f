"""The rows of a piece of a file, each ready to be fed, or with the reason why not."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxplain.bulk.counting import PARQUET, blank, csv_dialect, parquet_file
from onnxplain.bulk.locations import InputFile
from onnxplain.bulk.plan import Piece
from onnxplain.errors import InputError, OnnxplainError, Unavailable, UsageError
from onnxplain.inputs import InputSpec, Preprocessing, bind, load
from onnxplain.inputs.formats import FORMATS
from onnxplain.inputs.pictures import SUFFIXES as PICTURES
from onnxplain.inputs.tables import from_table, shaped

Array = NDArray[Any]
Feeds = dict[str, Array]  # one row: (1, …) by input


class Table:
    """Columns by name, as `inputs.tables` takes them."""

    def __init__(self, columns: Mapping[str, Any]):
        self.columns = list(columns)
        self._columns = columns

    def __getitem__(self, name: str) -> Any:
        """One column."""
        return self._columns[name]


class RowReader:
    """Reads pieces for the inputs of a model. columns: of tables, by input. Keeps the last array file it read."""

    def __init__(self, inputs: Sequence[InputSpec], pictures: Preprocessing, columns: Mapping[str, Sequence[str]]):
        self.inputs, self.pictures, self.columns = inputs, pictures, columns
        self._open = [replace(s, shape=None if s.shape is None else (None, *s.shape[1:])) for s in inputs]
        self._last: tuple[InputFile, Feeds] | None = None

    def read(self, piece: Piece) -> list[Feeds | InputError]:
        """One entry a row. Raises Unavailable where a file cannot be fetched, UsageError where pyarrow is missing."""
        rows = piece.stop - piece.start
        try:
            if piece.file.suffix in PICTURES:
                return [self._picture(piece.file)]
            if piece.file.suffix == ".csv":
                return self._csv(piece)
            if piece.file.suffix == PARQUET:
                return self._parquet(piece)
            return self._split(self._array(piece.file), piece, piece.start)
        except (Unavailable, UsageError):
            raise
        except OnnxplainError as error:
            return [InputError(str(error))] * rows
        except OSError as error:
            return [InputError(f"{piece.file.name}: cannot be read ({error.strerror or error}).")] * rows

    def _picture(self, file: InputFile) -> Feeds:
        with file.path() as path:
            return load([path], self.inputs, self.pictures.of_input).feeds

    def _array(self, file: InputFile) -> Feeds:
        """All of an array file, by input."""
        if self._last is None or self._last[0] != file:
            with file.path() as path:
                arrays = FORMATS[file.suffix].read(path).arrays
            if len(arrays) == 1 and len(self._open) == 1:
                arrays = {"": next(iter(arrays.values()))}
            for name, values in arrays.items():
                if values.dtype.kind in "OUSVMmc" and "float" not in values.dtype.name:  # bfloat16 is of kind V
                    raise InputError(f"{file.name} ({name}): holds {values.dtype} values, expected real numbers.")
            self._last = file, bind(arrays, self._open, file.name)
        return self._last[1]

    def _csv(self, piece: Piece) -> list[Feeds | InputError]:
        file, rows = piece.file, piece.stop - piece.start
        with file.open() as stream:
            head = b"\n"
            while blank(head):
                head = stream.readline()
                if not head:
                    raise InputError(f"{file.name}: holds no row of numbers.")
            separator, names = csv_dialect(head)
            stream.seek(piece.place)
            lines = list(islice((line for line in iter(stream.readline, b"") if not blank(line)), rows))
        found: list[Feeds | InputError] = []
        for number, line in enumerate(lines, piece.start):
            where = f"{file.name}, row {number}"
            try:
                (cells,) = csv.reader([line.decode("utf-8-sig")], delimiter=separator)
                if names and len(cells) != len(names):
                    raise InputError(f"{where}: {len(cells)} columns, expected {len(names)}.")
                values = np.array([[_float(cell, where)] for cell in cells])
                table = Table(dict(zip(names, values, strict=True))) if names else None
                feeds = self._from_table(table, where) if table else self._nameless(values.T)
                found.append(_finite(feeds, where))
            except (InputError, UnicodeDecodeError, csv.Error) as error:
                found.append(InputError(str(error)))
        return found + [InputError(f"{file.name}: ends before row {piece.stop}; it was longer.")] * (rows - len(found))

    def _nameless(self, values: Array) -> Feeds:
        if len(self._open) != 1:
            raise InputError(f"a table without a head, for a model with {len(self._open)} inputs: name the columns.")
        return {self._open[0].name: shaped(values, self._open[0])}

    def _parquet(self, piece: Piece) -> list[Feeds | InputError]:
        """Of the row groups that hold its rows, only the columns that the model takes."""
        with piece.file.open() as stream:
            found = parquet_file(stream)
            names = self._wanted(found.schema_arrow.names)
            before, groups = 0, list[int]()
            skipped = 0
            for group in range(found.metadata.num_row_groups):
                length = found.metadata.row_group(group).num_rows
                if before + length <= piece.start:
                    skipped = before + length
                elif before < piece.stop:
                    groups.append(group)
                before += length
            table = found.read_row_groups(groups, columns=names).slice(piece.start - skipped, piece.stop - piece.start)
        columns = {name: table.column(name).to_pylist() for name in names}
        rows: list[Feeds | InputError] = []
        for n in range(table.num_rows):
            where = f"{piece.file.name}, row {piece.start + n}"
            try:
                cells = {name: [_cell(column[n], name, where)] for name, column in columns.items()}
                rows.append(_finite(self._from_table(Table(cells), where), where))
            except InputError as error:
                rows.append(error)
        return rows

    def _wanted(self, names: Sequence[str]) -> list[str]:
        """Columns to read: those of the inputs or of the model's table, where they are all there; else all."""
        wanted = [spec.name for spec in self.inputs]
        if len(wanted) == 1 and wanted[0] not in names:
            wanted = list(self.columns.get(wanted[0], ()))
        return wanted if wanted and set(wanted) <= set(names) else list(names)

    def _from_table(self, table: Table, where: str) -> Feeds:
        single = len(self._open) == 1 and table.columns == [self._open[0].name]
        columns = {} if single else {name: tuple(known) for name, known in self.columns.items()}
        if len(self._open) == 1 and not single:
            known = columns.get(self._open[0].name, ())
            if known and set(known) <= set(table.columns):
                table = Table({name: table[name] for name in known})
        return from_table(table, self._open, columns, where)

    def _split(self, feeds: Feeds, piece: Piece, start: int) -> list[Feeds | InputError]:
        """Rows of arrays."""
        lengths = {name: len(array) if array.ndim else 1 for name, array in feeds.items()}
        if any(length < piece.stop for length in lengths.values()) or len(set(lengths.values())) != 1:
            said = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise InputError(f"{piece.file.name}: {piece.stop} rows were expected, of each input: {said}.")
        found: list[Feeds | InputError] = []
        for n in range(start, start + piece.stop - piece.start):
            row = {name: array[n : n + 1] if array.ndim else array for name, array in feeds.items()}
            try:
                found.append(_finite(row, f"{piece.file.name}, row {n}"))
            except InputError as error:
                found.append(error)
        return found


def _finite(feeds: Feeds, where: str) -> Feeds:
    for name, values in feeds.items():
        if values.dtype.kind in "biu":
            continue
        wrong = np.argwhere(~np.isfinite(values.astype(np.float64)))
        if len(wrong):
            said = "NaN" if np.isnan(float(values[tuple(wrong[0])])) else "infinity"
            position = [int(axis) for axis in wrong[0][1:]]
            raise InputError(f"{where}: {said} at {position} of {name!r}, {len(wrong)} in all. Give finite numbers.")
    return feeds


def _float(cell: str, where: str) -> float:
    try:
        return float(cell)
    except ValueError:
        raise InputError(f"{where}: found {cell[:40]!r}, expected a number.") from None


def _cell(value: Any, name: str, where: str) -> Array:
    """A number, or nested lists of them."""
    try:
        found = np.asarray(value)
    except ValueError:
        found = np.asarray(None)
    if found.dtype.kind not in "biuf":
        raise InputError(f"{where}, column {name!r}: found {str(value)[:40]}, expected numbers.")
    return found
