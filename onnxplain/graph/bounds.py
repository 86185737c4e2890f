"""Where a layer's input lies when the model's input lies in [low, high]: bounds carried through the steps in between.

A model may normalise its picture itself: Sub, Div, BatchNormalization, Transpose before the first convolution. Bounds
are known in the unit of the model's input, and the box rule wants them in the layer's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxplain.errors import UnsupportedOp, UsageError
from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.node import dims, rank

MONOTONE = {"Add", "Sub", "Mul", "Div", "Neg", "BatchNormalization", "Relu", "Clip", "Transpose"}
UNCHANGED = {"Identity", "Cast", "Dropout", "Pad"}  # a Pad's border counts as the layer's own padding does


def steps_from_input(op: Backward, value: ir.Value) -> list[ir.Node] | None:
    """The nodes between an input of the model and a tensor, where each is monotone in it; None for anything else."""
    found: list[ir.Node] = []
    while not value.is_graph_input():
        node = value.producer()
        if node is None or node.domain != "" or node.op_type not in MONOTONE | UNCHANGED:
            return None
        moving = [operand for operand in node.inputs if operand is not None and not op.is_constant(operand)]
        if len(moving) != 1 or (node.op_type == "Div" and moving[0] is not node.inputs[0]):
            return None
        found.append(node)
        value = moving[0]
    return found[::-1] if value.shape is not None else None


def carried(
    op: Backward, value: ir.Value, axis: int, low: Sequence[float], high: Sequence[float]
) -> tuple[ir.Value, ir.Value]:
    """Bounds of `value`, laid out so that they broadcast against it, from those of the model's input.

    axis: of the channels in `value`; low, high: one number, or one a channel. Emitted from constants alone. Raises
    UnsupportedOp where something lies between that is not monotone.
    """
    nodes = steps_from_input(op, value)
    if nodes is None:
        raise UnsupportedOp(
            f"rule box: the bounds of the model's input cannot be carried to {value.name}. Give them in the unit of "
            f"that tensor: --rule first=box(low=…,high=…)."
        )
    for node in reversed(nodes):
        if node.op_type == "Transpose":
            perm = node.attributes.get("perm")
            axis = perm.as_ints()[axis] if perm is not None else rank(value) - 1 - axis
    source = next((v for v in nodes[0].inputs if v is not None and not op.is_constant(v)), value) if nodes else value
    ends = [bound(op, source, axis, numbers) for numbers in (low, high)]
    for node in nodes:
        if node.op_type not in UNCHANGED:
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
