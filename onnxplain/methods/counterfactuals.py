"""What counterfactuals of a table have in common: which rows may be, how far they are, how few columns change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np

from onnxplain.methods.decisions import Decision
from onnxplain.methods.options import Doc
from onnxplain.methods.run import Run
from onnxplain.methods.tables import TableRow, listed
from onnxplain.methods.tensors import Array, Tensors

Scale = Annotated[
    float | list[float] | None,
    Doc(
        "by what a change of a column is divided before changes are added up, one number or one for each column. None: "
        "the median absolute deviation of the background, whose range is kept to; without a background the size of "
        "the value itself, 1 where that is 0."
    ),
]
Fixed = Annotated[list[int] | None, Doc("columns that may not change, counted from 0.")]
Whole = Annotated[list[int] | None, Doc("columns that hold whole numbers, counted from 0.")]
OneHot = Annotated[
    list[int] | None,
    Doc("a number for each column: those of one number are a one-hot code, of 0 none."),
]
Bound = Annotated[float | list[float] | None, Doc("of the values, one number or one for each column.")]
STRETCH = 1.1  # of all changes at first, so that one which another can make up for is taken back
PARTS = 32  # of a change, the smallest of which is taken at which the decision stays the other one
DIGITS = (2, 3, 4, 5, 6, 9)  # significant ones, of which a value gets as few as leave the decision the other one


class Neighbourhood:
    """The rows that a counterfactual may be.

    scale: see `Scale`. Raises UsageError for options that do not fit the columns.
    """

    def __init__(
        self, run: Run, table: TableRow, scale: float | Sequence[float] | None, fixed: Sequence[float] | None,
        whole: Sequence[float] | None, one_hot: Sequence[float] | None, low: float | Sequence[float] | None,
        high: float | Sequence[float] | None,
    ):  # fmt: skip
        self.table, x = table, table.row
        self.low, self.high = np.full(len(x), -np.inf), np.full(len(x), np.inf)
        self.scale = np.abs(x)
        if (background := run.background) is not None:
            rows = table.flat(background)
            deviation = np.nanmedian(np.abs(rows - np.nanmedian(rows, 0)), 0)
            self.scale = np.where(
                deviation > 0, deviation, np.nanstd(rows, 0)
            )  # 0: more than half of the rows are alike
            self.low, self.high = np.nanmin(rows, 0), np.nanmax(rows, 0)
        if scale is not None:
            self.scale = table.numbers(scale, "scale")
        self.scale = np.where(self.scale > 0, self.scale, 1.0)
        self.low = self.low if low is None else table.numbers(low, "low")
        self.high = self.high if high is None else table.numbers(high, "high")
        self.free, self.whole = ~table.columns(fixed, "fixed"), table.columns(whole, "whole")
        codes = table.numbers(0 if one_hot is None else one_hot, "one_hot")
        self.codes = [np.flatnonzero(codes == code) for code in np.unique(codes[codes > 0])]
        coded = {int(column) for code in self.codes for column in code}
        self.units = [np.array([n]) for n in range(len(x)) if n not in coded and self.free[n]]
        self.units += [code for code in self.codes if self.free[code].all()]

    def valid(self, rows: Array) -> Array:
        """The nearest rows that may be: within bounds, whole numbers and one-hot codes whole, fixed columns as in x."""
        x = self.table.row
        rows = np.where(self.whole, np.round(rows), rows)
        rows = np.clip(rows, np.minimum(self.low, x), np.maximum(self.high, x))
        for code in self.codes:
            rows[:, code] = np.eye(len(code))[rows[:, code].argmax(1)]
        moving = np.zeros(len(x), bool)
        moving[[column for unit in self.units for column in unit]] = True
        return np.where(moving, rows, x)

    def distances(self, rows: Array) -> Array:
        """Sum of |change| / scale, (S,)."""
        return np.asarray((np.abs(rows - self.table.row) / self.scale).sum(1))

    def sparse(self, row: Array, decision: Decision) -> Array:
        """A row that is decided as `row` is, with fewer and smaller changes of x.

        The smallest changes are taken back first, one column or code after the other, while the decision stays; what is
        left is made as small as it can be, column by column, and told in as few digits as can be.
        """
        x = self.table.row
        farther = self.valid((x + STRETCH * (row - x))[None])
        row = farther[0] if decision.reached(self.seen(farther))[0] else row
        for unit in sorted(self.units, key=lambda unit: float((np.abs(row - x) / self.scale)[unit].sum())):
            trial = row.copy()
            trial[unit] = x[unit]
            if (row != x)[unit].any() and decision.reached(self.seen(trial[None]))[0]:
                row = trial
        for unit in self.units:
            if len(unit) == 1 and row[unit[0]] != x[unit[0]]:
                row = self._smaller(row, int(unit[0]), decision)
        shorts = np.stack([self._short(row, digits) for digits in DIGITS])
        stay = decision.reached(self.seen(shorts))
        return np.asarray(shorts[stay.argmax()] if stay.any() else row)

    def _smaller(self, row: Array, column: int, decision: Decision) -> Array:
        """With the smallest change of one column at which the decision stays, among shares of it, cut finer twice."""
        start, change, low, high = self.table.row[column], row[column] - self.table.row[column], 0.0, 1.0
        for _ in range(2):
            shares = np.linspace(low, high, PARTS + 1)[1:]
            trials = np.repeat(row[None], PARTS, 0)
            trials[:, column] = start + shares * change
            stay = decision.reached(self.seen(trials))
            if not stay.any():
                break
            low, high = [low, *shares][stay.argmax()], shares[stay.argmax()]
            row = trials[stay.argmax()]
        return row

    def seen(self, rows: Array) -> Array:
        """Rows (S, columns) as whoever adds the answer, in the inputs' types, to x sees them."""
        change = self.valid(rows.copy()) - self.table.row
        return self.table.flat(self.table.like + self.table.points(change))

    def _short(self, row: Array, digits: int) -> Array:
        changed = row != self.table.row
        return np.array([float(f"{v:.{digits}g}") if change else v for v, change in zip(row, changed, strict=True)])

    def answer(self, run: Run, found: Array | None, decision: Decision, looked: str) -> Tensors:
        """The change of each column, and in words what to change and what the class then is.

        found: a row (columns,), None for none: then nothing changes, and that is said. looked: how far was looked.
        """
        x, names = self.table.row, self.table.names
        if decision.before in decision.goals:
            run.note(f"it is {decision.name(decision.before)} already: nothing has to change")
        elif found is None:
            wanted = " or ".join(decision.name(goal) for goal in decision.goals[:3])
            run.note(f"no counterfactual was found, so all changes are 0: nothing is {wanted} {looked}")
        else:
            row = self.seen(found[None])
            after = decision.name(int(decision.classes(row)[0]))
            change = row[0] - x
            largest = np.argsort(-np.abs(change) / self.scale, kind="stable")
            changes = [f"{names[n]} from {x[n]:.6g} to {row[0][n]:.6g}" for n in largest if change[n]]
            run.note(f"change {listed(changes)}: then it is {after}, not {decision.name(decision.before)}")
            return self.table.points(np.where(row != x, self.valid(found[None].copy()) - x, 0.0))  # none below rounding
        return self.table.points(np.zeros((1, len(x))))
