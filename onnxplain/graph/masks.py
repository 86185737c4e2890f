"""Which tensors may hold -inf, or the lowest float, by design: attention masks.

They are made from huge constants and go through elementwise steps and copies until a softmax swallows them. A rule that
divides by a sum has to know: the sum of a score and -inf has no shares.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxplain.graph.node import BIG, Node, constant, is_float

HUGE = 1e30  # nothing a network computes; exporters write -inf, the lowest float32 (-3.4e38), and for float16 -65504
HALF = 6e4
CARRIES = {
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Sum",
    "Neg",
    "Max",
    "Min",
    "Where",
    "Cast",
    "Identity",
    "Expand",
    "ConstantOfShape",
}
CARRIES |= {
    "Reshape",
    "Flatten",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "Concat",
    "Split",
    "Slice",
    "Gather",
    "Tile",
    "Pad",
}
CARRIES |= {"Trilu", "ScatterND", "ScatterElements"}

SUMS = ("Add", "Sum")  # behind a mask's own sum no mask is meant


def masks(nodes: Sequence[Node], inputs: Sequence[ir.Value]) -> set[ir.Value]:
    """Tensors that a huge constant reaches through steps that carry it; and inputs, which may be fed as masks."""
    found: set[ir.Value] = set()
    fed = {value for value in inputs if is_float(value)}
    for node in nodes:
        if node.op_type not in CARRIES:
            continue
        if _fills(node) or any(value in found or _huge(value) for value in node.inputs):
            found.update(node.outputs)
        elif node.inputs and node.inputs[0] in fed and node.op_type not in SUMS:
            fed.update(node.outputs)
    return found | fed


def _fills(node: Node) -> bool:
    value = node.attr("value")
    return node.op_type == "ConstantOfShape" and value is not None and _is_huge(value.numpy())


def _huge(value: ir.Value | None) -> bool:
    """A constant with a huge number in it; one too large to look at may have one."""
    if value is None or value.const_value is None:
        return False
    array = constant(value)
    return value.const_value.size > BIG if array is None else _is_huge(array)


def _is_huge(array: np.ndarray) -> bool:
    if array.dtype.kind != "f" or not array.size:
        return False
    return bool((np.abs(array) >= (HALF if array.dtype == np.float16 else HUGE)).any())
