"""Predicates of a row: between which quantiles of the background each of its columns lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxplain.methods.tables import TableRow, listed
from onnxplain.methods.tensors import Array


@dataclass(frozen=True)
class Predicates:
    """`value <= edge` where `above` is False, `value > edge` where it is True; x fulfils them all.

    column, edge, above: (predicates,). rows: the background, (B, columns). fulfilled: which of its rows do,
    bool (predicates, B).
    """

    table: TableRow
    rows: Array
    column: Array
    edge: Array
    above: Array
    fulfilled: Array
    generator: np.random.Generator

    @classmethod
    def of(cls, table: TableRow, rows: Array, bins: int, generator: np.random.Generator) -> Predicates:
        """Those at the inner quantiles of each column, equal ones once. rows: the background, float64."""
        found: list[tuple[int, float, bool]] = []
        for column, value in enumerate(table.row):
            values = rows[:, column]
            edges = np.nanquantile(values, np.arange(1, bins) / bins, method="lower")
            edges = np.unique(edges[edges < np.nanmax(values)])  # at the largest value nothing is above
            shorts = [_short(edge, float(np.min(values[values > edge]))) for edge in edges]
            found += [(column, edge, bool(value > edge)) for edge in shorts]
        columns = np.array([entry[0] for entry in found], np.int64)
        edges, above = np.array([entry[1] for entry in found]), np.array([entry[2] for entry in found], bool)
        values = rows[:, columns].T
        fulfilled = np.where(above[:, None], values > edges[:, None], values <= edges[:, None])
        kept = fulfilled.any(1)  # else no row can be drawn that fulfils it
        return cls(table, rows, columns[kept], edges[kept], above[kept], fulfilled[kept], generator)

    def coverage(self, rule: Sequence[int]) -> float:
        """The share of the background that fulfils all of a rule."""
        return float(self.fulfilled[list(rule)].all(0).mean()) if rule else 1.0

    def possible(self, rule: Sequence[int]) -> bool:
        """Whether every ruled column has a row of the background that fulfils what is asked of it."""
        return all(self._fulfilling(rule, column).size for column in {int(self.column[p]) for p in rule})

    def draw(self, rule: Sequence[int], count: int) -> Array:
        """Rows of the background, (count, columns), the ruled columns taken from rows that fulfil the rule there.

        Where rows fulfil all of the rule, ruled columns come together from one of them; else each from its own.
        """
        drawn = self.rows[self.generator.integers(0, len(self.rows), count)].copy()
        columns = sorted({int(self.column[p]) for p in rule})
        (whole,) = np.nonzero(self.fulfilled[list(rule)].all(0)) if rule else (np.zeros(0),)
        if whole.size:
            drawn[:, columns] = self.rows[self.generator.choice(whole, count)][:, columns]
        else:
            for column in columns:
                drawn[:, column] = self.rows[self.generator.choice(self._fulfilling(rule, column), count), column]
        return drawn

    def _fulfilling(self, rule: Sequence[int], column: int) -> Array:
        """Rows of the background that fulfil what a rule asks of one column."""
        asked = [p for p in rule if self.column[p] == column]
        return np.flatnonzero(self.fulfilled[asked].all(0))

    def words(self, rule: Sequence[int]) -> str:
        """A rule, column by column, with one lower and one upper edge of each."""
        parts = []
        for column in dict.fromkeys(int(self.column[p]) for p in rule):
            lows = [self.edge[p] for p in rule if self.column[p] == column and self.above[p]]
            highs = [self.edge[p] for p in rule if self.column[p] == column and not self.above[p]]
            name = self.table.names[column]
            low, high = f"{max(lows, default=0):.9g}", f"{min(highs, default=0):.9g}"
            if lows and highs:
                parts.append(f"{low} < {name} <= {high}")
            else:
                parts.append(f"{name} > {low}" if lows else f"{name} <= {high}")
        return listed(parts, "predicates")


def _short(low: float, high: float) -> float:
    """The number of the fewest digits from low up to, but not, high: it parts the same values as low does."""
    for digits in range(1, 17):
        for number in (low, (low + high) / 2):
            if low <= (short := float(f"{number:.{digits}g}")) < high:
                return short
    return float(low)
