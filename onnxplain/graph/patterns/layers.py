"""Layers with their bias."""

from __future__ import annotations

from onnxplain.graph.node import Node, rank
from onnxplain.graph.patterns.view import Group, View, constant_operand


def biased_matmul(view: View, node: Node) -> Group | None:
    """MatMul by a constant on either side, and the Add of a constant: the layer's bias, by columns, rows or both."""
    if node.op_type != "Add":
        return None
    product, bias = constant_operand(view, node)
    matmul = view.made_by(product, "MatMul")
    if matmul is None or product is None or bias is None or bias.shape is None or product.shape is None:
        return None
    weights = [v for v in matmul.inputs if v is not None and (v.const_value is not None or v in view.constants)]
    lengths = list(bias.shape)
    behind = list(product.shape)[len(product.shape) - len(lengths) :]
    if len(weights) != 1 or weights[0].shape is None or len(weights[0].shape) != 2 or len(lengths) > rank(product):
        return None
    if any(have not in (1, want) for have, want in zip(lengths, behind, strict=True)):
        return None
    return Group("MatMul", (*matmul.inputs, bias), [matmul, node])
