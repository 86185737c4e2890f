"""Where relevance went, node by node: what came in, what went on, what was absorbed on the way."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx_ir as ir

from onnxplain.graph.backward import Backward
from onnxplain.graph.node import Node, is_float, rank
from onnxplain.graph.walk import Gradient
from onnxplain.vjp import lookup

COLUMNS = ("in", "out", "bias", "stabiliser", "padding")
NAME = "onnxplain.ledger"


PADDING = ("Pad", "CenterCropPad")


def drops(node: Node, op: Backward) -> bool:
    """Whether the node moves values without weighing them and takes in some that are not the input's."""
    entry = lookup(node)
    constants = any(value is not None and is_float(value) and op.is_constant(value) for value in node.inputs[1:])
    first = node.inputs[0]
    constants |= first is not None and is_float(first) and op.is_constant(first)
    return entry.kind == "routing" and (node.op_type in PADDING or constants)


@dataclass
class Ledger:
    """Collects one row a node while the walk goes; `emit` makes the (streams, nodes, 5) float64 output."""

    op: Backward
    streams: ir.Value  # any backward tensor's per-stream shape comes from the seed
    axis: int | None
    rows: list[str] = field(default_factory=list)
    _parts: list[ir.Value] = field(default_factory=list)

    def begin(self) -> None:
        """Before the rule of a node runs."""
        self.op.absorbed = {}

    def add(self, node: Node, outputs: list[Gradient], inputs: list[Gradient]) -> None:
        """After it: sum what arrived, what left, what was absorbed."""
        booked = self.op.absorbed or {}
        if drops(node, self.op):
            self._book_rest(node, outputs, inputs)
            return
        columns = []
        moved = {"in": (outputs, node.outputs), "out": (inputs, node.inputs)}
        for column in COLUMNS:
            amounts, tensors = moved.get(column, ([], ()))
            more: list[Gradient] = list(booked.get(column, []))
            columns.append(self._sum([*amounts, *more], [*tensors, *[node.y] * len(more)]))
        self.rows.append(node.name or str(node.y.name))
        self._parts.append(self.op.Concat(*columns, axis=1))
        self.op.absorbed = {}

    def _book_rest(self, node: Node, outputs: list[Gradient], inputs: list[Gradient]) -> None:
        """A node that only moves values: what does not come out again fell on padding, or on a constant it joins."""
        op = self.op
        arrived, left = self._sum(outputs, node.outputs), self._sum(inputs, node.inputs)
        zero = op.Mul(arrived, 0.0)
        rest = op.Sub(arrived, left)
        padding = node.op_type in PADDING
        columns = [arrived, left, zero if padding else rest, zero, rest if padding else zero]
        self.rows.append(node.name or str(node.y.name))
        self._parts.append(op.Concat(*columns, axis=1))
        op.absorbed = {}

    def _sum(self, values: list[Gradient], forward: object) -> ir.Value:
        """Sum per stream, in float64, shape (streams, 1)."""
        op, total = self.op, None
        for value, tensor in zip(values, forward, strict=False):  # type: ignore[call-overload]
            if value is None:
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
            return op.Expand(op.constant([[[0.0]]], ir.DataType.DOUBLE), op.ints([1, 0, 5]))  # type: ignore[no-any-return]
        rows = [op.Unsqueeze(part, op.ints([1])) for part in self._parts]
        return op.Concat(*rows, axis=1) if len(rows) > 1 else rows[0]  # type: ignore[no-any-return]
