"""Shapes and types as the run shows them, where inference is silent or wrong.

Derivatives trust shapes. onnx's inference is wrong about some (ConvTranspose with SAME and output_padding, a pooling
window larger than its input), and knows nothing of onnxruntime's own ops. The run has the last word.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxplain.errors import Expired, UnsupportedModel
from onnxplain.frontend.instrumented import InstrumentedModel
from onnxplain.frontend.passes.shapes import refine
from onnxplain.frontend.passes.symbolic_dims import Product
from onnxplain.frontend.sample_inputs import declared_shapes, lengths_of, stretched
from onnxplain.graph.shape_rules import Dim

ROUNDS = 8  # corrections that bring others to light
SHOWN = 3  # corrections told in the notes
UNFORESEEN = {"NonZero", "Compress", "Unique", "NonMaxSuppression", "Loop", "If", "Scan", "Range"}  # lengths are data
Sizes = Mapping[str, tuple[int, ...]]


@dataclass
class ObservedRun:
    """One run: how long the open axes of the inputs were, and every tensor's shape."""

    lengths: dict[str, int]
    shapes: Sizes


def correct_shapes(
    model: ir.Model, instrumented: InstrumentedModel, feeds: Mapping[str, np.ndarray], shapes: Sizes, notes: list[str]
) -> None:
    """Give every tensor a type and a shape that the run does not contradict.

    A number that it contradicts is corrected; a formula becomes a symbol of its own. A second run, every open axis of
    another length, tells a literal from a coincidence. It costs only models that need it.
    """
    for value in _values(model):
        if value.type is None and value.name in instrumented.types:
            value.type = instrumented.types[value.name]
    declared = declared_shapes(model, feeds)
    runs = [ObservedRun(lengths_of(declared, {name: array.shape for name, array in feeds.items()}), shapes)]
    wrong = _wrong(model, runs[:1])
    if not wrong:
        return
    if other := _again(instrumented, feeds, declared):
        runs.append(other)
    unforeseen = _unforeseen(model)
    pinned: dict[ir.Value, list[Dim]] = {}
    before = {value: f"{value.shape}" for value in _values(model) if value.shape is not None}
    for _ in range(ROUNDS):
        first = {value: axes for value, axes in wrong.items() if not _behind(value, wrong)}
        for value, axes in first.items():
            pinned[value] = _corrected(value, axes, runs, bool(_open_inputs(declared)), value in unforeseen)
        _propagate(model, pinned)
        wrong = _wrong(model, runs)
        if not wrong:
            break
    for value, axes in wrong.items():
        value.shape = ir.Shape(_corrected(value, axes, runs, bool(_open_inputs(declared)), value in unforeseen))
    corrections = [
        f"{value.name} ({_op_type(value)}) {before[value]} by inference, {ir.Shape(shape)} in the run"
        for value, shape in pinned.items()
        if value in before
    ]
    if corrections:
        more = f", and {len(corrections) - SHOWN} more" if len(corrections) > SHOWN else ""
        notes.append(f"shapes are taken from the run: {'; '.join(corrections[:SHOWN])}{more}")


def _open_inputs(declared: Mapping[str, Sequence[Dim]]) -> list[str]:
    """Inputs with an axis that has no number."""
    return [name for name, shape in declared.items() if any(not isinstance(dim, int) for dim in shape)]


def _values(model: ir.Model) -> list[ir.Value]:
    return [value for node in model.graph for value in node.outputs if value.name]


def _again(
    instrumented: InstrumentedModel, feeds: Mapping[str, np.ndarray], declared: Mapping[str, tuple[Dim, ...]]
) -> ObservedRun | None:
    """A run with other lengths, where there is one."""
    for other in stretched(feeds, declared):
        try:
            _, shapes = instrumented.run(other)
        except (Expired, UnsupportedModel):
            continue
        return ObservedRun(lengths_of(declared, {name: array.shape for name, array in other.items()}), shapes)
    return None


def _wrong(model: ir.Model, runs: Sequence[ObservedRun]) -> dict[ir.Value, list[int] | None]:
    """Values whose shape a run contradicts, with the axes; None for all axes: the rank is unknown or another."""
    wrong: dict[ir.Value, list[int] | None] = {}
    for run in runs:
        known = dict(run.lengths)
        for value in _values(model):
            size = run.shapes.get(value.name or "")
            if size is None or not isinstance(value.type, ir.TensorType):
                continue
            if value.shape is None or len(value.shape) != len(size):
                wrong[value] = None
                continue
            axes = [axis for axis, (dim, n) in enumerate(zip(value.shape, size, strict=True)) if _off(dim, n, known)]
            if axes and wrong.get(value, axes) is not None:
                wrong[value] = sorted({*axes, *(wrong.get(value) or [])})
    return wrong


def _off(dim: int | ir.SymbolicDim, size: int, known: dict[str, int]) -> bool:
    """Whether a length contradicts a dimension. A symbol met for the first time takes the length it has here."""
    if isinstance(dim, int):
        return dim != size
    if dim.value is None:
        return False
    product = Product.parse(dim.value)
    unknown = [name for name in product.symbols if name not in known]
    if len(unknown) > 1:
        return False
    rest = product.number * int(np.prod([known[name] for name in product.symbols if name in known], dtype=np.int64))
    if not unknown:
        return rest != size
    if rest and size % rest:
        return True
    if rest:
        known[unknown[0]] = size // rest
    return False


def _corrected(
    value: ir.Value, axes: Sequence[int] | None, runs: Sequence[ObservedRun], any_open: bool, data: bool
) -> list[Dim]:
    """The shape by the runs: a number where it is one in every run, an input's symbol where it always is that long."""
    name = value.name or ""
    sizes = [run.shapes[name] for run in runs if name in run.shapes]
    if any(len(size) != len(sizes[0]) for size in sizes):
        return [f"{name}.{axis}" for axis in range(len(sizes[0]))]
    before = [dim if isinstance(dim, int) else dim.value for dim in value.shape] if value.shape is not None else []
    result: list[Dim] = []
    for axis in range(len(sizes[0])):
        if axes is not None and axis not in axes:
            result.append(before[axis])
            continue
        seen = [size[axis] for size in sizes]
        matching = [
            symbol
            for symbol in runs[0].lengths
            if len(seen) > 1 and all(run.lengths.get(symbol) == n for run, n in zip(runs, seen, strict=True))
        ]
        if len(set(seen)) == 1 and not data and (len(seen) > 1 or not any_open):
            result.append(seen[0])
        elif len(matching) == 1 and len(set(seen)) > 1:
            result.append(matching[0])
        else:
            result.append(f"{name}.{axis}")
    return result


def _unforeseen(model: ir.Model) -> set[ir.Value]:
    """Values whose lengths may depend on the numbers in the input, so that two runs prove nothing."""
    unforeseen: set[ir.Value] = set()
    for node in model.graph:
        if node.op_type in UNFORESEEN or any(value in unforeseen for value in node.inputs):
            unforeseen.update(node.outputs)
    return unforeseen


def _propagate(model: ir.Model, pinned: Mapping[ir.Value, Sequence[Dim]]) -> None:
    """Infer again what comes after the corrected tensors."""
    touched = set(pinned)
    for node in model.graph:
        if any(value in touched for value in node.inputs):
            for value in node.outputs:
                if value not in pinned:
                    value.shape = None
                    touched.add(value)
    refine(model, pinned)


def _behind(value: ir.Value, others: Mapping[ir.Value, object]) -> bool:
    """Whether one of the others is an input of the node that makes a value: it may be wrong for that alone."""
    node = value.producer()
    return node is not None and any(entry in others for entry in node.inputs if entry is not None)


def _op_type(value: ir.Value) -> str:
    node = value.producer()
    return node.op_type if node is not None else "input"
