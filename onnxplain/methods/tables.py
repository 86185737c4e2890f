"""A row of a table: its columns through all inputs, their names, and which values they may have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from onnxplain.errors import UsageError
from onnxplain.methods.run import Run
from onnxplain.methods.tensors import Array, Tensors

WORDS = 8  # columns that a note names before "and N more"


@dataclass(frozen=True)
class TableRow:
    """The columns of one row, those of all inputs one behind the other.

    like: the row, (1, …) for each input. names: of the columns.
    """

    like: Tensors
    names: tuple[str, ...]

    @cached_property
    def row(self) -> Array:
        """The values, float64 (columns,)."""
        return np.asarray(self.flat(self.like)[0])

    def flat(self, points: Tensors) -> Array:
        """Points (S, …) as rows, float64 (S, columns)."""
        return np.concatenate([a.reshape(len(a), -1).astype(np.float64) for a in points.values()], 1)

    def points(self, rows: Array) -> Tensors:
        """Rows (S, columns) as the model's inputs, in their types."""
        ends = np.cumsum([array[0].size for array in self.like.values()])[:-1]
        pairs = zip(self.like.items(), np.split(rows, ends, axis=1), strict=True)
        return Tensors({n: part.reshape(len(rows), *a.shape[1:]).astype(a.dtype) for (n, a), part in pairs})

    def numbers(self, values: float | Sequence[float], option: str) -> Array:
        """An option's numbers, one for each column; one stands for all. Raises UsageError."""
        found = np.asarray(values, np.float64).reshape(-1)
        if found.size not in (1, len(self.names)):
            raise UsageError(f"{option} has {found.size} numbers, and the row {len(self.names)} columns.")
        return np.broadcast_to(found, (len(self.names),))

    def columns(self, numbers: Sequence[float] | None, option: str) -> Array:
        """The columns that an option counts up, from 0, as bool (columns,); None: none. Raises UsageError."""
        chosen = np.zeros(len(self.names), bool)
        for number in numbers or ():
            if number != int(number) or not 0 <= number < len(self.names):
                raise UsageError(
                    f"{option}: {number:g} is no column; they are counted from 0 to {len(self.names) - 1}."
                )
            chosen[int(number)] = True
        return chosen


def table_of(run: Run, x: Tensors, method: str) -> TableRow:
    """The columns of x. Raises UsageError for inputs that are no tables."""
    names: list[str] = []
    for name, array in x.items():
        width = array[0].size
        if array.ndim > 2 or not run.samples:
            raise UsageError(f"method {method} is for tables, (samples, columns), and {name} is {list(array.shape)}.")
        known = run.columns.get(name, ())
        if len(known) == width:
            names += known
        else:
            names += [name] if width == 1 else [f"{name}[{column}]" for column in range(width)]
    return TableRow(x, tuple(names))


def listed(parts: Sequence[str], more: str = "columns") -> str:
    """Parts of a sentence, joined by and."""
    if len(parts) > WORDS:
        parts = [*parts[: WORDS - 1], f"{len(parts) - WORDS + 1} more {more}"]
    return " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))
