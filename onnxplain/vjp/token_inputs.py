"""Where integers are read as tokens: look-ups in a table, one-hot codes."""

from __future__ import annotations

import onnx_ir as ir

from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.node import Node, axes_of, constant, dims, is_float, rank
from onnxplain.vjp.facts import TokenInput


def _looks_up(op: Backward, node: Node, index: int) -> bool:
    """Indices into a constant table."""
    return index == 1 and op.is_constant(node.inputs[0]) and (is_float(node.y) or rank(node.x) == 1)


def _looked_up_axes(node: Node) -> list[int]:
    tokens = node.inputs[1]
    assert tokens is not None
    at = axes_of([node.attr("axis", 0)], rank(node.y))[0]
    return list(range(at, at + rank(tokens)))


def _encodes(op: Backward, node: Node, index: int) -> bool:
    """Indices of a OneHot between two constants."""
    return index == 0 and is_float(node.y) and op.is_constant(node.input(2))


def _encoded_axes(node: Node) -> list[int]:
    at = axes_of([node.attr("axis", -1)], rank(node.y))[0]
    return [axis for axis in range(rank(node.y)) if axis != at]


def _compares(op: Backward, node: Node, index: int) -> bool:
    value = node.inputs[index]
    return value is not None and _is_code(value, node.inputs[1 - index])


def _is_code(value: ir.Value, others: ir.Value | None) -> bool:
    """Whether Equal compares each entry with a list of numbers, along an axis that the entries do not have.

    One number alone (a padding token, say) makes a mask, which is no code.
    """
    numbers = constant(others)
    if numbers is None or numbers.size < 2 or value.shape is None:
        return False
    shape = (1,) * (rank(value) - numbers.ndim) + numbers.shape
    own = [1] * (len(shape) - rank(value)) + [dim if isinstance(dim, int) else None for dim in dims(value)]
    return all(length == 1 or have == 1 for length, have in zip(shape, own, strict=True))


TABLE = TokenInput(_looks_up, _looked_up_axes)
ONE_HOT = TokenInput(_encodes, _encoded_axes)
COMPARED = TokenInput(_compares)
