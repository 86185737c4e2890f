"""The forward pass once more, on reference inputs, in the same graph: what rules of differences (DeepLIFT) read.

Weights, and whatever else depends on no input that has a reference, are shared by the two.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx_ir as ir

from onnxplain.errors import UnsupportedModel
from onnxplain.frontend.passes.names import Names
from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.node import Node, dims, draws_at_random
from onnxplain.graph.walk import dependent_values

SUFFIX = ".reference"
REFERENCES = "references"  # symbol of the rows of reference inputs


def add_reference(op: Backward, inputs: Collection[ir.Value]) -> dict[ir.Value, ir.Value]:
    """Append the copy and its inputs; returns forward tensor → the same tensor of the reference.

    inputs: those that get a reference, `<input>.reference`: 1 row, or as many as there are streams, where these are
    free; else the input's own shape. What is known of a forward tensor (axes, signs, masks) is known of its copy.
    Raises UnsupportedModel for a tensor that has the name, and for a node that draws at random between the two.
    """
    graph = op.graph
    names, forward = Names(graph), list(graph)
    changing = dependent_values([Node.of(node) for node in forward], inputs)
    copies: dict[ir.Value, ir.Value] = {}
    for value in inputs:
        name = f"{value.name}{SUFFIX}"
        if names.free(name) != name:
            raise UnsupportedModel(
                f"the model has a tensor named {name!r}, which the compiled graph needs for its reference. Rename it."
            )
        copies[value] = entry = _copied(op, value, name)
        graph.inputs.append(entry)
    for node in forward:
        if changing.isdisjoint(node.outputs):
            continue
        if draws_at_random(node):
            raise UnsupportedModel(
                f"{node.name} ({node.op_type}): draws at random, so the reference would differ by the draw as well."
            )
        twin = _twin(node, copies)
        for value, copy in zip(node.outputs, twin.outputs, strict=True):
            if value.name:
                _take_on(op, value, copy, names.free(f"{value.name}{SUFFIX}"))
                copies[value] = copy
        graph.append(twin)
    _tell(op, copies)
    return copies


def _twin(node: ir.Node, copies: Mapping[ir.Value, ir.Value]) -> ir.Node:
    """The same step on the copies of its inputs, and of what its bodies read from outside."""
    return ir.Node(
        node.domain,
        node.op_type,
        [None if value is None else copies.get(value, value) for value in node.inputs],
        [_attribute(attribute, copies) for attribute in node.attributes.values()],
        overload=node.overload,
        num_outputs=len(node.outputs),
        version=node.version,
        name=f"{node.name}{SUFFIX}",
    )


def _attribute(attribute: ir.Attr, copies: Mapping[ir.Value, ir.Value]) -> ir.Attr:
    if attribute.type == ir.AttributeType.GRAPH:
        return ir.AttrGraph(attribute.name, _body(attribute.as_graph(), copies))
    if attribute.type == ir.AttributeType.GRAPHS:
        return ir.AttrGraphs(attribute.name, [_body(body, copies) for body in attribute.as_graphs()])
    return attribute


def _body(body: ir.Graph, copies: Mapping[ir.Value, ir.Value]) -> ir.Graph:
    twin = body.clone(allow_outer_scope_values=True)
    for node in twin.all_nodes():
        for i, value in enumerate(node.inputs):
            if value is not None and value in copies:
                node.replace_input_with(i, copies[value])
    return twin


def _copied(op: Backward, value: ir.Value, name: str) -> ir.Value:
    copy = ir.Value(type=value.type)
    _take_on(op, value, copy, name)
    return copy


def _take_on(op: Backward, value: ir.Value, copy: ir.Value, name: str) -> None:
    """Name, type and shape of a copy: its rows are its own where streams are free and the batch is no number."""
    copy.name, copy.type = name, value.type
    if value.shape is not None:
        axis = op.stream_axis(value)
        copy.shape = ir.Shape(
            [REFERENCES if i == axis and not isinstance(dim, int) else dim for i, dim in enumerate(dims(value))]
        )


def _tell(op: Backward, copies: Mapping[ir.Value, ir.Value]) -> None:
    """The copies to the facts."""
    facts = op.facts
    facts.axes = {**facts.axes, **{copy: facts.axes[value] for value, copy in copies.items() if value in facts.axes}}
    facts.nonnegative = {*facts.nonnegative, *(copy for value, copy in copies.items() if value in facts.nonnegative)}
    facts.masks = {*facts.masks, *(copy for value, copy in copies.items() if value in facts.masks)}
    facts.references = copies
