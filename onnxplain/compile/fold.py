"""Smaller backward passes: the same step only once, and derived weights stored where that is asked for."""

from __future__ import annotations

from collections.abc import Hashable

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from onnxplain.graph.outline import runtime
from onnxplain.graph.walk import prune

PLAIN = {
    ir.AttributeType.INT,
    ir.AttributeType.INTS,
    ir.AttributeType.FLOAT,
    ir.AttributeType.FLOATS,
    ir.AttributeType.STRING,
}


def share(graph: ir.Graph, first: int) -> None:
    """Where a node behind the first `first` ones does what an earlier of these did, use the earlier one's results."""
    outputs = set(graph.outputs)
    seen: dict[Hashable, ir.Node] = {}
    for node in list(graph)[first:]:
        key = _key(node)
        if key is None:
            continue
        earlier = seen.setdefault(key, node)
        if earlier is not node and not outputs.intersection(node.outputs):
            for value, same in zip(node.outputs, earlier.outputs, strict=True):
                value.replace_all_uses_with(same)
            graph.remove(node, safe=True)


def _key(node: ir.Node) -> Hashable:
    """What makes two nodes the same step; None where that is not easily said."""
    if any(attribute.type not in PLAIN for attribute in node.attributes.values()):
        return None
    attributes = sorted((name, str(attribute.value)) for name, attribute in node.attributes.items())
    return node.domain, node.op_type, tuple(node.inputs), tuple(attributes), len(node.outputs)


def fold(model: ir.Model, first: int) -> None:
    """Store what the nodes behind the first `first` ones make of constants alone."""
    graph = model.graph
    known = set(graph.initializers.values())
    constant = []
    for node in list(graph)[first:]:
        if node.inputs and all(value is None or value in known for value in node.inputs) and _key(node) is not None:
            constant.append(node)
            known.update(node.outputs)
    inner = set(constant)
    wanted = [
        v for n in constant for v in n.outputs if v.is_graph_output() or any(u.node not in inner for u in v.uses())
    ]
    if not wanted:
        return
    alone = model.clone()
    values = {value.name: value for node in alone.graph for value in node.outputs}
    alone.graph.inputs.clear()
    alone.graph.outputs.clear()
    alone.graph.outputs.extend(values[value.name] for value in wanted)
    RemoveUnusedNodesPass()(alone)
    found = runtime(alone).run({})
    for value in wanted:
        if value.is_graph_output():
            continue
        name = str(value.name)
        tensor = ir.tensor(found[name], dtype=value.dtype, name=name)
        stored = ir.Value(name=name, shape=ir.Shape(tensor.shape.numpy()), type=value.type, const_value=tensor)
        value.replace_all_uses_with(stored)
        value.name = f"{name}/made"  # leaves the name to the initializer
        graph.register_initializer(stored)
    prune(graph, first)
