"""onnx's own inference of types and shapes: of a whole model, and of one node."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import onnx
import onnx_ir as ir

from onnxplain.graph.outline import as_inputs, outline
from onnxplain.graph.shape_rules import infer_by_rule, shape_of, shape_rule
from onnxplain.interrupt import check_interrupt

LONGEST = 64  # elements of a constant that inference of a node is told

Known = tuple[ir.TypeProtocol | None, ir.Shape | None]


def infer_model(model: ir.Model) -> None:
    """Types and shapes that onnx finds, in place, in bodies too; it leaves the model alone where it fails."""
    proto, weights = outline(model)
    try:
        inferred = onnx.shape_inference.infer_shapes(
            as_inputs(proto, weights), check_type=False, strict_mode=False, data_prop=True
        )
    except Exception:  # what it cannot infer is inferred node by node, or learned from the run
        return
    _take(model.graph, inferred.graph)


def infer_node(
    node: ir.Node,
    opsets: Mapping[str, int],
    type_of: Callable[[ir.Value], onnx.TypeProto],
    numbers_of: Callable[[ir.Value], onnx.TensorProto | None],
) -> list[Known]:
    """`infer_outputs` of a node of onnx-ir; (None, None) where nothing is known of an output.

    type_of, numbers_of: what is known of an input, and its numbers where they are few.
    """
    proto = onnx.NodeProto(op_type=node.op_type, domain=node.domain, output=[""] * len(node.outputs))
    proto.attribute.extend(ir.serde.serialize_attribute(attribute) for attribute in node.attributes.values())
    operands = [None if value is None else Operand(type_of(value), numbers_of(value)) for value in node.inputs]
    inferred = infer_outputs(proto, opsets.get(node.domain, 0), operands)
    return [(None, None) if found is None else _known(found) for found in inferred]


class Operand(NamedTuple):
    """What is known of an input: its type and shape, and its numbers where they are few (LONGEST)."""

    type: onnx.TypeProto
    numbers: onnx.TensorProto | None = None


def infer_outputs(op: onnx.NodeProto, version: int, operands: Sequence[Operand | None]) -> list[onnx.TypeProto | None]:
    """Type and shape of each output of one node, None where nothing tells: by a rule of ours, else by onnx's schema.

    op: the operator, its attributes and how many outputs it has; names of inputs and outputs mean nothing here.
    version: of the op's domain. operands: what it is given. Raises what onnx raises: for an op that it does not know,
    and for inputs that the op does not take.
    """
    check_interrupt()
    domain = "" if op.domain == "ai.onnx" else op.domain
    rule = shape_rule(domain, op.op_type)
    if rule is not None:
        first = infer_by_rule(op, rule, [None if operand is None else operand.type for operand in operands])
        return [first, *([None] * (len(op.output) - 1))]
    schema = onnx.defs.get_schema(op.op_type, version, domain)
    proto = onnx.NodeProto(op_type=op.op_type, domain=domain, attribute=op.attribute)
    proto.input.extend("" if operand is None else f"i{i}" for i, operand in enumerate(operands))
    proto.output.extend(f"o{i}" for i in range(len(op.output)))
    known = {f"i{i}": operand for i, operand in enumerate(operands) if operand is not None}
    inferred = onnx.shape_inference.infer_node_outputs(
        schema,
        proto,
        {name: operand.type for name, operand in known.items()},
        {name: operand.numbers for name, operand in known.items() if operand.numbers is not None},
        opset_imports=[onnx.helper.make_opsetid(domain, version)],
    )
    return [inferred.get(name) for name in proto.output]


def _known(proto: onnx.TypeProto) -> Known:
    if has_map(proto):
        return None, None
    typed = not proto.HasField("tensor_type") or proto.tensor_type.elem_type != onnx.TensorProto.UNDEFINED
    kind = ir.serde.deserialize_type_proto_for_type(proto) if typed else None
    return kind, ir.serde.deserialize_type_proto_for_shape(proto)


def has_map(proto: onnx.TypeProto) -> bool:
    """Whether a type is a map or holds maps, which onnx-ir has no word for."""
    if proto.HasField("sequence_type"):
        return has_map(proto.sequence_type.elem_type)
    return proto.HasField("map_type") or (proto.HasField("optional_type") and has_map(proto.optional_type.elem_type))


def _take(graph: ir.Graph, inferred: onnx.GraphProto) -> None:
    """Types and shapes of a graph from the same graph, inferred."""
    infos = {info.name: info.type for info in (*inferred.value_info, *inferred.output)}
    for node, proto in zip(graph, inferred.node, strict=True):
        for value in node.outputs:
            info = infos.get(value.name or "")
            if info is None or info.WhichOneof("value") is None:
                continue
            if value.type is None or value.dtype != info.tensor_type.elem_type:
                value.type = _known(info)[0] or value.type
            if info.tensor_type.HasField("shape"):
                value.shape = ir.Shape(shape_of(info) or [])
        bodies = {attribute.name: attribute for attribute in proto.attribute}
        for name, attribute in node.attributes.items():
            if attribute.type == ir.AttributeType.GRAPH:
                _take(attribute.as_graph(), bodies[name].g)
