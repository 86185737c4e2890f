"""Does a run on small input need more than a machine has? Told from shapes, before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from graphlib import TopologicalSorter
from math import prod

import numpy as np
import onnx

from onnxplain.errors import UnsupportedModel
from onnxplain.frontend.caps import RANK
from onnxplain.frontend.proto_graph import describe, key_of, quoted, read_by, subgraphs
from onnxplain.frontend.sample_inputs import BATCH, LENGTHS
from onnxplain.frontend.static_values import Outputs, StaticTensor, computable, with_numbers

ELEMENTS = 1 << 29  # of one tensor while verifying: 2 rows of 16 heads over 4096 tokens, 2 GiB in float32
INPUT = 1 << 27  # elements of all inputs while verifying; the random numbers for them take 16 bytes each
LIVE = 8 << 30  # bytes of all tensors that are needed at one moment while verifying
WORK = 1 << 40  # multiplications of one node while verifying: some 10 s on two cores, in which nothing stops it
TEXT = 1 << 24  # characters of a string that StringConcat makes


def check_sizes(proto: onnx.ModelProto, label: str) -> None:
    """Raise UnsupportedModel where a run on small input needs more than a machine has, as far as one can tell before.

    Sizes that depend on the numbers in the input cannot be told.
    """
    _Sizes(proto, label).graph(proto.graph, {})


class _Sizes:
    """Goes through a graph in the order of its nodes, as a run would, and follows shapes and small contents."""

    def __init__(self, proto: onnx.ModelProto, label: str):
        self.label = label
        self.opsets = {entry.domain: entry.version for entry in proto.opset_import}
        self.functions = {key_of(function): function for function in proto.functions}
        self._outputs = Outputs()

    def graph(
        self, graph: onnx.GraphProto, outer: dict[str, StaticTensor], inputs: Sequence[StaticTensor] = ()
    ) -> list[StaticTensor]:
        """The outputs. outer: what a body sees. inputs: of a body; the main graph's come from their declarations."""
        known = dict(outer)
        for tensor in graph.initializer:
            known[tensor.name] = StaticTensor.of(tensor)
        total = 0
        for i, value in enumerate(graph.input):
            if value.name not in known or outer:
                known[value.name] = (
                    inputs[i] if i < len(inputs) else self._input(value) if not outer else StaticTensor()
                )
                total += known[value.name].elements
        if total > INPUT and not outer:
            raise UnsupportedModel(
                f"{self.label}: inputs of {total:.4g} elements, open axes being {BATCH} and {LENGTHS[0]}; "
                f"{INPUT} at most are verified"
            )
        self.nodes(_sorted(graph.node), known, [value.name for value in graph.output])
        return [known.get(value.name, StaticTensor()) for value in graph.output]

    def nodes(self, nodes: Sequence[onnx.NodeProto], known: dict[str, StaticTensor], kept: Sequence[str]) -> None:
        """Fill `known`; refuse what is too large, alone or together."""
        last = {name: i for i, node in enumerate(nodes) for name in read_by(node)}
        last.update(dict.fromkeys(kept, len(nodes)))
        ends: dict[int, list[str]] = {}
        live = 0
        for i, node in enumerate(nodes):
            made = self._made(node, known)
            for name, tensor in zip(node.output, made, strict=False):
                self._capped(node, tensor)
                known[name] = tensor
                live += tensor.memory
                ends.setdefault(last.get(name, i), []).append(name)
            if live > LIVE:
                raise UnsupportedModel(
                    f"{self.label}: at {describe(node)} tensors of {live:.4g} bytes live at once; "
                    f"{LIVE} at most are verified"
                )
            live -= sum(known[name].memory for name in ends.pop(i, []))

    def _capped(self, node: onnx.NodeProto, tensor: StaticTensor) -> None:
        if tensor.elements > ELEMENTS:
            shape = [dim if dim is not None else "?" for dim in tensor.shape or ()]
            raise UnsupportedModel(
                f"{self.label}: {describe(node)} makes {tensor.elements:.4g} elements {shape}; "
                f"{ELEMENTS} at most are verified"
            )
        if tensor.letters > TEXT:
            raise UnsupportedModel(f"{self.label}: {describe(node)} makes a text of {tensor.letters:.4g} characters")

    def _input(self, value: onnx.ValueInfoProto) -> StaticTensor:
        kind = value.type.tensor_type
        if len(kind.shape.dim) > RANK:
            raise UnsupportedModel(
                f"{self.label}: the input {quoted(value.name)} has {len(kind.shape.dim)} dims; {RANK} at most are read"
            )
        if not kind.HasField("shape"):
            return StaticTensor(kind.elem_type)
        sizes = (
            dim.dim_value if dim.dim_value > 0 else LENGTHS[0] if i else BATCH for i, dim in enumerate(kind.shape.dim)
        )
        return StaticTensor(kind.elem_type, tuple(sizes))  # as `feeds.candidates` begins

    def _made(self, node: onnx.NodeProto, known: dict[str, StaticTensor]) -> list[StaticTensor]:
        """The outputs of a node; empty where nothing is known."""
        inputs = [known.get(name, StaticTensor()) for name in node.input]
        function = self.functions.get(key_of(node))
        if function is not None:
            return self._called(function, node, inputs)
        if subgraphs(node):
            return self._branched(node, inputs, known)
        if node.op_type == "StringConcat" and inputs:
            return [replace(inputs[0], letters=sum(max(1, tensor.letters) for tensor in inputs), numbers=None)]
        made = self._outputs.of(node, inputs, self.opsets)
        for tensor in made:
            self._capped(node, tensor)
        work = _work(node, inputs, made)
        if work > WORK:
            raise UnsupportedModel(
                f"{self.label}: {describe(node)} is {work:.4g} multiplications; {WORK:.4g} at most are verified"
            )
        return with_numbers(node, inputs, made, self.opsets) if computable(node, inputs) else made

    def _called(
        self, function: onnx.FunctionProto, node: onnx.NodeProto, inputs: list[StaticTensor]
    ) -> list[StaticTensor]:
        attributes = {attribute.name: attribute for attribute in (*function.attribute_proto, *node.attribute)}
        inside = dict(zip(function.input, inputs, strict=False))
        before, own = self.opsets, {entry.domain: entry.version for entry in function.opset_import}
        self.opsets = {**before, **own}
        self.nodes(_sorted([_bound(inner, attributes) for inner in function.node]), inside, function.output)
        self.opsets = before
        return [inside.get(name, StaticTensor()) for name in function.output]

    def _branched(
        self, node: onnx.NodeProto, inputs: list[StaticTensor], known: dict[str, StaticTensor]
    ) -> list[StaticTensor]:
        """Bodies are gone through once; what a loop collects is as many times that."""
        if node.op_type == "If":
            branches = [self.graph(body, {**known, "": StaticTensor()}) for body in subgraphs(node)]
            return max(branches, key=lambda outputs: sum(output.elements for output in outputs))
        if node.op_type != "Loop":
            for body in subgraphs(node):
                self.graph(body, {**known, "": StaticTensor()}, [StaticTensor()] * len(body.input))
            return []
        carried_in = [StaticTensor(onnx.TensorProto.INT64, ()), StaticTensor(onnx.TensorProto.BOOL, ()), *inputs[2:]]
        carried_in = [replace(tensor, numbers=None) for tensor in carried_in]
        (body,) = subgraphs(node)[:1]
        outputs = self.graph(body, {**known, "": StaticTensor()}, carried_in)[1:]
        count = inputs[0].numbers if inputs else None
        trips = int(count.flat[0]) if count is not None and count.size and count.dtype == np.int64 else None
        carried = [StaticTensor(tensor.kind) for tensor in inputs[2:]]
        scans = outputs[len(carried) :]
        return [*carried, *(StaticTensor(s.kind, (trips, *s.shape) if s.shape is not None else None) for s in scans)]


def _bound(node: onnx.NodeProto, attributes: Mapping[str, onnx.AttributeProto]) -> onnx.NodeProto:
    """A node of a function with the attributes of the call."""
    if not any(attribute.ref_attr_name for attribute in node.attribute):
        return node
    bound = onnx.NodeProto()
    bound.CopyFrom(node)
    del bound.attribute[:]
    for attribute in node.attribute:
        if not attribute.ref_attr_name:
            bound.attribute.append(attribute)
        elif attribute.ref_attr_name in attributes:
            bound.attribute.append(attributes[attribute.ref_attr_name])
            bound.attribute[-1].name = attribute.name
    return bound


def _sorted(nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Makers before readers, whatever the file's order; free of cycles by now."""
    maker = {name: i for i, node in enumerate(nodes) for name in node.output if name}
    before = [{maker[name] for name in read_by(node) if name in maker} for node in nodes]
    if all(max(made, default=-1) < i for i, made in enumerate(before)):
        return list(nodes)
    return [nodes[i] for i in TopologicalSorter(dict(enumerate(before))).static_order()]


def _work(node: onnx.NodeProto, inputs: Sequence[StaticTensor], made: Sequence[StaticTensor]) -> int:
    """Multiplications of the ops that can have far more of them than numbers."""
    if not made or len(inputs) < 2 or inputs[0].shape is None or inputs[1].shape is None:
        return 0
    if node.op_type in ("MatMul", "Gemm") and inputs[0].shape:
        inner = {attribute.name: attribute.i for attribute in node.attribute}.get("transA", 0)
        return made[0].elements * (inputs[0].shape[0 if inner else -1] or 1)
    kernel = prod(dim or 1 for dim in inputs[1].shape[1:])
    if node.op_type == "Conv":
        return made[0].elements * kernel
    return inputs[0].elements * kernel if node.op_type == "ConvTranspose" else 0
