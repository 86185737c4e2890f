"""The seeds of a compiled graph: float tensors, or class indices that become one-hot tensors inside."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxplain.errors import UnsupportedModel, UsageError
from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.node import dims, static


class Seeds:
    """Declares the seed inputs of a graph. kind: `tensor` or `index`; taken: names of the model's own tensors.

    names: seed input → explained tensor.
    """

    def __init__(self, op: Backward, kind: str, taken: Sequence[str]) -> None:
        self.op, self.kind, self.taken = op, kind, set(taken)
        self.names: dict[str, str] = {}

    def declare(self, y: ir.Value) -> tuple[ir.Value, ir.Value | None]:
        """The seed of one explained tensor, and for `--seed index` which streams have an index out of range."""
        op = self.op
        dtype = ir.DataType.DOUBLE if y.dtype == ir.DataType.DOUBLE else ir.DataType.FLOAT
        if self.kind == "tensor":
            return self._exact(self._input(f"{y.name}.seed", op.stream_shape(y), dtype), y), None
        shape = op.stream_shape(y)
        if not shape:
            raise UsageError(f"--seed index: {y.name} has rank 0, there is nothing to index. Use --seed tensor.")
        count = len(shape) - 1
        if count == 0:
            raise UsageError(f"--seed index: {y.name} has no axis besides the batch. Use --seed tensor.")
        target = self._input(f"{y.name}.target", shape[:1] if count == 1 else [shape[0], count], ir.DataType.INT64)
        if count == 1:
            target = op.Unsqueeze(target, op.ints([1]))
        hits: ir.Value | None = None
        valid: ir.Value | None = None
        for axis in range(1, len(shape)):
            index = op.Slice(target, op.ints([axis - 1]), op.ints([axis]), op.ints([1])) if count > 1 else target
            length = shape[axis]
            size = op.ints([length]) if isinstance(length, int) else op.size(y, axis)
            inside = op.And(op.GreaterOrEqual(index, op.ints([0])), op.Less(index, size))
            valid = inside if valid is None else op.And(valid, inside)
            if isinstance(length, int):
                positions = op.constant(np.arange(length, dtype=np.int64), ir.DataType.INT64)
            else:
                scalar = op.Squeeze(size, op.ints([0]))
                positions = op.Range(op.constant(0, ir.DataType.INT64), scalar, op.constant(1, ir.DataType.INT64))
            hit = op.Equal(index, op.Unsqueeze(positions, op.ints([0])))  # (streams, length)
            spread = [i for i in range(1, len(shape)) if i != axis]
            hit = op.Unsqueeze(hit, op.ints(spread)) if spread else hit
            hits = hit if hits is None else op.And(hits, hit)
        seed = op.Cast(hits, to=int(dtype))
        op.reshaped(seed, shape)
        return self._exact(seed, y), op.Not(valid)

    def _exact(self, seed: ir.Value, y: ir.Value) -> ir.Value:
        """Where streams are not free, refuse a seed of another shape when it comes: onnxruntime compares no symbols."""
        if self.op.facts.free or static(y) is not None:
            return seed
        return self.op.reshaped(self.op.Reshape(seed, self.op.Shape(y)), dims(y))

    def _input(self, name: str, shape: Sequence[int | str | None], dtype: ir.DataType) -> ir.Value:
        if name in self.taken:
            raise UnsupportedModel(
                f"the model has a tensor named {name!r}, which the compiled graph needs for its seed. Rename it."
            )
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
        self.op.graph.inputs.append(value)
        self.names[name] = name.rsplit(".", 1)[0]
        return value
