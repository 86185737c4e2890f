"""Where a layer's input lies when the model's input lies in [low, high]: bounds carried through the steps in between.

A model may normalise its picture itself: Sub, Div, BatchNormalization, Transpose before the first convolution. Bounds
are known in the unit of the model's input, and the box rule wants them in the layer's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxplain.errors import UnsupportedOp, UsageError
from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.node import dims, rank


@dataclass(frozen=True)
class BoundStep:
    """How the bounds of the one moving input of an op go through it.

    changes: the op is monotone, and its ends are those of its input put through it; else they stay. operand: the index
    of the only input it is monotone in; None: any. axis: (node, axis of the channels in its output) -> that in its
    input.
    """

    changes: bool = True
    operand: int | None = None
    axis: Callable[[ir.Node, int], int] = lambda node, axis: axis


def _before_transpose(node: ir.Node, axis: int) -> int:
    perm = node.attributes.get("perm")
    return perm.as_ints()[axis] if perm is not None else rank(node.outputs[0]) - 1 - axis


MONOTONE = BoundStep()
NUMERATOR = BoundStep(operand=0)
UNCHANGED = BoundStep(changes=False)  # a Pad among them: its border counts as the layer's own padding does
TRANSPOSED = BoundStep(axis=_before_transpose)
BoundSteps = Mapping[str, BoundStep]
"""By op type, as registered."""


def steps_from_input(op: Backward, value: ir.Value, steps: BoundSteps) -> list[ir.Node] | None:
    """The nodes between an input of the model and a tensor, where each is monotone in it; None for anything else."""
    found: list[ir.Node] = []
    while not value.is_graph_input():
        node = value.producer()
        step = steps.get(node.op_type) if node is not None and node.domain == "" else None
        if node is None or step is None:
            return None
        moving = [operand for operand in node.inputs if operand is not None and not op.is_constant(operand)]
        if len(moving) != 1 or (step.operand is not None and moving[0] is not node.inputs[step.operand]):
            return None
        found.append(node)
        value = moving[0]
    return found[::-1] if value.shape is not None else None


def carried(
    op: Backward, value: ir.Value, axis: int, low: Sequence[float], high: Sequence[float], steps: BoundSteps
) -> tuple[ir.Value, ir.Value]:
    """Bounds of `value`, laid out so that they broadcast against it, from those of the model's input.

    axis: of the channels in `value`; low, high: one number, or one a channel. Emitted from constants alone. Raises
    UnsupportedOp where something lies between that is not monotone.
    """
    nodes = steps_from_input(op, value, steps)
    if nodes is None:
        raise UnsupportedOp(
            f"rule box: the bounds of the model's input cannot be carried to {value.name}. Give them in the unit of "
            f"that tensor: --rule first=box(low=…,high=…)."
        )
    for node in reversed(nodes):
        axis = steps[node.op_type].axis(node, axis)
    source = next((v for v in nodes[0].inputs if v is not None and not op.is_constant(v)), value) if nodes else value
    ends = [bound(op, source, axis, numbers) for numbers in (low, high)]
    for node in nodes:
        if steps[node.op_type].changes:
            ends = [_again(op, node, end) for end in ends]
    return op.Min(*ends), op.Max(*ends)


def bound(op: Backward, value: ir.Value, axis: int, numbers: Sequence[float]) -> ir.Value:
    """One number, or one a channel, so that it broadcasts against a tensor."""
    shape = [1] * rank(value)
    if len(numbers) > 1:
        if dims(value)[axis] != len(numbers):
            raise UsageError(
                f"rule box: {len(numbers)} bounds for {value.name}, which has {dims(value)[axis]} channels."
            )
        shape[axis] = len(numbers)
    dtype = op.real(value).dtype
    assert dtype is not None
    return op.constant(np.asarray(numbers, dtype=np.float64).reshape(shape), dtype)


def _again(op: Backward, node: ir.Node, end: ir.Value) -> ir.Value:
    operands = [None if v is None else op.real(v) if op.is_constant(v) else end for v in node.inputs]
    value: ir.Value = op.emit(node.op_type, operands, 1, {name: a.value for name, a in node.attributes.items()})
    return value
