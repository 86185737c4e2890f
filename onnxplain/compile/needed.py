"""What a part of a model needs: nodes, weights, inputs and functions that its outputs are made of; the rest goes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import onnx_ir as ir

from onnxplain.graph.node import captured

Key = tuple[str, str, str]
"""Domain, name and overload of a function."""


def needed_for(outputs: Iterable[ir.Value], given: Collection[ir.Value] = ()) -> tuple[set[ir.Node], set[ir.Value]]:
    """The nodes that make `outputs` where `given` is at hand, and every tensor they read, outputs among them."""
    nodes: set[ir.Node] = set()
    read: set[ir.Value] = set()
    pending = list(outputs)
    while pending:
        value = pending.pop()
        if value in read:
            continue
        read.add(value)
        node = value.producer()
        if node is not None and node not in nodes and value not in given:
            nodes.add(node)
            pending.extend(v for v in (*node.inputs, *captured(node)) if v is not None)
    return nodes, read


def keep_needed(model: ir.Model, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value]) -> list[ir.Value]:
    """Give the graph these ports, in place; what `outputs` do not need goes. Returns the inputs that went with it."""
    graph = model.graph
    nodes, read = needed_for(outputs)
    graph.outputs.clear()
    graph.outputs.extend(outputs)
    graph.inputs.clear()
    graph.inputs.extend(value for value in inputs if value in read)
    remove(graph, [node for node in graph if node not in nodes])
    for name, value in list(graph.initializers.items()):
        if value not in read:
            del graph.initializers[name]
    drop_uncalled(model)
    return [value for value in inputs if value not in read]


def remove(graph: ir.Graph, nodes: Collection[ir.Node]) -> None:
    """Take nodes out, whose results nobody reads; what their bodies read from outside they read no more, either."""
    for node in nodes:
        bodies = [inner for attribute in node.attributes.values() for inner in _inner_nodes(attribute)]
        for reader in (node, *bodies):
            for i in range(len(reader.inputs)):
                reader.replace_input_with(i, None)
    graph.remove(nodes)


def _inner_nodes(attribute: ir.Attr) -> Iterable[ir.Node]:
    if attribute.type == ir.AttributeType.GRAPH:
        return attribute.as_graph().all_nodes()
    if attribute.type == ir.AttributeType.GRAPHS:
        return [node for body in attribute.as_graphs() for node in body.all_nodes()]
    return ()


def drop_uncalled(model: ir.Model) -> None:
    """Functions that nobody calls go, and the opsets of domains that nobody uses."""
    called: set[Key] = set()
    domains = {""}
    pending: list[ir.Graph | ir.Function] = [model.graph]
    while pending:
        for node in pending.pop().all_nodes():
            key = node.op_identifier()
            domains.add(node.domain)
            if key in model.functions and key not in called:
                called.add(key)
                pending.append(model.functions[key])
    for key in list(model.functions):
        if key not in called:
            del model.functions[key]
    for domain in list(model.opset_imports):
        if domain not in domains:
            del model.opset_imports[domain]
