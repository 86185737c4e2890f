"""Secants of classical models, domain ai.onnx.ml."""

from __future__ import annotations

from onnxplain.errors import UnsupportedOp
from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.node import Node
from onnxplain.graph.walk import Gradient
from onnxplain.vjp.copies import gradient_at
from onnxplain.vjp.ml import decisions, table
from onnxplain.vjp.secants import NEAR, secant
from onnxplain.vjp.softmax_secants import through_softmax


@secant("LinearClassifier")
def linear_classifier(op: Backward, node: Node, m: list[Gradient]) -> list[Gradient]:
    """Scores, the second output: Rescale through the post_transform, then the coefficients."""
    at = m[1] if len(m) > 1 else None
    if at is None:
        return [None]
    assert at.dtype is not None
    values, lines, after = decisions(node)
    if after == "SOFTMAX_ZERO":
        raise UnsupportedOp(f"{node}: no rule for the difference of post_transform {after} from a reference.")
    weights = table(op, node, values, lines, at)
    x, other = (op.Cast(value, to=int(at.dtype)) for value in (node.x, op.reference(node.x)))
    y = op.real(node.outputs[1]), op.real(op.reference(node.outputs[1]))
    if after == "LOGISTIC":
        gap = op.Gemm(op.Sub(x, other), weights, transB=1)
        near = op.Less(op.Abs(gap), NEAR)
        at = op.Where(near, at * y[0] * (1.0 - y[0]), at * op.Div(op.Sub(*y), op.Where(near, 1.0, gap)))
    elif after == "SOFTMAX":
        bias = [float(number) for number in node.attr("intercepts") or [0.0] * lines]
        intercepts = table(op, node, bias, 1, at)
        scores = [op.Add(op.Gemm(value, weights, transB=1), intercepts) for value in (x, other)]
        at = through_softmax(op, at, (scores[0], scores[1]), y, -1)
    return [gradient_at(op, node.x, op.MatMul(at, weights))]
