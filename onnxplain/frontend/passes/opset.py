"""Raise old opsets to 18, the oldest that derivatives are written for."""

from __future__ import annotations

import onnx
import onnx.version_converter
import onnx_ir as ir

from onnxplain.cpu_session import one_line
from onnxplain.errors import UnsupportedModel
from onnxplain.graph.inference import has_map
from onnxplain.graph.outline import as_inputs, outline, reattach

OPSET = 18
IR_VERSION = 8  # what opset 18 came with


def raise_opset(model: ir.Model, to: int = OPSET) -> ir.Model:
    """The model at opset `to` (18 or above) or later. Functions must have been inlined: the converter drops them."""
    opset = model.opset_imports.get("")
    least = IR_VERSION if to == OPSET else onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", to)])
    if opset is None or opset >= to:
        if opset is None:
            model.opset_imports[""] = to
        model.ir_version = max(model.ir_version, least)
        return model
    for node in model.graph.all_nodes():
        if node.domain == "" and not onnx.defs.has(node.op_type, opset):
            raise UnsupportedModel(
                f"{node.name or node.outputs[0].name} ({node.op_type}): {node.op_type} is onnxruntime's own and opset "
                f"{opset} cannot be raised to {to} with it; export the model with opset {to} or above"
            )
    resized = _resized(model) if opset <= 10 else {}
    model.ir_version = least
    proto, weights = outline(model)
    try:
        converted = onnx.version_converter.convert_version(as_inputs(proto, weights), to)
    except Exception as error:
        raise UnsupportedModel(f"the model cannot be raised from opset {opset} to {to}: {one_line(error)}") from error
    for value in (*converted.graph.value_info, *converted.graph.output):
        if has_map(value.type):  # inferred again by the converter; onnx-ir has no word for it
            value.ClearField("type")
    result = ir.from_proto(converted)
    reattach(result, weights)
    result.ir_version = least
    result.metadata_props.update(model.metadata_props)
    result.producer_name, result.producer_version = model.producer_name, model.producer_version
    _asymmetric(result, resized)
    return result


def _resized(model: ir.Model) -> dict[str, str]:
    """Outputs of Upsample and Resize-10 with their mode. Both take x_original = x / scale: "asymmetric"."""
    modes = {}
    for node in model.graph.all_nodes():
        if node.domain == "" and node.op_type in ("Upsample", "Resize"):
            mode = node.attributes.get("mode")
            modes[node.outputs[0].name or ""] = mode.as_string() if mode is not None else "nearest"
    return modes


def _asymmetric(model: ir.Model, resized: dict[str, str]) -> None:
    """Say what the converter leaves to the default of later opsets, which is another one (half_pixel)."""
    for node in model.graph.all_nodes():
        mode = resized.get(node.outputs[0].name or "")
        if node.op_type == "Resize" and mode is not None:
            node.attributes["coordinate_transformation_mode"] = ir.AttrString(
                "coordinate_transformation_mode", "asymmetric"
            )
            if mode == "nearest":
                node.attributes["nearest_mode"] = ir.AttrString("nearest_mode", "floor")
