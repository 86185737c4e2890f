"""Is the graph of a file well formed? Names used once, nothing read that nobody made, no cycle, ops that exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from graphlib import CycleError, TopologicalSorter

import onnx

from onnxplain.errors import UnsupportedModel

STANDARD = ("", "ai.onnx.ml")
CONTRIBUTED = "com.microsoft"
BLOCKED = "com.microsoft.nchwc"
UNSPECIFIED = {"SimplifiedLayerNormalization"}  # onnxruntime writes it into the default domain


def check(proto: onnx.ModelProto, label: str) -> None:
    """Raise UnsupportedModel with one line where a graph is not one we can read."""
    graph = proto.graph
    opsets = {entry.domain: entry.version for entry in proto.opset_import}
    if not opsets:
        raise UnsupportedModel(f"{label}: says no opset, so its ops have no meaning")
    if not graph.node:
        raise UnsupportedModel(f"{label}: the graph has no nodes")
    if not graph.output:
        raise UnsupportedModel(f"{label}: the graph has no outputs")
    functions = {(f.domain if f.domain != "ai.onnx" else "", f.name): f for f in proto.functions}
    _names(graph, set(), label)
    _ops(graph.node, opsets, set(functions), label)
    for function in proto.functions:
        own = {("" if e.domain == "ai.onnx" else e.domain): e.version for e in function.opset_import}
        _ops(function.node, {**opsets, **own}, set(functions), label)


def describe(node: onnx.NodeProto) -> str:
    """The node's name, else what it makes, and its op."""
    made = next((name for name in node.output if name), "?")
    return f"{node.name or made} ({node.op_type})"


def subgraphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """Bodies of If, Loop, Scan."""
    bodies = [attribute.g for attribute in node.attribute if attribute.type == onnx.AttributeProto.GRAPH]
    return bodies + [g for attribute in node.attribute for g in attribute.graphs]


def _names(graph: onnx.GraphProto, outer: set[str], label: str) -> None:
    """Each tensor is made once, and whatever is read is made somewhere before."""
    made = {value.name for value in graph.input}
    if len(made) < len(graph.input):
        raise UnsupportedModel(f"{label}: two inputs have the same name")
    weights = [t.name for t in graph.initializer] + [t.values.name for t in graph.sparse_initializer]
    if twice := _repeated(weights):
        raise UnsupportedModel(f"{label}: two weights have the name {twice!r}")
    known = outer | made | set(weights)
    maker: dict[str, int] = {}
    for i, node in enumerate(graph.node):
        for name in filter(None, node.output):
            if name in maker or name in made or name in weights:
                other = describe(graph.node[maker[name]]) if name in maker else "an input or weight"
                raise UnsupportedModel(f"{label}: the name {name!r} is used twice: by {other} and by {describe(node)}")
            maker[name] = i
    known |= maker.keys()
    reads = [_read(node) for node in graph.node]
    for node, names in zip(graph.node, reads, strict=True):
        for name in names:
            if name not in known:
                raise UnsupportedModel(f"{label}: {describe(node)} reads {name!r}, which nothing makes")
    for value in graph.output:
        if value.name not in known:
            raise UnsupportedModel(f"{label}: the output {value.name!r} is made by no node")
    order = {i: {maker[name] for name in names if name in maker} for i, names in enumerate(reads)}
    try:
        TopologicalSorter(order).prepare()
    except CycleError as error:
        cycle = [describe(graph.node[i]) for i in error.args[1][::-1]]
        shown = cycle if len(cycle) <= 8 else [*cycle[:4], "…", *cycle[-3:]]
        raise UnsupportedModel(f"{label}: the graph has a cycle: {' -> '.join(shown)}") from error
    for node in graph.node:
        for body in subgraphs(node):
            _names(body, known, label)


def _read(node: onnx.NodeProto) -> list[str]:
    """Names a node reads, those its bodies take from outside included."""
    names = [name for name in node.input if name]
    for body in subgraphs(node):
        own = {value.name for value in body.input} | {tensor.name for tensor in body.initializer}
        own |= {tensor.values.name for tensor in body.sparse_initializer}
        own |= {name for inner in body.node for name in inner.output}
        wanted = [name for inner in body.node for name in _read(inner)] + [value.name for value in body.output]
        names += [name for name in wanted if name not in own]
    return names


def _repeated(names: Sequence[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _ops(nodes: Iterable[onnx.NodeProto], opsets: dict[str, int], functions: set[tuple[str, str]], label: str) -> None:
    for node in nodes:
        domain = "" if node.domain == "ai.onnx" else node.domain
        if (domain, node.op_type) not in functions:
            _op(node, domain, opsets, label)
        for body in subgraphs(node):
            _ops(body.node, opsets, functions, label)


def _op(node: onnx.NodeProto, domain: str, opsets: dict[str, int], label: str) -> None:
    who = f"{label}: {describe(node)}"
    if domain == BLOCKED:
        raise UnsupportedModel(
            f"{who}: this model was saved after onnxruntime optimised it for one machine (domain {BLOCKED}); "
            f"use the original, or save at optimisation level 'extended' or below"
        )
    if domain == CONTRIBUTED:
        return
    if domain not in STANDARD:
        raise UnsupportedModel(
            f"{who}: unknown domain {domain!r} and no function of that name in the model; "
            f"known are ai.onnx, ai.onnx.ml and com.microsoft"
        )
    version = opsets.get(domain)
    if version is None:
        raise UnsupportedModel(f"{who}: the model says no opset for the domain {domain or 'ai.onnx'!r}")
    if onnx.defs.has(node.op_type, version, domain) or (not domain and node.op_type in UNSPECIFIED):
        return
    known = {s.name: s.since_version for s in onnx.defs.get_all_schemas_with_history() if s.domain == domain}
    if node.op_type in known:
        since = min(
            s.since_version
            for s in onnx.defs.get_all_schemas_with_history()
            if s.domain == domain and s.name == node.op_type
        )
        raise UnsupportedModel(f"{who}: {node.op_type} exists from opset {since} on, the model says {version}")
    near = difflib.get_close_matches(node.op_type, known, n=3)
    hint = f"; did you mean {', '.join(near)}?" if near else ""
    raise UnsupportedModel(f"{who}: no op {node.op_type!r} in opset {version} of {domain or 'ai.onnx'}{hint}")
