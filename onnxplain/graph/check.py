"""Is the graph of a file well formed, and small enough to be looked at?

Names used once, nothing read that nobody made, no cycle, ops that exist, weights as long as they say. The caps are far
above every model we know; they are there for files made to harm whoever loads them.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from math import prod

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from onnxplain.errors import UnsupportedModel
from onnxplain.graph.feeds import BATCH, LENGTHS

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
ELEMENTS = 1 << 29  # of one tensor while verifying: 2 rows of 16 heads over 4096 tokens, 2 GiB in float32
INPUT = 1 << 27  # elements of all inputs while verifying; the random numbers for them take 16 bytes each
LIVE = 8 << 30  # bytes of all tensors that are needed at one moment while verifying
WORK = 1 << 40  # multiplications of one node while verifying: some 10 s on two cores, in which nothing stops it
TEXT = 1 << 24  # characters of a string that StringConcat makes
LONGEST = 64  # elements of a tensor that inference is told
KNOWN = 1024  # elements of a tensor whose contents are followed, because sizes are made of them
ENTRIES = 10_000  # of the metadata and of the opset imports
SHOWN = 80  # characters of a name in an error
FOLLOWED = {  # ops that shapes are computed with; their results are small where their inputs are
    *(
        "Abs",
        "Add",
        "And",
        "Cast",
        "Ceil",
        "Clip",
        "Concat",
        "Constant",
        "ConstantOfShape",
        "Div",
        "Equal",
        "Exp",
        "Expand",
    ),
    *("Flatten", "Floor", "Gather", "GatherElements", "Greater", "GreaterOrEqual", "Identity", "Less", "LessOrEqual"),
    *("Log", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Pow", "Range", "ReduceMax", "ReduceMin", "ReduceProd"),
    *(
        "ReduceSum",
        "Reshape",
        "Round",
        "ScatterElements",
        "ScatterND",
        "Shape",
        "Sign",
        "Size",
        "Slice",
        "Sqrt",
        "Squeeze",
    ),
    *("Sub", "Sum", "Tile", "Transpose", "Unsqueeze", "Where"),
}
Nodes = Iterable[onnx.NodeProto]
PLAIN = {int(getattr(ir.DataType, name)) for name in ("FLOAT", "DOUBLE", "INT32", "INT64", "BOOL")}
WIDTHS = {int(kind) for kind in ir.DataType if kind not in (ir.DataType.UNDEFINED, ir.DataType.STRING)}
Owner = onnx.GraphProto | onnx.FunctionProto
UNSPECIFIED = {"SimplifiedLayerNormalization"}  # onnxruntime writes it into the default domain


def check(proto: onnx.ModelProto, label: str) -> None:
    """Raise UnsupportedModel with one line where a graph is not one we can read."""
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
    functions = {_key(f): f for f in proto.functions}
    if len(functions) < len(proto.functions):
        raise UnsupportedModel(f"{label}: two functions have the same name")
    _calls(proto, label)
    for tensor in tensors(proto):
        _weight(tensor, f"{label}: weights {_shown(tensor.name)}")
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
        self.functions = {_key(function): function for function in proto.functions}

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
        last = {name: i for i, node in enumerate(nodes) for name in _read(node)}
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
                f"{self.label}: the input {_shown(value.name)} has {len(kind.shape.dim)} dims; {RANK} at most are read"
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
        function = self.functions.get(_key(node))
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
        schema = onnx.defs.get_schema(node.op_type, version, domain)
        proto = onnx.NodeProto(op_type=node.op_type, domain=domain, attribute=node.attribute)
        types, data = {}, {}
        try:
            for i, (name, tensor) in enumerate(zip(node.input, inputs, strict=True)):
                proto.input.append(f"i{i}" if name else "")
                if name and not tensor.kind:
                    return []
                if name:
                    types[f"i{i}"] = onnx.helper.make_tensor_type_proto(tensor.kind, tensor.shape)
                if name and tensor.numbers is not None and tensor.elements <= LONGEST:
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
    before = [{maker[name] for name in _read(node) if name in maker} for node in nodes]
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
            raise UnsupportedModel(f"{label}: the name {_shown(repr(text))} is not UTF-8")
        if len(text) > NAME:
            raise UnsupportedModel(
                f"{label}: the name {_shown(text)} has {len(text)} characters; {NAME} at most are read"
            )
        if not text.isprintable() and any(ord(letter) < 32 or ord(letter) == 127 for letter in text):
            raise UnsupportedModel(f"{label}: the name {_shown(text)} holds a control character")


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


def _key(call: onnx.FunctionProto | onnx.NodeProto) -> tuple[str, str]:
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
    bodies = {_key(function): [_key(node) for node in _within(function.node)] for function in proto.functions}
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
    total = sum(sizes.get(_key(node), 1) for node in _within(proto.graph.node))
    if total > NODES:
        raise UnsupportedModel(f"{label}: {total:.4g} nodes with the functions inlined; {NODES} at most are read")


def _weight(tensor: onnx.TensorProto, who: str) -> None:
    """A tensor has as many numbers as its dims say."""
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
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return
    if tensor.HasField("segment"):
        raise UnsupportedModel(f"{who} come in segments, which are not read")
    if tensor.HasField("raw_data"):
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


def _shown(name: str | None) -> str:
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
        raise UnsupportedModel(f"{label}: two weights have the name {_shown(_repeated(listed))}")
    known = outer | made | weights
    maker: dict[str, int] = {}
    for i, node in enumerate(graph.node):
        for name in filter(None, node.output):
            if name in maker or name in made or name in weights:
                other = describe(graph.node[maker[name]]) if name in maker else "an input or weight"
                raise UnsupportedModel(
                    f"{label}: the name {_shown(name)} is used twice: by {other} and by {describe(node)}"
                )
            maker[name] = i
    known |= maker.keys()
    reads = [_read(node) for node in graph.node]
    for node, names in zip(graph.node, reads, strict=True):
        for name in names:
            if name not in known:
                raise UnsupportedModel(f"{label}: {describe(node)} reads {_shown(name)}, which nothing makes")
    for value in graph.output:
        if value.name not in known:
            raise UnsupportedModel(f"{label}: the output {_shown(value.name)} is made by no node")
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


def _ops(nodes: Nodes, opsets: dict[str, int], functions: set[tuple[str, str]], label: str) -> None:
    for node in nodes:
        domain = "" if node.domain == "ai.onnx" else node.domain
        if _key(node) not in functions:
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
            f"{who}: unknown domain {_shown(domain)} and no function of that name in the model; "
            f"known are ai.onnx, ai.onnx.ml and com.microsoft"
        )
    version = opsets.get(domain)
    if version is None:
        raise UnsupportedModel(f"{who}: the model says no opset for the domain {_shown(domain or 'ai.onnx')}")
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
    raise UnsupportedModel(f"{who}: no op {_shown(node.op_type)} in opset {version} of {domain or 'ai.onnx'}{hint}")
