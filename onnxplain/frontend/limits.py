"""Does a run on small input need more than a machine has? Told from shapes, before anything runs."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from graphlib import TopologicalSorter
from math import prod

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from onnxplain.errors import UnsupportedModel
from onnxplain.frontend.sample_inputs import BATCH, LENGTHS
from onnxplain.frontend.validate import RANK, describe, key_of, quoted, read_by, subgraphs

ELEMENTS = 1 << 29  # of one tensor while verifying: 2 rows of 16 heads over 4096 tokens, 2 GiB in float32
INPUT = 1 << 27  # elements of all inputs while verifying; the random numbers for them take 16 bytes each
LIVE = 8 << 30  # bytes of all tensors that are needed at one moment while verifying
WORK = 1 << 40  # multiplications of one node while verifying: some 10 s on two cores, in which nothing stops it
TEXT = 1 << 24  # characters of a string that StringConcat makes
LONGEST = 64  # elements of a tensor that inference is told
KNOWN = 1024  # elements of a tensor whose contents are followed, because sizes are made of them
# Ops that shapes are computed with; their results are small where their inputs are.
# fmt: off
FOLLOWED = {
    "Abs", "Add", "And", "Cast", "Ceil", "Clip", "Concat", "Constant", "ConstantOfShape", "Div", "Equal", "Exp",
    "Expand", "Flatten", "Floor", "Gather", "GatherElements", "Greater", "GreaterOrEqual", "Identity", "Less",
    "LessOrEqual", "Log", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Pow", "Range", "ReduceMax", "ReduceMin",
    "ReduceProd", "ReduceSum", "Reshape", "Round", "ScatterElements", "ScatterND", "Shape", "Sign", "Size", "Slice",
    "Sqrt", "Squeeze", "Sub", "Sum", "Tile", "Transpose", "Unsqueeze", "Where",
}
# fmt: on
PLAIN = {int(getattr(ir.DataType, name)) for name in ("FLOAT", "DOUBLE", "INT32", "INT64", "BOOL")}
WIDTHS = {int(kind) for kind in ir.DataType if kind not in (ir.DataType.UNDEFINED, ir.DataType.STRING)}


def check_sizes(proto: onnx.ModelProto, label: str) -> None:
    """Raise UnsupportedModel where a run on small input needs more than a machine has, as far as one can tell before.

    Sizes that depend on the numbers in the input cannot be told.
    """
    _Sizes(proto, label).graph(proto.graph, {})


@dataclass(frozen=True)
class _Tensor:
    """What is known of a tensor before the run. shape: None for an open axis. numbers: its contents, if small."""

    kind: int = 0
    shape: tuple[int | None, ...] | None = None
    numbers: np.ndarray | None = None
    letters: int = 0

    @property
    def elements(self) -> int:
        """Open axes count as 1."""
        return 0 if self.shape is None else prod(1 if dim is None else dim for dim in self.shape)

    @property
    def bytes(self) -> int:
        """Four for each element of a type that is not known."""
        return self.elements * (ir.DataType(self.kind).bitwidth // 8 or 1 if self.kind in WIDTHS else 4)


class _Sizes:
    """Goes through a graph in the order of its nodes, as a run would, and follows shapes and small contents."""

    def __init__(self, proto: onnx.ModelProto, label: str):
        self.label = label
        self.opsets = {entry.domain: entry.version for entry in proto.opset_import}
        self.functions = {key_of(function): function for function in proto.functions}
        self._known: dict[tuple[object, ...], list[_Tensor]] = {}

    def graph(self, graph: onnx.GraphProto, outer: dict[str, _Tensor], inputs: Sequence[_Tensor] = ()) -> list[_Tensor]:
        """The outputs. outer: what a body sees. inputs: of a body; the main graph's come from their declarations."""
        known = dict(outer)
        for tensor in graph.initializer:
            known[tensor.name] = _of(tensor)
        total = 0
        for i, value in enumerate(graph.input):
            if value.name not in known or outer:
                known[value.name] = inputs[i] if i < len(inputs) else self._input(value) if not outer else _Tensor()
                total += known[value.name].elements
        if total > INPUT and not outer:
            raise UnsupportedModel(
                f"{self.label}: inputs of {total:.4g} elements, open axes being {BATCH} and {LENGTHS[0]}; "
                f"{INPUT} at most are verified"
            )
        self.nodes(_sorted(graph.node), known, [value.name for value in graph.output])
        return [known.get(value.name, _Tensor()) for value in graph.output]

    def nodes(self, nodes: Sequence[onnx.NodeProto], known: dict[str, _Tensor], kept: Sequence[str]) -> None:
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
                live += tensor.bytes
                ends.setdefault(last.get(name, i), []).append(name)
            if live > LIVE:
                raise UnsupportedModel(
                    f"{self.label}: at {describe(node)} tensors of {live:.4g} bytes live at once; "
                    f"{LIVE} at most are verified"
                )
            live -= sum(known[name].bytes for name in ends.pop(i, []))

    def _capped(self, node: onnx.NodeProto, tensor: _Tensor) -> None:
        if tensor.elements > ELEMENTS:
            shape = [dim if dim is not None else "?" for dim in tensor.shape or ()]
            raise UnsupportedModel(
                f"{self.label}: {describe(node)} makes {tensor.elements:.4g} elements {shape}; "
                f"{ELEMENTS} at most are verified"
            )
        if tensor.letters > TEXT:
            raise UnsupportedModel(f"{self.label}: {describe(node)} makes a text of {tensor.letters:.4g} characters")

    def _input(self, value: onnx.ValueInfoProto) -> _Tensor:
        kind = value.type.tensor_type
        if len(kind.shape.dim) > RANK:
            raise UnsupportedModel(
                f"{self.label}: the input {quoted(value.name)} has {len(kind.shape.dim)} dims; {RANK} at most are read"
            )
        if not kind.HasField("shape"):
            return _Tensor(kind.elem_type)
        sizes = (
            dim.dim_value if dim.dim_value > 0 else LENGTHS[0] if i else BATCH for i, dim in enumerate(kind.shape.dim)
        )
        return _Tensor(kind.elem_type, tuple(sizes))  # as `feeds.candidates` begins

    def _made(self, node: onnx.NodeProto, known: dict[str, _Tensor]) -> list[_Tensor]:
        """The outputs of a node; empty where nothing is known."""
        inputs = [known.get(name, _Tensor()) for name in node.input]
        function = self.functions.get(key_of(node))
        if function is not None:
            return self._called(function, node, inputs)
        if subgraphs(node):
            return self._branched(node, inputs, known)
        if node.op_type == "StringConcat" and inputs:
            return [replace(inputs[0], letters=sum(max(1, tensor.letters) for tensor in inputs), numbers=None)]
        made = self._inferred(node, inputs)
        for tensor in made:
            self._capped(node, tensor)
        work = _work(node, inputs, made)
        if work > WORK:
            raise UnsupportedModel(
                f"{self.label}: {describe(node)} is {work:.4g} multiplications; {WORK:.4g} at most are verified"
            )
        return _followed(node, inputs, made, self.opsets) if _computable(node, inputs) else made

    def _called(self, function: onnx.FunctionProto, node: onnx.NodeProto, inputs: list[_Tensor]) -> list[_Tensor]:
        given = {attribute.name: attribute for attribute in (*function.attribute_proto, *node.attribute)}
        inside = dict(zip(function.input, inputs, strict=False))
        before, own = self.opsets, {entry.domain: entry.version for entry in function.opset_import}
        self.opsets = {**before, **own}
        self.nodes(_sorted([_bound(inner, given) for inner in function.node]), inside, function.output)
        self.opsets = before
        return [inside.get(name, _Tensor()) for name in function.output]

    def _branched(self, node: onnx.NodeProto, inputs: list[_Tensor], known: dict[str, _Tensor]) -> list[_Tensor]:
        """Bodies are gone through once; what a loop collects is as many times that."""
        if node.op_type == "If":
            branches = [self.graph(body, {**known, "": _Tensor()}) for body in subgraphs(node)]
            return max(branches, key=lambda outputs: sum(output.elements for output in outputs))
        if node.op_type != "Loop":
            for body in subgraphs(node):
                self.graph(body, {**known, "": _Tensor()}, [_Tensor()] * len(body.input))
            return []
        given = [_Tensor(onnx.TensorProto.INT64, ()), _Tensor(onnx.TensorProto.BOOL, ()), *inputs[2:]]
        given = [replace(tensor, numbers=None) for tensor in given]
        (body,) = subgraphs(node)[:1]
        outputs = self.graph(body, {**known, "": _Tensor()}, given)[1:]
        count = inputs[0].numbers if inputs else None
        trips = int(count.flat[0]) if count is not None and count.size and count.dtype == np.int64 else None
        carried = [_Tensor(tensor.kind) for tensor in inputs[2:]]
        scans = outputs[len(carried) :]
        return [*carried, *(_Tensor(s.kind, (trips, *s.shape) if s.shape is not None else None) for s in scans)]

    def _inferred(self, node: onnx.NodeProto, inputs: Sequence[_Tensor]) -> list[_Tensor]:
        """onnx's own inference of one node."""
        domain = "" if node.domain == "ai.onnx" else node.domain
        version = self.opsets.get(domain, 0)
        if not onnx.defs.has(node.op_type, version, domain):
            return []
        if any(name and not tensor.kind for name, tensor in zip(node.input, inputs, strict=True)):
            return []
        given = tuple(
            (
                tensor.kind,
                tensor.shape,
                tensor.numbers.tobytes() if _told(tensor) and tensor.numbers is not None else b"",
            )
            if name
            else None
            for name, tensor in zip(node.input, inputs, strict=True)
        )
        attributes = b"".join(attribute.SerializeToString() for attribute in node.attribute)
        key = (domain, node.op_type, version, attributes, len(node.output), given)
        if key not in self._known:  # layers repeat: most nodes have been seen before
            self._known[key] = _inferred(node, inputs, domain, version)
        return self._known[key]


def _told(tensor: _Tensor) -> bool:
    """Whether inference is told the numbers."""
    return tensor.numbers is not None and tensor.elements <= LONGEST


def _inferred(node: onnx.NodeProto, inputs: Sequence[_Tensor], domain: str, version: int) -> list[_Tensor]:
    schema = onnx.defs.get_schema(node.op_type, version, domain)
    proto = onnx.NodeProto(op_type=node.op_type, domain=domain, attribute=node.attribute)
    types, data = {}, {}
    try:
        for i, (name, tensor) in enumerate(zip(node.input, inputs, strict=True)):
            proto.input.append(f"i{i}" if name else "")
            if name:
                types[f"i{i}"] = onnx.helper.make_tensor_type_proto(tensor.kind, tensor.shape)
            if name and tensor.numbers is not None and _told(tensor):
                data[f"i{i}"] = onnx.numpy_helper.from_array(tensor.numbers)
        proto.output.extend(f"o{i}" for i in range(len(node.output)))
        imports = [onnx.helper.make_opsetid(domain, version)]
        found = onnx.shape_inference.infer_node_outputs(schema, proto, types, data, opset_imports=imports)
    except Exception:  # what cannot be inferred stays unknown; the run has the last word
        return []
    return [_typed(found[f"o{i}"]) if f"o{i}" in found else _Tensor() for i in range(len(node.output))]


def _of(tensor: onnx.TensorProto) -> _Tensor:
    """A weight; its numbers where they are few and here."""
    shape = tuple(tensor.dims)
    here = tensor.data_location != onnx.TensorProto.EXTERNAL and tensor.data_type in PLAIN
    return _Tensor(
        tensor.data_type, shape, onnx.numpy_helper.to_array(tensor) if here and prod(shape) <= KNOWN else None
    )


def _typed(found: onnx.TypeProto) -> _Tensor:
    kind = found.tensor_type
    if not kind.HasField("shape"):
        return _Tensor(kind.elem_type)
    sizes = (dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else None for dim in kind.shape.dim)
    return _Tensor(kind.elem_type, tuple(sizes))


def _bound(node: onnx.NodeProto, given: Mapping[str, onnx.AttributeProto]) -> onnx.NodeProto:
    """A node of a function with the attributes of the call."""
    if not any(attribute.ref_attr_name for attribute in node.attribute):
        return node
    bound = onnx.NodeProto()
    bound.CopyFrom(node)
    del bound.attribute[:]
    for attribute in node.attribute:
        if not attribute.ref_attr_name:
            bound.attribute.append(attribute)
        elif attribute.ref_attr_name in given:
            bound.attribute.append(given[attribute.ref_attr_name])
            bound.attribute[-1].name = attribute.name
    return bound


def _sorted(nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Makers before readers, whatever the file's order; free of cycles by now."""
    maker = {name: i for i, node in enumerate(nodes) for name in node.output if name}
    before = [{maker[name] for name in read_by(node) if name in maker} for node in nodes]
    if all(max(made, default=-1) < i for i, made in enumerate(before)):
        return list(nodes)
    return [nodes[i] for i in TopologicalSorter(dict(enumerate(before))).static_order()]


def _computable(node: onnx.NodeProto, inputs: Sequence[_Tensor]) -> bool:
    """Whether the contents can be followed through a node."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in FOLLOWED:
        return False
    if node.op_type in ("Shape", "Size"):
        return bool(inputs) and inputs[0].shape is not None and None not in inputs[0].shape
    return all(tensor.numbers is not None for name, tensor in zip(node.input, inputs, strict=True) if name)


def _followed(
    node: onnx.NodeProto, inputs: Sequence[_Tensor], made: list[_Tensor], opsets: Mapping[str, int]
) -> list[_Tensor]:
    """The outputs with their contents, if these are few."""
    if not made or any(tensor.shape is None or None in tensor.shape or tensor.elements > KNOWN for tensor in made):
        return made
    if node.op_type in ("Shape", "Size"):
        shape = [dim or 0 for dim in inputs[0].shape or ()]
        ends = {attribute.name: attribute.i for attribute in node.attribute}
        whole = np.array(shape[ends.get("start", 0) : ends.get("end")], np.int64)
        return [replace(made[0], numbers=whole if node.op_type == "Shape" else np.array(prod(shape), np.int64))]
    feeds = {name: tensor.numbers for name, tensor in zip(node.input, inputs, strict=True) if name}
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = ReferenceEvaluator(node, opsets={"": opsets.get("", 1)}).run(None, feeds)
    except Exception:  # as above
        return made
    return [replace(tensor, numbers=np.asarray(y)) for tensor, y in zip(made, found, strict=False)]


def _work(node: onnx.NodeProto, inputs: Sequence[_Tensor], made: Sequence[_Tensor]) -> int:
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
