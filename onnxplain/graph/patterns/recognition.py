"""Subgraphs that are one thing: GELU in five nodes, LayerNormalization in seven, a MatMul with its bias.

The graph keeps its nodes. Only the backward walk sees one step, whose relevance rule goes by what it is; its derivative
is the chain of its members'. A group has one output, and nobody outside looks at what is inside.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import onnx_ir as ir

from onnxplain.graph.node import Node
from onnxplain.graph.patterns.activations import activation, clipped_hard_sigmoid
from onnxplain.graph.patterns.layers import biased_matmul
from onnxplain.graph.patterns.normalisations import local_response, normalisation, unit_length
from onnxplain.graph.patterns.view import Group, View

PATTERNS: list[Callable[[View, Node], Group | None]] = [
    normalisation,
    activation,
    clipped_hard_sigmoid,
    unit_length,
    local_response,
    biased_matmul,
]


def recognise(nodes: Sequence[Node], protected: Collection[ir.Value]) -> list[Node]:
    """The same steps with recognised subgraphs as one Node each, in topological order.

    protected: tensors that must stay visible (explained, attributed, kept). A group stands where its last member stood.
    """
    view = View({}, {}, set(), protected)
    for node in nodes:
        for value in dict.fromkeys((*node.inputs, *node.captured)):
            if value is not None:
                view.readers.setdefault(value, []).append(node)
        read = (*node.inputs, *node.captured)
        if all(value is None or value.const_value is not None or value in view.constants for value in read):
            view.constants.update(node.outputs)
        view.maker.update(dict.fromkeys(node.outputs, node))
    place = {node: i for i, node in enumerate(nodes)}
    taken: set[Node] = set()
    groups: dict[Node, Node] = {}
    for node in reversed(nodes):
        if node in taken or node.domain != "":
            continue
        for pattern in PATTERNS:
            group = pattern(view, node)
            if group is not None and _closed(view, node, group.members) and not taken.intersection(group.members):
                members = tuple(sorted(set(group.members), key=place.__getitem__))
                taken.update(members)
                groups[node] = Node(
                    group.op_type, group.inputs, node.outputs, group.attributes, node.name, "", node.version, members
                )
                break
    return [groups.get(node, node) for node in nodes if node in groups or node not in taken]


def _closed(view: View, last: Node, members: Collection[Node]) -> bool:
    """Only the last member's outputs are seen outside, and every member leads there."""
    if len(members) < 2 or last not in members:
        return False
    return all(
        view.hidden(value) and view.readers.get(value) and all(reader in members for reader in view.readers[value])
        for member in members
        if member is not last
        for value in member.outputs[:1]
    )
