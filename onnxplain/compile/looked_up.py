"""Which integer inputs of a model are tokens or categories: numbers that a table is looked up by."""

from __future__ import annotations

import onnx_ir as ir

from onnxplain.compile import tokens
from onnxplain.graph.backward_builder import Backward, Facts
from onnxplain.graph.node import Node, draws_at_random, is_float
from onnxplain.graph.walk import active_values, dependent_values, inputs_of
from onnxplain.vjp import registered


def looked_up(graph: ir.Graph) -> list[str]:
    """Names of the integer inputs that arrive, through integers alone, where an op reads tokens.

    A mask that is cast, a length, and numbers that are columns of a table are none.
    """
    opset = graph.opset_imports.get("", 18)
    nodes = [Node.of(node, opset) for node in graph]
    inputs = [value for value in graph.inputs if value.name not in graph.initializers]
    random = [value for node in nodes if draws_at_random(node) for value in node.outputs]
    values = {value for node in nodes for value in node.outputs} | set(graph.initializers.values())
    op = Backward(graph, Facts(constants=values - dependent_values(nodes, [*inputs, *random])))

    def goes_on(node: Node, index: int) -> bool:
        return tokens.passes(op, node, index) and not any(map(is_float, node.outputs))

    found = []
    for value in inputs:
        if value.dtype in (None, ir.DataType.BOOL) or is_float(value):
            continue
        whole = active_values(nodes, [value], goes_on)
        if any(_reads(op, node, i) for node in nodes for i, x in inputs_of(node) if x in whole):
            found.append(str(value.name))
    return found


def _reads(op: Backward, node: Node, index: int) -> bool:
    entry = registered(node) if index < len(node.inputs) else None
    return entry is not None and entry.token is not None and entry.token.reads(op, node, index)
