"""The same network as another exporter would have written it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import helper, numpy_helper

Array = np.ndarray
Rewrite = Callable[[onnx.NodeProto, dict[str, Array], Callable[[str, Array], str]], list[onnx.NodeProto] | None]


def attribute(node: onnx.NodeProto, name: str, default: object = None) -> object:
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def gemm_apart(node, weights, store):
    """Gemm as MatMul and Add."""
    if node.op_type != "Gemm" or node.input[1] not in weights or attribute(node, "transA", 0):
        return None
    w = weights[node.input[1]] * attribute(node, "alpha", 1.0)
    w = w.T if attribute(node, "transB", 0) else w
    y, bias = node.output[0], node.input[2] if len(node.input) > 2 else ""
    if not bias:
        return [helper.make_node("MatMul", [node.input[0], store("w", w)], [y], name=node.name)]
    b = weights[bias] * attribute(node, "beta", 1.0)
    product = helper.make_node("MatMul", [node.input[0], store("w", w)], [f"{y}/product"], name=node.name)
    return [product, helper.make_node("Add", [f"{y}/product", store("b", b)], [y], name=f"{node.name}/bias")]


def relu_as_max(node, weights, store):
    if node.op_type != "Relu":
        return None
    return [helper.make_node("Max", [node.input[0], store("zero", np.zeros(()))], list(node.output), name=node.name)]


def relu_as_clip(node, weights, store):
    if node.op_type != "Relu":
        return None
    return [helper.make_node("Clip", [node.input[0], store("zero", np.zeros(()))], list(node.output), name=node.name)]


def mask_as_product(node, weights, store):
    """Where(mask, x, 0) as x * mask."""
    if node.op_type != "Where" or node.input[2] not in weights or weights[node.input[2]].any():
        return None
    cast = helper.make_node("Cast", [node.input[0]], [f"{node.output[0]}/mask"], to=1, name=f"{node.name}/mask")
    return [cast, helper.make_node("Mul", [node.input[1], f"{node.output[0]}/mask"], list(node.output), name=node.name)]


def batch_norm_apart(node, weights, store):
    """BatchNormalization as Mul and Add with one number a channel."""
    if node.op_type != "BatchNormalization" or any(n not in weights for n in node.input[1:]):
        return None
    rank = attribute(node, "rank")
    scale, bias, mean, var = (weights[n] for n in node.input[1:])
    factor = scale / np.sqrt(var + attribute(node, "epsilon", 1e-5))
    shape = [-1] + [1] * (int(rank) - 2)  # type: ignore[arg-type]
    y = node.output[0]
    made = store("f", factor.reshape(shape)), store("s", (bias - mean * factor).reshape(shape))
    product = helper.make_node("Mul", [node.input[0], made[0]], [f"{y}/scaled"], name=node.name)
    return [product, helper.make_node("Add", [f"{y}/scaled", made[1]], [y], name=f"{node.name}/shift")]


FORMS: dict[str, Rewrite] = {
    f.__name__: f for f in (gemm_apart, relu_as_max, relu_as_clip, mask_as_product, batch_norm_apart)
}


def rewritten(model: onnx.ModelProto, form: str, ranks: dict[str, int]) -> onnx.ModelProto | None:
    """The model with every node that the form fits written that way; None where none fits. ranks: of all tensors."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    graph = model.graph
    weights = {w.name: numpy_helper.to_array(w).astype(float) for w in graph.initializer}
    added: dict[str, Array] = {}

    def store(stem: str, array: Array) -> str:
        name = f"form/{stem}{len(added)}"
        added[name] = array.astype(np.float32)
        return name

    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type == "BatchNormalization":
            marked = onnx.NodeProto.FromString(node.SerializeToString())
            marked.attribute.append(helper.make_attribute("rank", ranks[node.input[0]]))
        else:
            marked = node
        found = FORMS[form](marked, weights, store)
        nodes += [node] if found is None else found
    if (not added and form != "mask_as_product") or [n.op_type for n in nodes] == [n.op_type for n in graph.node]:
        return None
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in added.items())
    return model


def at_opset(model: onnx.ModelProto, opset: int) -> onnx.ModelProto | None:
    """The same nodes under opset 13 or 21; None where an op of the model is written otherwise there."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    weights = {w.name: numpy_helper.to_array(w) for w in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "GroupNormalization":
            return None
        if opset < 18:
            if node.op_type in ("LayerNormalization", "Mish", "Gelu", "Trilu", "CenterCropPad"):
                return None
            if node.op_type == "Split":
                kept = [a for a in node.attribute if a.name != "num_outputs"]
                del node.attribute[:]
                node.attribute.extend(kept)
            if node.op_type == "Pad" and len(node.input) > 3:
                return None
            if node.op_type.startswith("Reduce") and node.op_type != "ReduceSum" and len(node.input) > 1:
                axes = weights[node.input[1]]
                if not axes.size or attribute(node, "noop_with_empty_axes") is not None:
                    return None
                del node.input[1:]
                node.attribute.append(helper.make_attribute("axes", [int(a) for a in axes]))
            elif node.op_type.startswith("Reduce") and attribute(node, "noop_with_empty_axes") is not None:
                return None
    model.opset_import[0].version = opset
    model.ir_version = 8 if opset < 19 else 10
    return model
