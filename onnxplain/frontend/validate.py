"""Is the graph of a file well formed, and small enough to be looked at?

Names used once, nothing read that nobody made, no cycle, ops that exist, weights as long as they say. The caps are far
above every model we know; they are there for files made to harm whoever loads them.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from graphlib import CycleError, TopologicalSorter
from math import prod

import onnx
import onnx_ir as ir

from onnxplain.errors import UnsupportedModel

STANDARD = ("", "ai.onnx.ml")
CONTRIBUTED = "com.microsoft"
BLOCKED = "com.microsoft.nchwc"
NODES = 50_000  # of the graph and its bodies, functions inlined; onnxruntime takes 5 s and 600 MB for 100 000
WEIGHTS = 100_000  # tensors
PORTS = 4096  # inputs of the model, or outputs: a large language model with its caches has 300
EDGES = 16_384  # inputs, outputs or attributes of one node: tree ensembles and wide Concats have thousands
DEPTH = 16  # bodies within bodies; protobuf itself stops at about 30
CALLS = 32  # functions that call functions
NAME = 4096  # characters; PyTorch's longest have some hundred
RANK = 16  # axes of a tensor
METADATA = 16 << 20  # bytes; our own provenance of a thousand nodes has 200 kB
ENTRIES = 10_000  # of the metadata and of the opset imports
SHOWN = 80  # characters of a name in an error
Nodes = Iterable[onnx.NodeProto]
Owner = onnx.GraphProto | onnx.FunctionProto
UNSPECIFIED = {"SimplifiedLayerNormalization"}  # onnxruntime writes it into the default domain


def check(proto: onnx.ModelProto, label: str, mark: str) -> None:
    """Raise UnsupportedModel with one line where a graph is not one we can read.

    mark: the location of weights that stay in the model's own file, see `weightless`.
    """
    _counts(proto, label)
    _texts(proto, label)
    graph = proto.graph
    opsets = {entry.domain: entry.version for entry in proto.opset_import}
    if not opsets:
        raise UnsupportedModel(f"{label}: says no opset, so its ops have no meaning")
    if not graph.node:
        raise UnsupportedModel(f"{label}: the graph has no nodes")
    if not graph.output:
        raise UnsupportedModel(f"{label}: the graph has no outputs")
    functions = {key_of(f): f for f in proto.functions}
    if len(functions) < len(proto.functions):
        raise UnsupportedModel(f"{label}: two functions have the same name")
    _calls(proto, label)
    for tensor in tensors(proto):
        _weight(tensor, f"{label}: weights {quoted(tensor.name)}", stored_bytes(tensor, mark))
    _names(graph, set(), label)
    _ops(graph.node, opsets, set(functions), label)
    for function in proto.functions:
        own = {("" if e.domain == "ai.onnx" else e.domain): e.version for e in function.opset_import}
        _names(_as_graph(function), set(), label)
        _ops(function.node, {**opsets, **own}, set(functions), label)


def describe(node: onnx.NodeProto) -> str:
    """The node's name, else what it makes, and its op."""
    made = next((name for name in node.output if name), "?")
    return f"{(node.name or made)[:SHOWN]} ({node.op_type[:SHOWN]})"


def tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a model: weights, and what attributes hold."""
    for owner, _ in _owners(proto):
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


def _owners(proto: onnx.ModelProto) -> Iterator[tuple[Owner, int]]:
    """The graph, the functions and all bodies within, each with its depth."""
    pending: list[tuple[Owner, int]] = [(proto.graph, 0), *((function, 0) for function in proto.functions)]
    while pending:
        owner, depth = pending.pop()
        yield owner, depth
        pending += [(body, depth + 1) for node in owner.node for body in subgraphs(node)]


def _counts(proto: onnx.ModelProto, label: str) -> None:
    """Nothing is there too often. Counting comes before looking."""

    def capped(count: int, limit: int, what: str) -> None:
        if count > limit:
            raise UnsupportedModel(f"{label}: {count} {what}; {limit} at most are read")

    capped(len(proto.metadata_props), ENTRIES, "entries of metadata")
    capped(len(proto.opset_import), ENTRIES, "opset imports")
    capped(sum(entry.ByteSize() for entry in proto.metadata_props), METADATA, "bytes of metadata")
    capped(len(proto.functions), NODES, "functions")
    nodes = weights = 0
    for owner, depth in _owners(proto):
        capped(depth, DEPTH, "bodies of If, Loop or Scan nested in one another")
        nodes += len(owner.node)
        capped(nodes, NODES, "nodes")
        capped(len(owner.input), PORTS + (WEIGHTS if not depth else 0), "inputs")  # old models list weights there
        capped(len(owner.output), PORTS, "outputs")
        for node in owner.node:
            capped(len(node.input), EDGES, f"inputs of one node, {describe(node)}")
            capped(len(node.output), EDGES, f"outputs of one node, {describe(node)}")
            capped(len(node.attribute), EDGES, f"attributes of one node, {describe(node)}")
        if isinstance(owner, onnx.GraphProto):
            if owner.sparse_initializer:
                raise UnsupportedModel(f"{label}: has sparse weights, which are not read; store them densely")
            weights += len(owner.initializer)
            capped(weights, WEIGHTS, "weights")
            capped(len(owner.value_info), 4 * NODES, "inner tensors with a type")
    listed = {tensor.name for tensor in proto.graph.initializer}
    capped(sum(value.name not in listed for value in proto.graph.input), PORTS, "inputs")


def _texts(proto: onnx.ModelProto, label: str) -> None:
    """Names are UTF-8, not endless, and hold no line breaks: they appear in answers, logs and terminals."""
    for text in _all_texts(proto):
        if isinstance(text, bytes):  # what protobuf hands out where the bytes are no text
            raise UnsupportedModel(f"{label}: the name {quoted(repr(text))} is not UTF-8")
        if len(text) > NAME:
            raise UnsupportedModel(
                f"{label}: the name {quoted(text)} has {len(text)} characters; {NAME} at most are read"
            )
        if not text.isprintable() and any(ord(letter) < 32 or ord(letter) == 127 for letter in text):
            raise UnsupportedModel(f"{label}: the name {quoted(text)} holds a control character")


def _all_texts(proto: onnx.ModelProto) -> Iterator[str | bytes]:
    for entry in proto.opset_import:
        yield entry.domain
    for owner, _ in _owners(proto):
        if isinstance(owner, onnx.FunctionProto):
            yield from (owner.name, owner.domain, *owner.input, *owner.output, *owner.attribute)
        else:
            yield from (tensor.name for tensor in owner.initializer)
            for value in (*owner.input, *owner.output, *owner.value_info):
                yield value.name
                yield from (dim.dim_param for dim in value.type.tensor_type.shape.dim)
        for node in owner.node:
            yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
            for attribute in node.attribute:
                yield attribute.name
                yield attribute.ref_attr_name


def key_of(call: onnx.FunctionProto | onnx.NodeProto) -> tuple[str, str]:
    """Domain and name: what a node calls a function by."""
    name = call.name if isinstance(call, onnx.FunctionProto) else call.op_type
    return (call.domain if call.domain != "ai.onnx" else "", name)


def _within(nodes: Nodes) -> Iterator[onnx.NodeProto]:
    """The nodes and those of their bodies."""
    pending = list(nodes)
    while pending:
        node = pending.pop()
        yield node
        for body in subgraphs(node):
            pending += body.node


def _calls(proto: onnx.ModelProto, label: str) -> None:
    """No function calls itself, and all of them inlined are not too many nodes: twice forty times is 2**40."""
    if not proto.functions:
        return
    bodies = {key_of(function): [key_of(node) for node in _within(function.node)] for function in proto.functions}
    called = {key: {op for op in ops if op in bodies} for key, ops in bodies.items()}
    try:
        order = list(TopologicalSorter(called).static_order())
    except CycleError as error:
        names = " -> ".join(name[:SHOWN] for _, name in error.args[1][::-1][:8])
        raise UnsupportedModel(f"{label}: a function calls itself: {names}") from error
    sizes: dict[tuple[str, str], int] = {}
    levels: dict[tuple[str, str], int] = {}
    for key in order:
        sizes[key] = sum(sizes.get(op, 1) for op in bodies[key])
        levels[key] = 1 + max((levels[op] for op in called[key]), default=0)
    if max(levels.values()) > CALLS:
        raise UnsupportedModel(
            f"{label}: functions call functions {max(levels.values())} deep; {CALLS} at most are read"
        )
    total = sum(sizes.get(key_of(node), 1) for node in _within(proto.graph.node))
    if total > NODES:
        raise UnsupportedModel(f"{label}: {total:.4g} nodes with the functions inlined; {NODES} at most are read")


def stored_bytes(tensor: onnx.TensorProto, mark: str) -> int | None:
    """How many bytes the model's own file has of a tensor that stays there; None for any other."""
    place = {entry.key: entry.value for entry in tensor.external_data}
    return int(place["length"]) if place.get("location") == mark else None


def _weight(tensor: onnx.TensorProto, who: str, stored: int | None) -> None:
    """A tensor has as many numbers as its dims say. stored: bytes in the model's file, where it stays there."""
    dims = list(tensor.dims)
    if len(dims) > RANK:
        raise UnsupportedModel(f"{who} have {len(dims)} dims; {RANK} at most are read")
    try:
        kind = ir.DataType(tensor.data_type)
        bits = 8 if kind == ir.DataType.STRING else kind.bitwidth
    except (ValueError, TypeError, KeyError) as error:
        raise UnsupportedModel(f"{who} have the unknown type {tensor.data_type}") from error
    if any(dim < 0 for dim in dims):
        raise UnsupportedModel(f"{who} have negative dims: {dims}")
    if stored is None and tensor.data_location == onnx.TensorProto.EXTERNAL:
        return
    if tensor.HasField("segment"):
        raise UnsupportedModel(f"{who} come in segments, which are not read")
    if stored is not None:
        found, needed, unit = stored, prod(dims) * bits // 8, "bytes"
    elif tensor.HasField("raw_data"):
        found, needed, unit = len(tensor.raw_data), (prod(dims) * bits + 7) // 8, "bytes"
    else:
        held, per = _numbers(tensor, kind)
        found, needed, unit = len(held), -(-prod(dims) * per[0] // per[1]), "numbers"
    if found != needed:
        raise UnsupportedModel(f"{who} have the dims {dims}, so {needed} {unit}, but the file holds {found}")


def _numbers(tensor: onnx.TensorProto, kind: ir.DataType) -> tuple[Sequence[object], tuple[int, int]]:
    """The field that holds numbers of a type, and how many entries it has for how many numbers."""
    types = ir.DataType
    if kind == types.STRING:
        return tensor.string_data, (1, 1)
    if kind in (types.FLOAT, types.COMPLEX64):
        return tensor.float_data, (2 if kind == types.COMPLEX64 else 1, 1)
    if kind in (types.DOUBLE, types.COMPLEX128):
        return tensor.double_data, (2 if kind == types.COMPLEX128 else 1, 1)
    if kind == types.INT64:
        return tensor.int64_data, (1, 1)
    if kind in (types.UINT32, types.UINT64):
        return tensor.uint64_data, (1, 1)
    return tensor.int32_data, (1, max(1, 8 // kind.bitwidth))


def _as_graph(function: onnx.FunctionProto) -> onnx.GraphProto:
    """A function's nodes between its inputs and outputs, for what is asked of every graph."""
    ports = [[onnx.ValueInfoProto(name=name) for name in names] for names in (function.input, function.output)]
    return onnx.GraphProto(node=function.node, input=ports[0], output=ports[1])


def quoted(name: str | None) -> str:
    """A name as errors show it: bounded, control characters escaped."""
    text = repr(name or "")
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _names(graph: onnx.GraphProto, outer: set[str], label: str) -> None:
    """Each tensor is made once, and whatever is read is made somewhere before."""
    made = {value.name for value in graph.input}
    if len(made) < len(graph.input):
        raise UnsupportedModel(f"{label}: two inputs have the same name")
    listed = [tensor.name for tensor in graph.initializer]
    weights = set(listed)
    if len(weights) < len(listed):
        raise UnsupportedModel(f"{label}: two weights have the name {quoted(_repeated(listed))}")
    known = outer | made | weights
    maker: dict[str, int] = {}
    for i, node in enumerate(graph.node):
        for name in filter(None, node.output):
            if name in maker or name in made or name in weights:
                other = describe(graph.node[maker[name]]) if name in maker else "an input or weight"
                raise UnsupportedModel(
                    f"{label}: the name {quoted(name)} is used twice: by {other} and by {describe(node)}"
                )
            maker[name] = i
    known |= maker.keys()
    reads = [read_by(node) for node in graph.node]
    for node, names in zip(graph.node, reads, strict=True):
        for name in names:
            if name not in known:
                raise UnsupportedModel(f"{label}: {describe(node)} reads {quoted(name)}, which nothing makes")
    for value in graph.output:
        if value.name not in known:
            raise UnsupportedModel(f"{label}: the output {quoted(value.name)} is made by no node")
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


def read_by(node: onnx.NodeProto) -> list[str]:
    """Names a node reads, those its bodies take from outside included."""
    names = [name for name in node.input if name]
    for body in subgraphs(node):
        own = {value.name for value in body.input} | {tensor.name for tensor in body.initializer}
        own |= {name for inner in body.node for name in inner.output}
        wanted = [name for inner in body.node for name in read_by(inner)] + [value.name for value in body.output]
        names += [name for name in wanted if name not in own]
    return names


def _repeated(names: Sequence[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _ops(nodes: Nodes, opsets: dict[str, int], functions: set[tuple[str, str]], label: str) -> None:
    for node in nodes:
        domain = "" if node.domain == "ai.onnx" else node.domain
        if key_of(node) not in functions:
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
            f"{who}: unknown domain {quoted(domain)} and no function of that name in the model; "
            f"known are ai.onnx, ai.onnx.ml and com.microsoft"
        )
    version = opsets.get(domain)
    if version is None:
        raise UnsupportedModel(f"{who}: the model says no opset for the domain {quoted(domain or 'ai.onnx')}")
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
    raise UnsupportedModel(f"{who}: no op {quoted(node.op_type)} in opset {version} of {domain or 'ai.onnx'}{hint}")
