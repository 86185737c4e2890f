"""Rules for activations that change the gradient rather than share relevance."""

from __future__ import annotations

import onnx_ir as ir

from onnxplain.graph.backward import Backward
from onnxplain.graph.node import Node, constant
from onnxplain.graph.walk import Gradient, Rule
from onnxplain.rules.registry import rule
from onnxplain.vjp import lookup


def rectifies(node: Node) -> bool:
    """Whether the activation is a Relu, or a Clip at 0 from below (Relu6)."""
    if node.op_type == "Relu":
        return True
    low = constant(node.input(1)) if node.op_type == "Clip" else None
    return low is not None and float(low) == 0.0


@rule("guided", "activation", cite="Springenberg et al. 2015, Striving for Simplicity")
def guided() -> Rule:
    """Guided backprop at a Relu: max(g, 0) where y > 0. Other activations keep their derivative."""

    def apply(op: Backward, node: Node, g: ir.Value | list[Gradient]) -> list[Gradient]:
        assert isinstance(g, ir.Value)
        return list(lookup(node).vjp(op, node, op.Max(g, 0.0) if rectifies(node) else g))

    return apply


@rule("deconvnet", "activation", cite="Zeiler and Fergus 2014, Visualizing and Understanding Convolutional Networks")
def deconvnet() -> Rule:
    """DeconvNet at a Relu: max(g, 0), whatever the forward pass did. Other activations keep their derivative."""

    def apply(op: Backward, node: Node, g: ir.Value | list[Gradient]) -> list[Gradient]:
        assert isinstance(g, ir.Value)
        if rectifies(node):
            return [op.Max(g, 0.0), *[None] * (len(node.inputs) - 1)]
        return list(lookup(node).vjp(op, node, g))

    return apply
