"""The forward graph as patterns look at it, and what a pattern answers."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from onnxplain.graph.node import Node, ints


@dataclass
class Group:
    """What a pattern found: the step as the walk shall see it, and the nodes it stands for."""

    op_type: str
    inputs: tuple[ir.Value | None, ...]
    members: list[Node]
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass
class View:
    """The forward graph as patterns look at it."""

    maker: dict[ir.Value, Node]
    readers: dict[ir.Value, list[Node]]
    constants: set[ir.Value]
    protected: Collection[ir.Value]

    def hidden(self, value: ir.Value) -> bool:
        """Whether nobody needs the tensor to be seen from outside."""
        return not value.is_graph_output() and value not in self.protected

    def inner(self, value: ir.Value) -> bool:
        """Hidden, and read by one node."""
        return self.hidden(value) and len(self.readers.get(value, ())) == 1

    def made_by(self, value: ir.Value | None, *op_types: str) -> Node | None:
        """The node that makes a tensor, where it is of one of these types."""
        node = None if value is None else self.maker.get(value)
        return node if node is not None and node.domain == "" and node.op_type in op_types else None


def reduced_axes(node: Node) -> list[int] | None:
    """Axes of a reduction, which are an input since opset 18."""
    if not node.attr("keepdims", 1):
        return None
    axes = node.attr("axes")
    return list(axes) if axes is not None else ints(node.input(1))


def constant_operand(view: View, node: Node) -> tuple[ir.Value | None, ir.Value | None]:
    """(the other operand, the constant one)."""
    for index in (0, 1):
        value = node.inputs[index]
        if value is not None and (value.const_value is not None or value in view.constants):
            return node.inputs[1 - index], value
    return None, None
