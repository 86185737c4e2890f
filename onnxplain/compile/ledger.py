"""Where relevance went, node by node: what came in, what went on, what was absorbed on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.node import Node, rank
from onnxplain.graph.relevance import Relevance, values
from onnxplain.graph.walk import Rule
from onnxplain.rules import RuleCall
from onnxplain.vjp import lookup

COLUMNS = ("in", "out", "bias", "stabiliser", "padding", "rule")
LEDGER = "onnxplain.ledger"


def remainder(node: Node, rule: Rule) -> str | None:
    """The column of what a step neither passes on nor books. None: a rule, which books all it takes.

    What moves values and weighs none loses what falls on padding, or on a constant that it joins (bias). A derivative
    in a rule's place, and the finish of a token, conserve nothing.
    """
    entry = lookup(node)
    if isinstance(rule, RuleCall):
        return None
    if rule != entry.rule or not entry.routes(node):
        return "rule"
    return "padding" if entry.pads else "bias"


@dataclass
class Ledger:
    """Collects one row a node while the walk goes; `emit` makes the (streams, nodes, columns) float64 output."""

    op: Backward
    streams: ir.Value  # any backward tensor's per-stream shape comes from the seed
    axis: int | None
    rows: list[str] = field(default_factory=list)
    _parts: list[ir.Value] = field(default_factory=list)

    def begin(self) -> None:
        """Before the rule of a node runs."""
        self.op.absorbed = {}

    def add(self, node: Node, rule: Rule, outputs: list[Relevance | None], inputs: list[Relevance | None]) -> None:
        """After it: sum what arrived, what left, what was absorbed."""
        booked = self.op.absorbed or {}
        sums = {column: self._sum(amounts, [node.y] * len(amounts)) for column, amounts in booked.items()}
        sums["in"] = self._sum(
            [*values(outputs), *booked.get("in", [])], [*node.outputs, *[node.y] * len(booked.get("in", []))]
        )
        sums["out"] = self._sum(values(inputs), node.inputs)
        column = remainder(node, rule)
        if column is not None:
            sums[column] = self.op.Sub(sums["in"], sums["out"])
        self.rows.append(node.name or str(node.y.name))
        self._parts.append(self.op.Concat(*(sums[c] if c in sums else self._sum([], []) for c in COLUMNS), axis=1))
        self.op.absorbed = {}

    def _sum(self, amounts: Sequence[ir.Value | None], forward: Sequence[ir.Value | None]) -> ir.Value:
        """Sum per stream, in float64, shape (streams, 1)."""
        op, total = self.op, None
        for value, tensor in zip(amounts, forward, strict=True):
            if value is None or tensor is None:
                continue
            wide = op.Cast(value, to=int(ir.DataType.DOUBLE))
            axis = op.stream_axis(tensor)
            if axis is not None:
                axis -= rank(tensor) - rank(value)  # an amount may lack leading axes
            if axis is None or axis < 0:
                summed = op.Reshape(op.ReduceSum(wide, keepdims=0), op.ints([1, 1]))
            else:
                others = [i for i in range(rank(value)) if i != axis]
                summed = op.ReduceSum(wide, op.ints(others), keepdims=0) if others else wide
                summed = op.Reshape(summed, op.ints([-1, 1]))
            total = summed if total is None else op.Add(total, summed)
        zero = op.constant([[0.0]], ir.DataType.DOUBLE)
        if self.axis is None:
            return total if total is not None else zero
        count = op.once(("stream count",), lambda: op.Concat(op.size(self.streams, self.axis), op.ints([1]), axis=0))  # type: ignore[arg-type]
        return op.Expand(total if total is not None else zero, count)  # type: ignore[no-any-return]

    def emit(self) -> ir.Value:
        """The output `onnxplain.ledger`."""
        op = self.op
        if not self._parts:
            return op.Expand(op.constant([[[0.0]]], ir.DataType.DOUBLE), op.ints([1, 0, len(COLUMNS)]))  # type: ignore[no-any-return]
        rows = [op.Unsqueeze(part, op.ints([1])) for part in self._parts]
        return op.Concat(*rows, axis=1) if len(rows) > 1 else rows[0]  # type: ignore[no-any-return]
