"""A node as derivatives and rules see it: op type, inputs, outputs, attributes by ONNX's own names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir

STANDARD = ("", "ai.onnx.ml")  # domains whose op types mean what is registered of them
BIG = 1 << 20  # elements; larger constants are never read to look at their numbers


@dataclass(frozen=True, eq=False)
class Node:
    """One step of the forward graph.

    Usually one ONNX node. A recognised pattern (GELU, a MatMul with its bias) is one Node over several `members`:
    the graph keeps its nodes, only the backward walk sees one step. For `MatMul` a third input is the bias.
    """

    op_type: str
    inputs: tuple[ir.Value | None, ...]
    outputs: tuple[ir.Value, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    name: str = ""
    domain: str = ""
    version: int = 18
    members: tuple[Node, ...] = ()
    modified: bool = False  # inputs were exchanged: the outputs are shapes to go by, not this step's values
    captured: tuple[ir.Value, ...] = ()  # what the bodies of If, Loop and Scan read from outside

    @classmethod
    def of(cls, node: ir.Node, version: int = 18) -> Node:
        """The view of one ONNX node; `version` is the model's opset of its domain."""
        return cls(
            node.op_type,
            tuple(node.inputs),
            tuple(node.outputs),
            {name: _python(attribute) for name, attribute in node.attributes.items()},
            node.name or "",
            node.domain,
            version,
            captured=tuple(captured(node)),
        )

    def attr(self, name: str, default: Any = None) -> Any:
        """Attribute by its ONNX name; strings as str, integer lists as tuples."""
        return self.attributes.get(name, default)

    def input(self, index: int) -> ir.Value | None:
        """The input at `index`, None where it is absent."""
        return self.inputs[index] if index < len(self.inputs) else None

    def with_inputs(self, *inputs: ir.Value | None) -> Node:
        """The same step on other inputs (modified weights, say); its outputs stay as shapes to go by."""
        return replace(self, inputs=inputs, modified=True)

    @property
    def x(self) -> ir.Value:
        """The first input, which is never optional."""
        value = self.inputs[0]
        assert value is not None
        return value

    @property
    def y(self) -> ir.Value:
        """The first output."""
        return self.outputs[0]

    def __str__(self) -> str:
        return f"{self.name or self.outputs[0].name} ({self.op_type})"


def captured(node: ir.Node) -> list[ir.Value]:
    """Tensors of the graph around a node that its bodies read, however deep, each once."""
    bodies = [body for attribute in node.attributes.values() for body in _graphs(attribute)]
    if not bodies:
        return []
    own: set[ir.Value] = set()
    read: dict[ir.Value, None] = {}
    pending = list(bodies)
    while pending:
        body = pending.pop()
        own.update(body.inputs)
        own.update(body.initializers.values())
        read.update(dict.fromkeys(body.outputs))
        for inner in body:
            own.update(inner.outputs)
            read.update(dict.fromkeys(value for value in inner.inputs if value is not None))
            pending.extend(graph for attribute in inner.attributes.values() for graph in _graphs(attribute))
    return [value for value in read if value not in own]


def _graphs(attribute: ir.Attr) -> list[ir.Graph]:
    if attribute.type == ir.AttributeType.GRAPH:
        return [attribute.as_graph()]
    return list(attribute.as_graphs()) if attribute.type == ir.AttributeType.GRAPHS else []


def _python(attribute: ir.Attr) -> Any:
    value = attribute.value
    if attribute.type == ir.AttributeType.TENSOR:
        return value
    return tuple(value) if isinstance(value, (list, tuple)) else value


def constant(value: ir.Value | None) -> np.ndarray | None:
    """The numbers of a small constant (initializer or Constant node), else None."""
    if value is None:
        return None
    tensor = value.const_value
    if tensor is None:
        producer = value.producer()
        if producer is None or producer.op_type != "Constant":
            return None
        tensor = ir.convenience.get_const_tensor(value)
    if tensor is None or tensor.size > BIG:
        return None
    return tensor.numpy()


def ints(value: ir.Value | None) -> list[int] | None:
    """A constant as a flat list of integers, None where it is absent or only known at run time."""
    array = constant(value)
    return None if array is None else [int(v) for v in np.asarray(array).reshape(-1)]


def dims(value: ir.Value) -> list[int | str | None]:
    """The shape as integers, symbols or None; raises ValueError where the rank is unknown."""
    if value.shape is None:
        raise ValueError(f"{value.name}: the rank is not known")
    return [dim if isinstance(dim, int) else dim.value for dim in value.shape]


def rank(value: ir.Value) -> int:
    """Number of axes."""
    return len(dims(value))


def static(value: ir.Value) -> list[int] | None:
    """The shape where every axis is a number, else None."""
    shape = dims(value)
    return None if any(not isinstance(dim, int) for dim in shape) else [int(dim) for dim in shape if dim is not None]


def axes_of(values: Sequence[int], of_rank: int) -> list[int]:
    """Axes counted from the front."""
    return [axis + of_rank if axis < 0 else axis for axis in values]


RANDOM = {"Bernoulli", "Multinomial"}  # and all whose names begin with Random


def draws_at_random(node: ir.Node | Node) -> bool:
    """Whether a node answers something else each time."""
    return node.domain == "" and (node.op_type.startswith("Random") or node.op_type in RANDOM)


FLOATS = {ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16}


def is_float(value: ir.Value) -> bool:
    """Whether relevance can live on this tensor."""
    return value.dtype in FLOATS
