"""Lengths and positions as integer vectors: constants where they are known, nodes elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.node import dims, ints

INT64 = ir.DataType.INT64
END = 2**63 - 1  # "to the end" in a Slice


def joined(op: Backward, parts: Sequence[ir.Value]) -> ir.Value:
    """Integer vectors one after the other: a constant where all are."""
    known = [ints(part) for part in parts]
    if all(part is not None for part in known):
        return op.ints([length for part in known for length in part or []])
    value: ir.Value = op.Concat(*parts, axis=0)
    return value


def total_length(op: Backward, parts: Sequence[ir.Value]) -> ir.Value:
    """Sum of one-element integer vectors: a constant where all are."""
    known = [ints(part) for part in parts]
    if all(part is not None for part in known):
        return op.ints([sum(part[0] for part in known if part)])
    return parts[0] if len(parts) == 1 else op.ReduceSum(op.Concat(*parts, axis=0), [0], keepdims=1)


def subtract(op: Backward, length: ir.Value, less: int) -> ir.Value:
    """A length less a number: a constant where the length is."""
    known = ints(length)
    value: ir.Value = op.Sub(length, op.ints([less])) if known is None else op.ints([known[0] - less])
    return value


def scalar(op: Backward, number: int) -> ir.Value:
    """An int64 of rank 0."""
    return op.constant(np.array(number, dtype=np.int64), INT64)


def volume(op: Backward, value: ir.Value, start: int, end: int) -> ir.Value:
    """Number of entries over the axes from `start` to `end`, as an int64 vector of one element."""
    lengths = dims(value)[start:end]
    known = [length for length in lengths if isinstance(length, int)]
    if len(known) == len(lengths):
        return op.ints([int(np.prod(known, dtype=np.int64))])
    value = op.Shape(value, start=start, end=end)
    return op.ReduceProd(value, [0], keepdims=1) if len(lengths) > 1 else value
