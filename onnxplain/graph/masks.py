"""Which tensors may hold -inf, or the lowest float, by design: attention masks.

They are made from huge constants and go through elementwise steps and copies until a softmax swallows them. A rule that
divides by a sum has to know: the sum of a score and -inf has no shares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import onnx_ir as ir

from onnxplain.graph.node import BIG, Node, constant, is_float

HUGE = 1e30  # nothing a network computes; exporters write -inf, the lowest float32 (-3.4e38), and for float16 -65504
HALF = 6e4
MaskStep = Literal["", "carries", "adds", "fills"]
"""What an op does to a mask. carries: the -inf of an input comes out. adds: so it does, and what the sum gives is no
mask any more. fills: it makes a tensor of one number, its attribute `value`. "": it swallows a mask."""


def masks(nodes: Sequence[Node], inputs: Sequence[ir.Value], steps: Mapping[str, MaskStep]) -> set[ir.Value]:
    """Tensors that a huge constant reaches through steps that carry it; and inputs, which may be fed as masks.

    steps: by op type, as registered.
    """
    found: set[ir.Value] = set()
    fed = {value for value in inputs if is_float(value)}
    for node in nodes:
        step = steps.get(node.op_type, "")
        if not step:
            continue
        if (step == "fills" and _fills(node)) or any(value in found or _huge(value) for value in node.inputs):
            found.update(node.outputs)
        elif node.inputs and node.inputs[0] in fed and step != "adds":
            fed.update(node.outputs)
    return found | fed


def _fills(node: Node) -> bool:
    value = node.attr("value")
    return value is not None and _is_huge(value.numpy())


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
