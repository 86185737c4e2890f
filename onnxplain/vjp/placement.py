"""Entries put back where they came from: a block between zeros, rows at positions, sums at indices."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.node import dims, ints
from onnxplain.vjp.lengths import scalar


def between(op: Backward, g: ir.Value, x: ir.Value, axis: int, start: int) -> ir.Value:
    """`g` as the entries of x from `start` on along one axis, zeros around. A start below 0 counts from the end."""
    length, count = op.size(x, axis), op.size(g, axis)
    known, taken = ints(length), ints(count)
    if start >= 0 or known is not None:
        at = start if start >= 0 else max(start + known[0], 0)  # type: ignore[index]
        before = op.ints([at if known is None else min(at, known[0])])
    else:
        before = op.Max(op.Add(length, op.ints([start])), op.ints([0]))
    first = ints(before)
    if first is not None and known is not None and taken is not None:
        after = known[0] - first[0] - taken[0]
        if not first[0] and not after:
            return g
        around = op.ints([first[0], after])
    else:
        around = op.Concat(before, op.Sub(op.Sub(length, count), before), axis=0)
    value: ir.Value = op.Pad(g, around, None, [axis])
    return op.reshaped(value, [d if i != axis else dims(x)[axis] for i, d in enumerate(dims(g))])


def at_positions(op: Backward, g: ir.Value, x: ir.Value, axis: int, positions: np.ndarray | ir.Value) -> ir.Value:
    """`g` as entries of x at distinct positions along one axis, zeros elsewhere.

    No scatter: entry i of x is entry inverse[i] of g, or of a row of zeros put behind g. positions: (K,) int64, from 0.
    """
    length, count = dims(x)[axis], op.size(g, axis)
    with_zeros = op.Pad(g, [0, 1], None, [axis])
    if isinstance(positions, np.ndarray) and isinstance(length, int):
        inverse = np.full(length, len(positions), dtype=np.int64)
        inverse[positions] = np.arange(len(positions))
        return op.Gather(with_zeros, op.ints([int(i) for i in inverse]), axis=axis)  # type: ignore[no-any-return]
    if isinstance(positions, np.ndarray):
        positions = op.ints([int(i) for i in positions])
    numbers = op.Range(scalar(op, 0), op.Squeeze(count, [0]), scalar(op, 1))
    places = op.ScatterElements(op.Expand(count, op.size(x, axis)), positions, numbers, axis=0)
    value: ir.Value = op.Gather(with_zeros, places, axis=axis)
    return op.reshaped(value, [d if i != axis else dims(x)[axis] for i, d in enumerate(dims(g))])


def scattered(op: Backward, g: ir.Value, zeros: ir.Value, index: ir.Value, axis: int) -> ir.Value:
    """Entries of `g` added up where `index` (any shape that stretches to g's) says, along one axis."""
    if dims(index) != dims(g) or not all(isinstance(d, int) for d in dims(g)):
        index = op.Expand(index, op.shape(g))
    value: ir.Value = op.ScatterElements(zeros, index, g, axis=axis, reduction="add")
    return value
