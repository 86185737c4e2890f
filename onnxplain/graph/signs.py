"""Which tensors are known not to be negative, whatever the input.

An activation known to be >= 0 needs half the convolutions under z+, alpha-beta and gamma, which is the largest lever on
what a relevance pass costs. A sign rule takes a node and whether each input is non-negative; it is named where the op's
derivative is registered.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import onnx_ir as ir

from onnxplain.graph.node import STANDARD, Node, constant

SignRule = Callable[[Node, Sequence[bool]], bool]


def nonnegative(
    nodes: Sequence[Node], rules: Mapping[str, SignRule], known: Sequence[ir.Value] = (),
    moving: Collection[ir.Value] = (),
) -> set[ir.Value]:  # fmt: skip
    """Tensors that cannot be negative.

    known: inputs whose declared range starts at 0 or above. moving: tensors that are set to any value from outside.
    """
    found = set(known)

    def of(value: ir.Value | None) -> bool:
        if value is None or value in found:
            return value is not None
        array = constant(value)
        if array is not None and array.dtype.kind in "fiu" and bool((array >= 0).all()):
            found.add(value)
            return True
        return False

    for node in nodes:
        rule = rules.get(node.op_type) if node.domain in STANDARD else None
        if node.y not in moving and rule is not None and rule(node, [of(value) for value in node.inputs]):
            found.add(node.y)
    return found


def always(node: Node, signs: Sequence[bool]) -> bool:
    """Relu, Sigmoid, Softmax, Exp."""
    return True


def first(node: Node, signs: Sequence[bool]) -> bool:
    """As its data input: pools, shape ops, averages."""
    return signs[0]


def every(node: Node, signs: Sequence[bool]) -> bool:
    """When all inputs are: Add, Mul, Concat, MatMul."""
    return all(sign for sign, value in zip(signs, node.inputs, strict=True) if value is not None)


def some(node: Node, signs: Sequence[bool]) -> bool:
    """When one input is: Max."""
    return any(signs)
