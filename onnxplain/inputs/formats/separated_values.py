"""Tables of numbers in text: csv."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np

from onnxplain.errors import InputError
from onnxplain.inputs.formats.registry import Contents, reader
from onnxplain.inputs.paths import read_text


@reader(".csv", holds="table")
def separated_values(path: Path) -> Contents:
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
