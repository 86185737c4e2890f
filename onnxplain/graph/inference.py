"""onnx's own inference of types and shapes: of a whole model, and of one node."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import onnx_ir as ir

from onnxplain.graph.outline import as_inputs, outline

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
    version: int,
    type_of: Callable[[ir.Value], onnx.TypeProto],
    data_of: Callable[[ir.Value], onnx.TensorProto | None],
) -> list[Known]:
    """Type and shape of each output by the op's schema, None where it does not tell.

    version: of the op's domain. type_of, data_of: what is known of an input, and its numbers where they are few.
    Raises what onnx raises: for an op it does not know, and for inputs that the op does not take.
    """
    schema = onnx.defs.get_schema(node.op_type, version, node.domain)
    proto = onnx.NodeProto(op_type=node.op_type, domain=node.domain)
    types, data = {}, {}
    for i, value in enumerate(node.inputs):
        name = "" if value is None else f"i{i}"
        proto.input.append(name)
        if value is None:
            continue
        types[name] = type_of(value)
        if (numbers := data_of(value)) is not None:
            data[name] = numbers
    proto.output.extend(f"o{i}" for i in range(len(node.outputs)))
    proto.attribute.extend(ir.serde.serialize_attribute(attribute) for attribute in node.attributes.values())
    imports = [onnx.helper.make_opsetid(node.domain, version)]
    inferred = onnx.shape_inference.infer_node_outputs(schema, proto, types, data, opset_imports=imports)
    return [_known(inferred[name]) if name in inferred else (None, None) for name in proto.output]


def _known(proto: onnx.TypeProto) -> Known:
    if has_map(proto):
        return None, None
    return ir.serde.deserialize_type_proto_for_type(proto), ir.serde.deserialize_type_proto_for_shape(proto)


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
                value.shape = ir.Shape([_dim(dim) for dim in info.tensor_type.shape.dim])
        bodies = {attribute.name: attribute for attribute in proto.attribute}
        for name, attribute in node.attributes.items():
            if attribute.type == ir.AttributeType.GRAPH:
                _take(attribute.as_graph(), bodies[name].g)


def _dim(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    return dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None
