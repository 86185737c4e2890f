"""Caps on what is read of a file: far above every model we know, for files made to harm whoever loads them."""

from __future__ import annotations

from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter

import onnx

from onnxplain.errors import UnsupportedModel
from onnxplain.frontend.proto_graph import SHOWN, describe, key_of, owners, quoted, within

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


def check_counts(proto: onnx.ModelProto, label: str) -> None:
    """Nothing is there too often. Counting comes before looking."""

    def capped(count: int, limit: int, what: str) -> None:
        if count > limit:
            raise UnsupportedModel(f"{label}: {count} {what}; {limit} at most are read")

    capped(len(proto.metadata_props), ENTRIES, "entries of metadata")
    capped(len(proto.opset_import), ENTRIES, "opset imports")
    capped(sum(entry.ByteSize() for entry in proto.metadata_props), METADATA, "bytes of metadata")
    capped(len(proto.functions), NODES, "functions")
    nodes = weights = 0
    for owner, depth in owners(proto):
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


def check_texts(proto: onnx.ModelProto, label: str) -> None:
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
    for owner, _ in owners(proto):
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


def check_calls(proto: onnx.ModelProto, label: str) -> None:
    """No function calls itself, and all of them inlined are not too many nodes: twice forty times is 2**40."""
    if not proto.functions:
        return
    bodies = {key_of(function): [key_of(node) for node in within(function.node)] for function in proto.functions}
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
    total = sum(sizes.get(key_of(node), 1) for node in within(proto.graph.node))
    if total > NODES:
        raise UnsupportedModel(f"{label}: {total:.4g} nodes with the functions inlined; {NODES} at most are read")
