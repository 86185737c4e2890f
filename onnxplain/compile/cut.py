"""CUT: inner tensors of a model become its inputs, or its outputs. What lies between them is a model of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxplain.compile.contract import tensors
from onnxplain.compile.needed import keep_needed, needed_for
from onnxplain.compile.written import Sample, WrittenModel, by_name, write
from onnxplain.errors import UnknownName, UnsupportedModel, UsageError
from onnxplain.frontend.load import Source, load
from onnxplain.frontend.passes.constants import inline_functions
from onnxplain.frontend.passes.names import Names
from onnxplain.frontend.passes.shapes import infer_shapes
from onnxplain.frontend.passes.symbolic_dims import Product
from onnxplain.frontend.verify import Reference, expose, reference
from onnxplain.graph.node import Node, dims, draws_at_random
from onnxplain.graph.walk import dependent_values, inputs_of

NAMED = 8  # tensors that a message names
Tensors = str | Sequence[str]


def cut(
    model: str | Path,
    path: str | Path,
    *,
    at: Tensors = (),
    to: Tensors = (),
    sample: Sample = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> WrittenModel:
    """Write a part of a model to `path`: behind the tensors `at`, up to the tensors `to`.

    at: inner tensors that become inputs, under their names; (): the model's own inputs. Inputs of the model that the
    outputs need by another way stay inputs, and a note says so. to: inner tensors that become the outputs; (): the
    model's own. So `cut(m, head, to=t)` and `cut(m, tail, at=t)` are m in two pieces. The graph is taken as it is
    written: opset, functions, metadata and names stay; weights are copied once, or stay in their files beside the part.
    sample, shapes: input to verify on, as in `Subject.of`: the part has run and answered what the whole does.
    Raises UnknownName, UsageError, UnsupportedModel, ConversionChanged, InputError.
    """
    source = load(Path(model))
    starts, ends = _names(at), _names(to)
    check(source.model.graph, starts, ends)
    whole = reference(source, [*starts, *ends], by_name(sample, source.model), shapes)
    part = typed(source, starts, ends, whole)
    notes = cut_graph(part, starts, ends)
    if source.weight_inputs:
        notes.append(f"no longer listed among the inputs, being weights: {', '.join(source.weight_inputs)}")
    known = {**whole.feeds, **whole.outputs}
    feeds = {str(value.name): known[str(value.name)] for value in part.graph.inputs}
    outputs = {str(value.name): known[str(value.name)] for value in part.graph.outputs}
    return write(part, Path(path), [source], replace(whole, feeds=feeds, outputs=outputs), notes)


def cut_graph(model: ir.Model, at: Sequence[str], to: Sequence[str] = ()) -> list[str]:
    """The same on a graph, in place; returns notes. Tensors that become ports must have their types.

    Raises UsageError for a tensor of `at` that no output depends on.
    """
    graph = model.graph
    values, names = tensors(graph), Names(graph)
    ends = [values[name] for name in to] or list(graph.outputs)
    starts = [values[name] for name in at]
    _check_reaching(graph, starts, ends)
    entries: dict[ir.Value, ir.Value] = {}
    for value in starts:
        entries[value] = entry = ir.Value(name=value.name, type=value.type, shape=value.shape)
        value.name = names.free(f"{value.name}.before_cut")  # its node may live on, for other outputs
        value.replace_all_uses_with(entry, replace_graph_outputs=True)
    own = list(graph.inputs)
    keep_needed(model, [*entries.values(), *own], [entries.get(value, value) for value in ends])
    if not len(graph):
        raise UsageError(f"nothing lies between {', '.join(at) or 'the inputs'} and {', '.join(to) or 'the outputs'}.")
    if not at:
        return []
    return [
        f"{value.name} stays an input: {reader.name} ({reader.op_type}) needs it, by a way that is not cut"
        for value in graph.inputs
        if value in own and (reader := _reader(graph, value)) is not None
    ]


def check(graph: ir.Graph, at: Sequence[str], to: Sequence[str]) -> None:
    """Names of tensors that can become inputs and outputs. Raises UnknownName, UsageError, UnsupportedModel."""
    if not at and not to:
        raise UsageError("nothing to cut: name inner tensors that become inputs (--at) or outputs (--to).")
    nodes = [Node.of(node) for node in graph]
    drawn = [value for node in graph if draws_at_random(node) for value in node.outputs]
    values, changing = tensors(graph), dependent_values(nodes, [*graph.inputs, *drawn])
    for option, named in (("at", at), ("to", to)):
        for n, name in enumerate(named):
            if name in named[:n]:
                raise UsageError(f"--{option} {name}: named twice.")
            if name in graph.initializers or (name in values and values[name] not in changing):
                others = [other for other in values if values[other] in changing and not values[other].is_graph_input()]
                raise UsageError(
                    f"--{option} {name}: it is a constant, the same whatever is fed. Name a tensor that depends on the "
                    f"inputs, such as {', '.join(others[:NAMED])}."
                )
            if name not in values:
                raise _unknown(graph, option, name, values)
            if values[name].is_graph_input():
                raise UsageError(f"--{option} {name}: it is an input of the model already. Name an inner tensor.")
            if isinstance(values[name].type, (ir.SequenceType, ir.OptionalType)):
                raise _no_tensor(option, name)
    if not at and [str(value.name) for value in graph.outputs] == list(to):
        raise UsageError(f"--to {', '.join(to)}: that is all the model gives; nothing would be cut off.")
    if both := [name for name in at if name in to]:
        raise UsageError(f"--at {both[0]} and --to {both[0]}: nothing lies between a tensor and itself.")


def typed(source: Source, at: Sequence[str], to: Sequence[str], whole: Reference) -> ir.Model:
    """A copy of the model in which the named tensors have type and shape: from inference, held against a run."""
    names = [*at, *to]
    inferred = source.model.clone()
    expose(inferred, names)
    inline_functions(inferred)
    infer_shapes(inferred)
    symbols = {dim for value in inferred.graph.inputs if value.shape is not None for dim in dims(value)}
    known, model = tensors(inferred.graph), source.model.clone()
    values = tensors(model.graph)
    for name in names:
        array, value, found = whole.outputs[name], values[name], known[name]
        if not isinstance(array, np.ndarray):
            raise _no_tensor("at" if name in at else "to", name)
        if value.dtype is None:
            text = ir.DataType.STRING if array.dtype.kind in "OU" else ir.DataType.from_numpy(array.dtype)
            value.type = found.type if found.dtype is not None else ir.TensorType(text)
        shape = [None] * array.ndim if found.shape is None or len(found.shape) != array.ndim else dims(found)
        value.shape = ir.Shape(
            [dim if _holds(dim, length, symbols) else None for dim, length in zip(shape, array.shape, strict=True)]
        )
    return model


def _holds(dim: int | str | None, length: int, symbols: set[int | str | None]) -> bool:
    """Whether a length that inference gives is the run's, or made of symbols of the model's inputs."""
    if isinstance(dim, int):
        return dim == length
    return dim in symbols or (dim is not None and all(symbol in symbols for symbol in Product.parse(dim).symbols))


def _check_reaching(graph: ir.Graph, starts: Sequence[ir.Value], ends: Sequence[ir.Value]) -> None:
    """Every tensor that is to be fed acts on an output, beside the others that are fed."""
    _, read = needed_for(ends, starts)
    nodes = [Node.of(node) for node in graph]
    for value in starts:
        if value in read:
            continue
        names = ", ".join(str(end.name) for end in ends)
        if dependent_values(nodes, [value]).isdisjoint(ends):
            raise UsageError(f"--at {value.name}: {names} {'do' if len(ends) > 1 else 'does'} not depend on it.")
        others = ", ".join(str(other.name) for other in starts if other is not value)
        raise UsageError(f"--at {value.name}: every way from it to {names} leads through {others}, fed as well.")


def _unknown(graph: ir.Graph, option: str, name: str, values: Mapping[str, ir.Value]) -> Exception:
    for node in graph:
        inside = (body for attribute in node.attributes.values() for body in _bodies(attribute))
        if any(value.name == name for body in inside for inner in body.all_nodes() for value in inner.outputs):
            near = node.outputs[0].name
            return UsageError(f"--{option} {name}: it lies inside {node.name} ({node.op_type}). The nearest is {near}.")
    return UnknownName("tensor", name, values)


def _bodies(attribute: ir.Attr) -> Sequence[ir.Graph]:
    if attribute.type == ir.AttributeType.GRAPH:
        return [attribute.as_graph()]
    return attribute.as_graphs() if attribute.type == ir.AttributeType.GRAPHS else []


def _no_tensor(option: str, name: str) -> Exception:
    return UnsupportedModel(
        f"--{option} {name}: it is a sequence, an optional or a map, and a model is cut at tensors only."
    )


def _reader(graph: ir.Graph, value: ir.Value) -> ir.Node | None:
    return next((node for node in graph if any(v is value for _, v in inputs_of(Node.of(node)))), None)


def _names(given: Tensors) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given or ())
