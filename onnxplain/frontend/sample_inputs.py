"""Input for a model we know nothing about: what its declared shapes allow, likeliest first; and the same, resized."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from math import prod
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from onnxplain.cpu_session import Port
from onnxplain.errors import UsageError

LENGTHS = (64, 32, 48, 224, 16, 8, 299, 512, 4, 1)  # tried in turn for axes without a number
BATCH = 2
UNRANKED = (2, 4, 3, 1, 0)  # ranks tried for inputs without one
ELEMENTS = 1 << 27, 1 << 24  # of all inputs of the first try, of later ones; random numbers take 16 bytes each
VOCABULARY = 2  # integers are 0 or 1 unless they pick rows of a table
TRANSPARENT = {"Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Transpose", "Slice", "Expand"}
DTYPES = {
    "float": np.float32,
    "double": np.float64,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
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
STRETCHES = ((2, 3, 4, 5), (2,), (0.5,), (1.5,))  # times the first length: of the first, second … axis
MEANINGLESS = {"?", "*", "-1", "None", ""}  # what exporters write where they know nothing
Array = np.ndarray
Feeds = Mapping[str, Array]
Shape = tuple[int | str | None, ...]


def candidates(
    model: ir.Model,
    ports: Sequence[Port],
    sample: Feeds | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> Iterator[dict[str, Array]]:
    """Feeds to try in turn, each with the same random numbers for the same shape.

    sample: arrays that some or all inputs are given. shapes: those of other inputs. What they say of a symbol holds
    wherever it stands. Raises UsageError where they fit no input.
    """
    sample, shapes = sample or {}, shapes or {}
    declared: dict[str, Shape | None] = {port.name: port.shape for port in ports}
    declared |= {str(value.name): None for value in model.graph.inputs if value.shape is None}
    sizes = {**shapes, **{name: array.shape for name, array in sample.items()}}
    for name, size in sizes.items():
        _check(name, size, declared)
    bound = lengths_of({name: declared[name] for name in sizes}, sizes)
    rows = {value.name: table_rows(value) for value in model.graph.inputs}
    seen: set[tuple[tuple[int, ...], ...]] = set()
    unranked = [v for v in model.graph.inputs if v.shape is None and v.name not in sizes and v.name in declared]
    guesses = product(*(_guesses(value) for value in unranked))
    guessed = [{str(v.name): shape for v, shape in zip(unranked, guess, strict=True)} for guess in guesses]
    for chosen in (chosen for guess in guessed for chosen in _shapes([_shaped(port, guess) for port in ports], bound)):
        chosen |= {name: tuple(size) for name, size in sizes.items()}
        key = tuple(chosen[port.name] for port in ports)
        if key in seen or sum(map(prod, key)) > ELEMENTS[bool(seen)]:
            continue
        seen.add(key)
        yield {
            port.name: _cast(sample[port.name], port)
            if port.name in sample
            else _array(port, chosen[port.name], rows.get(port.name, VOCABULARY))
            for port in ports
        }


def declared_shapes(model: ir.Model, feeds: Feeds) -> dict[str, Shape]:
    """What the model says of the shapes of what it is fed; all axes are open where it says nothing."""
    return {
        str(value.name): (None,) * feeds[str(value.name)].ndim
        if value.shape is None
        else tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)
        for value in model.graph.inputs
        if value.name in feeds
    }


def lengths_of(declared: Mapping[str, Shape | None], sizes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """How long every open axis is: by its symbol, or by `<input>.<axis>` where it has none."""
    return {
        symbol(name, axis, dim): int(size)
        for name, shape in declared.items()
        for axis, (dim, size) in enumerate(zip(shape or (), sizes[name], strict=False))
        if not fixed(dim)
    }


def symbol(name: str, axis: int, dim: int | str | None) -> str:
    """The name of an open axis of an input."""
    return dim if isinstance(dim, str) and dim not in MEANINGLESS else f"{name}.{axis}"


def fixed(dim: int | str | None) -> bool:
    """Whether an axis has a number. 0 is one: an empty cache."""
    return isinstance(dim, int) and dim >= 0


def resized(feeds: Feeds, declared: Mapping[str, Shape], lengths: Mapping[str, int]) -> dict[str, Array]:
    """The same feeds with other lengths of open axes: what is there, repeated or cut.

    So they stay what the model takes (indices of a table, say). An empty axis grows by random numbers.
    """
    rng = np.random.default_rng(0)
    result = {}
    for name, array in feeds.items():
        for axis, dim in enumerate(declared.get(name, ())):
            if fixed(dim):
                continue
            size = lengths.get(symbol(name, axis, dim), array.shape[axis])
            if array.shape[axis]:
                array = np.take(array, np.arange(size) % array.shape[axis], axis)
            else:
                shape = (*array.shape[:axis], size, *array.shape[axis + 1 :])
                array = np.asarray(0.5 * rng.standard_normal(shape)).astype(array.dtype)
        result[name] = array
    return result


def stretched(feeds: Feeds, declared: Mapping[str, Shape]) -> Iterator[dict[str, Array]]:
    """Feeds with every open axis longer or shorter, no two alike where the model allows, to try in turn.

    They tell a length that is written in the model from one that only happened to be so in the first run.
    """
    known = lengths_of(declared, {name: array.shape for name, array in feeds.items()})
    batch = {symbol(name, 0, shape[0]) for name, shape in declared.items() if shape and not fixed(shape[0])}
    others = [name for name in known if name not in batch]
    for factors in STRETCHES:
        longer = {
            name: max(1, round((known[name] or 1) * f)) for name, f in zip(others, factors * len(others), strict=False)
        }
        for rows in (1, 0):
            lengths = {**{name: known[name] + rows for name in batch}, **longer}
            if known and lengths != known:
                yield resized(feeds, declared, lengths)


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


def _guesses(value: ir.Value) -> list[Shape]:
    """Shapes to try for an input that is declared without a rank, that of the layer that reads it first."""
    found: list[Shape] = []
    for node, index in value.uses():
        weight = node.inputs[1] if len(node.inputs) > 1 else None
        sizes = [size for size in weight.shape if isinstance(size, int)] if weight is not None and weight.shape else []
        group, transposed = node.attributes.get("group"), node.attributes.get("transB")
        if index == 0 and node.op_type == "Conv" and len(sizes) > 2:
            channels = sizes[1] * (group.as_int() if group is not None else 1)
            found.append((None, channels, *(None for _ in sizes[2:])))
        elif index == 0 and node.op_type in ("MatMul", "Gemm") and len(sizes) == 2:
            found.append((None, sizes[1 if transposed is not None and transposed.as_int() else 0]))
    return [*found, *((None,) * rank for rank in UNRANKED)]


def _shaped(port: Port, guess: Mapping[str, Shape]) -> Port:
    return replace(port, shape=guess[port.name]) if port.name in guess else port


def _check(name: str, size: Sequence[int], declared: Mapping[str, Shape | None]) -> None:
    """A given array or shape belongs to an input and fits its declaration."""
    if name not in declared:
        raise UsageError(f"the model has no input {name!r}; it has {', '.join(map(repr, declared))}.")
    shape = declared[name]
    if shape is None:
        return
    if len(size) != len(shape) or any(fixed(dim) and dim != n for dim, n in zip(shape, size, strict=False)):
        raise UsageError(f"the input {name!r} is declared as {list(shape)}; {list(size)} does not fit.")


def _cast(array: Array, port: Port) -> Array:
    """A given array in the input's type: float64 becomes float32, but 0.5 no integer."""
    wanted = np.dtype(DTYPES.get(port.type.removeprefix("tensor(").removesuffix(")"), array.dtype))
    if wanted.kind == "U" or array.dtype == wanted:
        return array
    if not np.can_cast(array.dtype, wanted, "same_kind"):
        raise UsageError(f"the input {port.name!r} takes {wanted}; the sample has {array.dtype}.")
    return array.astype(wanted)


def _shapes(ports: Sequence[Port], bound: Mapping[str, int]) -> Iterator[dict[str, tuple[int, ...]]]:
    """Lengths for every axis that has none: the first is the batch, equal symbols are equal lengths."""
    first = {symbol(port.name, 0, port.shape[0]) for port in ports if port.shape and not fixed(port.shape[0])}
    for all_equal in (False, True):
        for length in LENGTHS:
            for batch in (BATCH, 1) if not all_equal else (length,):
                known = {**dict.fromkeys(first, batch), **bound}
                for channels in (None, 3, 1):
                    for channel_axis in (1, -1) if channels is not None else (None,):
                        shapes, open_channels = {}, False
                        for port in ports:
                            shape = [_length(port, axis, dim, known, length) for axis, dim in enumerate(port.shape)]
                            if channels and channel_axis and len(shape) >= 3 and not fixed(port.shape[channel_axis]):
                                shape[channel_axis] = channels
                                open_channels = True
                            shapes[port.name] = tuple(shape)
                        if channels is None or open_channels:
                            yield shapes


def _length(port: Port, axis: int, dim: int | str | None, known: Mapping[str, int], length: int) -> int:
    """Of one axis; exporters also write sums: "past_length + 1"."""
    if isinstance(dim, int) and dim >= 0:
        return dim
    name = symbol(port.name, axis, dim)
    if name in known:
        return known[name]
    parts = [part.strip() for part in name.split("+")]
    return sum(int(part) if part.isdigit() else known.get(part, length) for part in parts) if all(parts) else length


def _array(port: Port, shape: tuple[int, ...], rows: int) -> Array:
    rng = np.random.default_rng(0)
    dtype: np.dtype[Any] = np.dtype(DTYPES.get(port.type.removeprefix("tensor(").removesuffix(")"), np.float32))
    if dtype.kind == "f" or dtype == ml_dtypes.bfloat16:
        return np.asarray(0.5 * rng.standard_normal(shape)).astype(dtype)  # of shape () too, where it is a plain number
    if dtype.kind == "U":
        return np.full(shape, "a", dtype=object)
    if dtype.kind == "b":
        return np.ones(shape, dtype)
    return np.asarray(rng.integers(0, min(rows, np.iinfo(dtype).max), shape)).astype(dtype)
