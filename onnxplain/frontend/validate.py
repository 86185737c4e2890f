"""Is the graph of a file well formed, and small enough to be looked at (`caps`)?

Names used once, nothing read that nobody made, no cycle, ops that exist, weights as long as they say.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from graphlib import CycleError, TopologicalSorter
from math import prod

import onnx
import onnx_ir as ir

from onnxplain.errors import UnsupportedModel
from onnxplain.frontend.caps import RANK, check_calls, check_counts, check_texts
from onnxplain.frontend.proto_graph import Nodes, describe, key_of, quoted, read_by, stored_bytes, subgraphs, tensors

STANDARD = ("", "ai.onnx.ml")
CONTRIBUTED = "com.microsoft"
BLOCKED = "com.microsoft.nchwc"
UNSPECIFIED = {"SimplifiedLayerNormalization"}  # onnxruntime writes it into the default domain


def check(proto: onnx.ModelProto, label: str, mark: str) -> None:
    """Raise UnsupportedModel with one line where a graph is not one we can read.

    mark: the location of weights that stay in the model's own file, see `weightless`.
    """
    check_counts(proto, label)
    check_texts(proto, label)
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
    check_calls(proto, label)
    for tensor in tensors(proto):
        _weight(tensor, f"{label}: weights {quoted(tensor.name)}", stored_bytes(tensor, mark))
    _names(graph, set(), label)
    _ops(graph.node, opsets, set(functions), label)
    for function in proto.functions:
        own = {("" if e.domain == "ai.onnx" else e.domain): e.version for e in function.opset_import}
        _names(_as_graph(function), set(), label)
        _ops(function.node, {**opsets, **own}, set(functions), label)


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
