"""Rules for activations that change the gradient rather than share relevance."""

from __future__ import annotations

from collections.abc import Sequence

from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.node import Node
from onnxplain.graph.relevance import NOTHING, Portion, Relevance
from onnxplain.rules.registry import RuleFunction, rule
from onnxplain.vjp import lookup


@rule("guided", "activation", cite="Springenberg et al. 2015, Striving for Simplicity")
def guided() -> RuleFunction:
    """Guided backprop at a Relu: max(g, 0) where y > 0. Other activations keep their derivative."""

    def apply(op: Backward, node: Node, g: Relevance) -> Sequence[Portion]:
        return lookup(node).rule(op, node, Relevance(op.Max(g.value, 0.0)) if lookup(node).rectifies(node) else g)

    return apply


@rule("deconvnet", "activation", cite="Zeiler and Fergus 2014, Visualizing and Understanding Convolutional Networks")
def deconvnet() -> RuleFunction:
    """DeconvNet at a Relu: max(g, 0), whatever the forward pass did. Other activations keep their derivative."""

    def apply(op: Backward, node: Node, g: Relevance) -> Sequence[Portion]:
        if lookup(node).rectifies(node):
            return [Relevance(op.Max(g.value, 0.0)), *[NOTHING] * (len(node.inputs) - 1)]
        return lookup(node).rule(op, node, g)

    return apply
