"""Shapes of every tensor, so that equal symbols mean equal lengths and every axis has a number or a symbol.

onnx's own inference comes first. It gives up on Reshape with a free axis: there the elements are counted with
symbols (N*16*5*5 into [-1, 400] leaves N), shapes computed in the graph (Shape, Gather, Concat …) are followed as
lists of such products, and what comes after is inferred again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir

from onnxplain.frontend.passes.computed_shapes import solved_shape
from onnxplain.frontend.passes.shape_contents import contents_of
from onnxplain.frontend.passes.symbolic_dims import Entry, dims_of, is_open
from onnxplain.frontend.sample_inputs import MEANINGLESS
from onnxplain.graph.inference import LONGEST, infer_model, infer_node
from onnxplain.graph.shape_rules import Dim, shape_rule


def infer_shapes(model: ir.Model) -> None:
    """Type and shape of every value, in place."""
    declared = {value: value.shape for node in model.graph for value in node.outputs}
    _forget(model)
    infer_model(model)
    for value, shape in declared.items():
        if value.shape is None and shape is not None:
            value.shape = ir.Shape([dim if isinstance(dim, int) and dim >= 0 else None for dim in shape])
    refine(model)


def refine(model: ir.Model, pinned: Mapping[ir.Value, Sequence[Dim]] | None = None) -> dict[ir.Value, list[Entry]]:
    """Solve what inference left open, node by node. pinned: shapes that are known better than inference knows them.

    Returns what is known of the contents of integer vectors.
    """
    graph = model.graph
    contents: dict[ir.Value, list[Entry]] = {}
    changed: set[ir.Value] = set()
    input_symbols = {dim for value in graph.inputs for dim in dims_of(value) or [] if isinstance(dim, str)}
    for value, shape in (pinned or {}).items():
        value.shape = ir.Shape(shape)
    for node in graph:
        known = {value: dims_of(value) for value in node.outputs}
        ruled = shape_rule(node.domain, node.op_type) is not None
        if ruled or any(value in changed for value in node.inputs) or any(is_open(shape) for shape in known.values()):
            _infer(node, model.opset_imports, contents)
        solved = None if ruled else solved_shape(node, contents, input_symbols)
        if solved is not None:
            _merge(node.outputs[0], solved)
        content = contents_of(node, contents)
        if content is not None and len(content) <= LONGEST:
            contents[node.outputs[0]] = content
        for value in node.outputs:
            if pinned is not None and value in pinned:
                value.shape = ir.Shape(pinned[value])
            _name_axes(value)
            if known[value] != dims_of(value):
                changed.add(value)
    return contents


def _forget(model: ir.Model) -> None:
    """Declared inner shapes go: their symbols follow no rule. Unnamed axes of inputs get names."""
    outputs = set(model.graph.outputs)
    for value in model.graph.inputs:
        if value.shape is not None:
            value.shape = ir.Shape([None if _meaningless(dim) else dim for dim in dims_of(value) or []])
            _name_axes(value)
    for node in model.graph:
        for value in node.outputs:
            if value not in outputs or value.type is not None:
                value.shape = None
        for body in _bodies(node):
            _forget_inside(body, node.op_type == "Loop")


def _forget_inside(body: ir.Graph, loop: bool) -> None:
    """The same in a body. What a Loop carries may have another length each time: only its rank stays."""
    for node in body:
        for value in node.outputs:
            if value not in body.outputs:
                value.shape = None
        for inner in _bodies(node):
            _forget_inside(inner, node.op_type == "Loop")
    for value in (*body.inputs[2:], *body.outputs[1:]) if loop else ():
        if value.shape is not None:
            value.shape = ir.Shape([None] * len(value.shape))


def _bodies(node: ir.Node) -> list[ir.Graph]:
    """Of If, Loop, Scan."""
    return [a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]


def _meaningless(dim: Dim) -> bool:
    return dim is None or dim in MEANINGLESS or (isinstance(dim, int) and dim < 0)


def _name_axes(value: ir.Value) -> None:
    if value.shape is not None and any(dim is None for dim in dims_of(value) or []):
        value.shape = ir.Shape(
            [f"{value.name}.{i}" if dim is None else dim for i, dim in enumerate(dims_of(value) or [])]
        )


def _infer(node: ir.Node, opsets: Mapping[str, int], contents: Mapping[ir.Value, list[Entry]]) -> None:
    """Inference of one node on what is known by now."""
    if shape_rule(node.domain, node.op_type) is None:
        version = opsets.get(node.domain)
        if version is None or not onnx.defs.has(node.op_type, version, node.domain) or _bodies(node):
            return
        if any(value is not None and value.dtype is None for value in node.inputs):
            return

    def type_of(value: ir.Value) -> onnx.TypeProto:
        return onnx.helper.make_tensor_type_proto(int(value.dtype or 0), dims_of(value))

    def numbers_of(value: ir.Value) -> onnx.TensorProto | None:
        tensor = value.const_value
        if tensor is not None:
            return ir.serde.serialize_tensor(tensor) if tensor.size <= LONGEST else None
        content = contents.get(value)
        if content is None or value.shape is None or len(value.shape) != 1:
            return None
        numbers = [entry.number for entry in content if entry is not None and not entry.symbols]
        return onnx.numpy_helper.from_array(np.asarray(numbers, np.int64)) if len(numbers) == len(content) else None

    try:
        inferred = infer_node(node, opsets, type_of, numbers_of)
    except Exception:  # what cannot be inferred is learned from the run
        return
    for value, (kind, shape) in zip(node.outputs, inferred, strict=True):
        if value.type is None:
            value.type = kind
        if shape is not None:
            _merge(value, [dim if isinstance(dim, int) else dim.value for dim in shape])


def _merge(value: ir.Value, shape: Sequence[Dim]) -> None:
    """Take over what is known better: numbers before symbols, given symbols before `unk__`."""
    before = dims_of(value)
    if before is None or len(before) != len(shape):
        value.shape = ir.Shape(shape)
        return

    def better(old: Dim, new: Dim) -> Dim:
        if isinstance(old, int) or new is None:
            return old
        if isinstance(new, int) or old is None or old.startswith("unk__") or old == f"{value.name}.{len(shape)}":
            return new
        return new if not new.startswith("unk__") else old

    value.shape = ir.Shape([better(old, new) for old, new in zip(before, shape, strict=True)])
