"""The forward pass once more, on reference inputs, in the same graph: what rules of differences (DeepLIFT) read.

Weights, and whatever else depends on no input that has a reference, are shared by the two.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import numpy as np
import onnx_ir as ir

from onnxplain.compile.needed import needed_for, remove
from onnxplain.errors import UnsupportedModel, UnsupportedOp, UsageError
from onnxplain.frontend.passes.names import Names
from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.node import Node, dims, draws_at_random, is_float
from onnxplain.graph.walk import Passes, dependent_values, inputs_of
from onnxplain.vjp import registered

SUFFIX = ".reference"
REFERENCES = "references"  # symbol of the rows of reference inputs
FED: Literal["input"] = "input"  # in the place of a baseline: the caller feeds the references
Baseline = float | Sequence[float] | Literal["input"]


def add_reference(op: Backward, inputs: Collection[ir.Value], baseline: Baseline = FED) -> dict[ir.Value, ir.Value]:
    """Append the copy and its inputs; returns forward tensor → the same tensor of the reference.

    inputs: those that get a reference. baseline: what it is, one number or one for each channel; the copy is then made
    of constants. FED: the graph gets inputs `<input>.reference`: 1 row, or as many as there are streams, where these
    are free; else the input's own shape. What is known of a forward tensor (axes, signs, masks) is
    known of its copy. Raises UnsupportedModel for a tensor that has the name, and for a node that draws at random
    between the two; UsageError for a baseline that does not fit the inputs.
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
        if baseline == FED:
            copies[value] = _copied(op, value, name)
            graph.inputs.append(copies[value])
        else:
            copies[value] = filled(op, value, baseline)
    rows = REFERENCES if baseline == FED else 1
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
                _take_on(op, value, copy, names.free(f"{value.name}{SUFFIX}"), rows)
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


def _take_on(op: Backward, value: ir.Value, copy: ir.Value, name: str, rows: int | str = REFERENCES) -> None:
    """Name, type and shape of a copy: its rows are its own where streams are free and the batch is no number."""
    copy.name, copy.type = name, value.type
    if value.shape is not None:
        copy.shape = ir.Shape(_shape(op, value, rows))


def _shape(op: Backward, value: ir.Value, rows: int | str) -> list[int | str | None]:
    """A length that may be made of the batch is left open: equal symbols must mean equal lengths."""
    axis, shape = op.stream_axis(value), dims(value)
    if not op.facts.free:
        return shape
    entries = [dims(entry) for entry in op.graph.inputs if entry.shape is not None]
    batch, own = {shape[0] for shape in entries if shape}, {dim for shape in entries for dim in shape[1:]}
    made: list[int | str | None] = []
    for i, dim in enumerate(shape):
        if isinstance(dim, int):
            made.append(dim)
        else:
            made.append(rows if i == axis or dim in batch else dim if dim in own else None)
    return made


def filled(op: Backward, value: ir.Value, baseline: Baseline) -> ir.Value:
    """A reference input of one number, or one for each channel: along axis 1, or the last where only that is as long.

    One row where streams are free and the batch is open; integers get the nearest whole number.
    """
    numbers, shape = np.asarray(baseline, np.float64), _shape(op, value, 1)
    if value.dtype is not None and not is_float(value):
        numbers = numbers.round()
    assert value.dtype is not None
    if numbers.size > 1:
        axis = next((i for i in (1, len(shape) - 1) if 0 < i < len(shape) and shape[i] == numbers.size), None)
        if axis is None:
            raise UsageError(
                f"baseline has {numbers.size} numbers, one for each channel, and neither axis 1 nor the last of "
                f"{value.name} {dims(value)} is as long."
            )
        numbers = numbers.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    else:
        numbers = numbers.reshape([1] * len(shape))
    known = [length for length in shape if isinstance(length, int)]
    to = op.ints(known) if len(known) == len(shape) else op.target_shape(value, streams=1)
    return op.reshaped(op.Expand(op.constant(numbers, value.dtype), to), shape)


def require_followed(
    op: Backward, path: Sequence[Node], nodes: Sequence[Node], inputs: Collection[ir.Value], passes: Passes
) -> None:
    """Raise UnsupportedOp for a node that reads what differs from the reference where no rule follows it.

    A condition, an index, a rounded number: the part of the difference that comes by them would be nobody's.
    path: what relevance takes. inputs: those with a reference. passes: where relevance can go.
    """
    values = [node for node in nodes if (entry := registered(node)) is None or not entry.lengths]
    moving = dependent_values(values, inputs)
    for node in path:
        for i, value in inputs_of(node):
            if value in moving and not (op.receives(value) and passes(node, i)):
                raise UnsupportedOp(
                    f"{node}: {value.name}, its input {i}, is computed from what has a reference and carries no "
                    f"relevance (a condition, an index, a step), so a part of the difference would be nobody's. "
                    f"Attribute to its output (--attribute-to {node.y.name}), or use integrated_gradients."
                )


def _tell(op: Backward, copies: Mapping[ir.Value, ir.Value]) -> None:
    """The copies to the facts."""
    facts = op.facts
    facts.axes = {**facts.axes, **{copy: facts.axes[value] for value, copy in copies.items() if value in facts.axes}}
    facts.nonnegative = {*facts.nonnegative, *(copy for value, copy in copies.items() if value in facts.nonnegative)}
    facts.masks = {*facts.masks, *(copy for value, copy in copies.items() if value in facts.masks)}
    facts.references = copies


def drop_unread(op: Backward, method: str) -> dict[str, str]:
    """Take away what no rule reads of the copy, inputs too; returns reference input → the input it is of.

    method: its name. Raises UsageError where references are fed and none is read.
    """
    copies = op.facts.references
    if copies is None:
        return {}
    nodes, read = needed_for(op.graph.outputs)
    made = dict.fromkeys(node for copy in copies.values() if (node := copy.producer()) is not None)
    remove(op.graph, [node for node in made if node not in nodes])
    entries = {value: entry for value, entry in copies.items() if entry.is_graph_input()}
    for entry in entries.values():
        if entry not in read:
            op.graph.inputs.remove(entry)
    found = {str(entry.name): str(value.name) for value, entry in entries.items() if entry in read}
    if entries and not found:
        raise UsageError(f"reference: no rule of {method} reads a reference here. Leave it out.")
    return found
