"""A model as protobuf, gone through: its nodes, bodies, functions and weights, and what each is called."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx

SHOWN = 80  # characters of a name in an error
Nodes = Iterable[onnx.NodeProto]
Owner = onnx.GraphProto | onnx.FunctionProto


def describe(node: onnx.NodeProto) -> str:
    """The node's name, else what it makes, and its op."""
    made = next((name for name in node.output if name), "?")
    return f"{(node.name or made)[:SHOWN]} ({node.op_type[:SHOWN]})"


def tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a model: weights, and what attributes hold."""
    for owner, _ in owners(proto):
        if isinstance(owner, onnx.GraphProto):
            yield from owner.initializer
        for node in owner.node:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.TENSOR:
                    yield attribute.t
                yield from attribute.tensors


def subgraphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """Bodies of If, Loop, Scan."""
    bodies = [attribute.g for attribute in node.attribute if attribute.type == onnx.AttributeProto.GRAPH]
    return bodies + [g for attribute in node.attribute for g in attribute.graphs]


def owners(proto: onnx.ModelProto) -> Iterator[tuple[Owner, int]]:
    """The graph, the functions and all bodies within, each with its depth."""
    pending: list[tuple[Owner, int]] = [(proto.graph, 0), *((function, 0) for function in proto.functions)]
    while pending:
        owner, depth = pending.pop()
        yield owner, depth
        pending += [(body, depth + 1) for node in owner.node for body in subgraphs(node)]


def key_of(call: onnx.FunctionProto | onnx.NodeProto) -> tuple[str, str]:
    """Domain and name: what a node calls a function by."""
    name = call.name if isinstance(call, onnx.FunctionProto) else call.op_type
    return (call.domain if call.domain != "ai.onnx" else "", name)


def within(nodes: Nodes) -> Iterator[onnx.NodeProto]:
    """The nodes and those of their bodies."""
    pending = list(nodes)
    while pending:
        node = pending.pop()
        yield node
        for body in subgraphs(node):
            pending += body.node


def stored_bytes(tensor: onnx.TensorProto, mark: str) -> int | None:
    """How many bytes the model's own file has of a tensor that stays there; None for any other."""
    place = {entry.key: entry.value for entry in tensor.external_data}
    return int(place["length"]) if place.get("location") == mark else None


def quoted(name: str | None) -> str:
    """A name as errors show it: bounded, control characters escaped."""
    text = repr(name or "")
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def read_by(node: onnx.NodeProto) -> list[str]:
    """Names a node reads, those its bodies take from outside included."""
    names = [name for name in node.input if name]
    for body in subgraphs(node):
        own = {value.name for value in body.input} | {tensor.name for tensor in body.initializer}
        own |= {name for inner in body.node for name in inner.output}
        wanted = [name for inner in body.node for name in read_by(inner)] + [value.name for value in body.output]
        names += [name for name in wanted if name not in own]
    return names
