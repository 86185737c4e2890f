"""Random input for a model we know nothing about: what its declared shapes allow, likeliest first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxplain.runtime import Port

LENGTHS = (64, 32, 48, 224, 16, 8, 299, 512, 4, 1)  # tried in turn for axes without a number
BATCH = 2
ELEMENTS = 1 << 27, 1 << 24  # of all inputs of the first try, of later ones; random numbers take 16 bytes each
VOCABULARY = 2  # integers are 0 or 1 unless they pick rows of a table
TRANSPARENT = {"Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Transpose", "Slice", "Expand"}
DTYPES = {
    "float": np.float32,
    "double": np.float64,
    "float16": np.float16,
    "int64": np.int64,
    "int32": np.int32,
    "int16": np.int16,
    "int8": np.int8,
    "uint64": np.uint64,
    "uint32": np.uint32,
    "uint16": np.uint16,
    "uint8": np.uint8,
    "bool": np.bool_,
    "string": np.str_,
}


def candidates(model: ir.Model, ports: Sequence[Port]) -> Iterator[dict[str, np.ndarray]]:
    """Feeds to try in turn, each with the same random numbers for the same shape."""
    rows = {value.name: table_rows(value) for value in model.graph.inputs}
    seen: set[tuple[tuple[int, ...], ...]] = set()
    for shapes in _shapes(ports):
        key = tuple(shapes[port.name] for port in ports)
        if key in seen or sum(map(prod, key)) > ELEMENTS[bool(seen)]:
            continue
        seen.add(key)
        yield {port.name: _array(port, shapes[port.name], rows.get(port.name, VOCABULARY)) for port in ports}


def table_rows(value: ir.Value) -> int:
    """How many rows the smallest table has that an integer input picks from; 2 where it picks none."""
    found: list[int] = []
    pending, seen = [value], set()
    while pending:
        current = pending.pop()
        for node, index in current.uses():
            if node.op_type == "Gather" and index == 1:
                table, axis = node.inputs[0], node.attributes.get("axis")
                if table is not None and table.shape is not None and len(table.shape):
                    rows = table.shape[axis.as_int() if axis is not None else 0]
                    if isinstance(rows, int):
                        found.append(rows)
            elif node.op_type in TRANSPARENT and index == 0 and node not in seen:
                seen.add(node)
                pending.extend(node.outputs)
    return max(1, min(found)) if found else VOCABULARY


def _shapes(ports: Sequence[Port]) -> Iterator[dict[str, tuple[int, ...]]]:
    """Lengths for every axis that has none: the first is the batch, equal symbols are equal lengths."""
    for batch in (BATCH, 1, None):
        for length in LENGTHS:
            for channels in (None, 3, 1):
                for channel_axis in (1, -1) if channels is not None else (None,):
                    shapes, open_channels = {}, False
                    for port in ports:
                        shape = list(_numbers(port.shape, batch, length))
                        free = channel_axis is not None and len(shape) >= 3
                        if channels and channel_axis and free and not isinstance(port.shape[channel_axis], int):
                            shape[channel_axis] = channels
                            open_channels = True
                        shapes[port.name] = tuple(shape)
                    if channels is None or open_channels:
                        yield shapes


def _numbers(shape: Sequence[int | str | None], batch: int | None, length: int) -> Iterator[int]:
    for axis, dim in enumerate(shape):
        if isinstance(dim, int) and dim > 0:
            yield dim
        else:
            yield batch if axis == 0 and batch is not None else length


def _array(port: Port, shape: tuple[int, ...], rows: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    dtype: np.dtype[Any] = np.dtype(DTYPES.get(port.type.removeprefix("tensor(").removesuffix(")"), np.float32))
    if dtype.kind == "f":
        return np.asarray(0.5 * rng.standard_normal(shape), dtype)  # of shape () too, where numpy draws a plain number
    if dtype.kind == "U":
        return np.full(shape, "a", dtype=object)
    if dtype.kind == "b":
        return np.ones(shape, dtype)
    return rng.integers(0, min(rows, np.iinfo(dtype).max), shape).astype(dtype)
