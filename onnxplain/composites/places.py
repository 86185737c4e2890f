"""Where every node of a path stands: its kind there, and whether it is a first or last layer along the data."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.bounds import steps_from_input
from onnxplain.graph.node import Node, is_float
from onnxplain.vjp import Kind, bound_steps, lookup, weight_and_bias


@dataclass(frozen=True)
class Place:
    """A node with what is around it.

    kind: what it is here. first, last: whether it is a first or a last linear node of the path. top: whether no linear
    node lies between it and the explained tensor. bounded: whether bounds of the model's input say where a first
    node's input lies.
    """

    node: Node
    kind: Kind
    first: bool
    last: bool
    top: bool = False
    bounded: bool = False


def kind_of(op: Backward, node: Node) -> Kind:
    """The kind of a node where it stands.

    A sum or product of which one operand only can receive relevance is a shift or scaling (affine), as it is where an
    exporter fused it into a normalisation; Max(x, 0) is a Relu. A MatMul or Conv without constant weights is a product.
    """
    kind = lookup(node).kind
    if kind != "flat" and not any(is_float(y) or y.dtype is None for y in node.outputs):
        return "routing"  # integers on their way to a look-up: which token it is stays what it was
    if kind == "linear" and weight_and_bias(op, node) is None:
        return "product"
    if kind == "routing" and not lookup(node).routes(node):
        return "other"  # a scatter that adds is a sum, and its shares are not known here
    alone = lookup(node).alone
    given = [i for i, value in enumerate(node.inputs) if op.receives(value)] if alone is not None else []
    return alone(given[0]) if alone is not None and len(given) == 1 else kind


def places(op: Backward, path: Collection[Node]) -> dict[Node, Place]:
    """Place of every node of a path (last node first)."""
    kinds = {node: kind_of(op, node) for node in path}
    below: set[Any] = set()  # tensors computed through a linear node
    first = set()
    for node in reversed(list(path)):
        behind = any(value in below for value in node.inputs)
        if kinds[node] == "linear":
            if not behind:
                first.add(node)
            behind = True
        if behind:
            below.update(node.outputs)
    above: set[Any] = set()  # tensors that reach the explained one through a linear node
    last, top = set(), set()
    for node in path:
        ahead = any(value in above for value in node.outputs)
        if not ahead:
            top.add(node)
        if kinds[node] == "linear":
            if not ahead:
                last.add(node)
            ahead = True
        if ahead:
            above.update(node.inputs)
    return {
        node: Place(node, kinds[node], node in first, node in last, node in top, node in first and _bounded(op, node))
        for node in path
    }


def _bounded(op: Backward, node: Node) -> bool:
    layer = weight_and_bias(op, node)
    x = node.inputs[layer[0]] if layer is not None else None
    return x is not None and steps_from_input(op, x, bound_steps()) is not None
