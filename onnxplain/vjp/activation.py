"""Activations: one tensor in, one out, element by element. Kinks as torch has them."""

from __future__ import annotations

from math import pi, sqrt

import onnx_ir as ir

from onnxplain.graph import signs, streams
from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.node import Node
from onnxplain.graph.walk import Gradient
from onnxplain.vjp.rectifier import positive, rises_with
from onnxplain.vjp.registry import case, vjp


@vjp("Sigmoid", kind="activation", head="cut", streams=streams.elementwise, sign=signs.always, cases=[case(x=(2, 5))])
def sigmoid(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """dy/dx = y (1 - y)."""
    y = op.real(node.y)
    return [g * y * (1.0 - y)]


@vjp(
    "Tanh", kind="activation", zero_at_zero=True, streams=streams.elementwise, sign=signs.first, cases=[case(x=(2, 5))]
)
def tanh(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """dy/dx = 1 - y^2."""
    y = op.real(node.y)
    return [g * (1.0 - y * y)]


@vjp(
    "Elu", kind="activation", zero_at_zero=True, streams=streams.elementwise, sign=signs.first,
    cases=[case(x=(2, 5), sample="away"), case(x=(2, 5), alpha=0.5, sample="away"), case(x=(2, 5), alpha=-0.5)],
)  # fmt: skip
@vjp(
    "Selu",
    kind="activation",
    zero_at_zero=True,
    streams=streams.elementwise,
    sign=signs.first,
    cases=[case(x=(2, 5), sample="away")],
)
@vjp(
    "Celu", kind="activation", zero_at_zero=True, streams=streams.elementwise, sign=signs.first,
    cases=[case(x=(2, 5), sample="away"), case(x=(2, 5), alpha=2.0, sample="away")],
)  # fmt: skip
def exponential_unit(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """Above 0 linear, below gain alpha (exp(x / width) - 1), whose slope is y / width + gain alpha / width."""
    gain, width = 1.0, 1.0
    alpha = node.attr("alpha", 1.67326319217681884765625 if node.op_type == "Selu" else 1.0)
    if node.op_type == "Selu":
        gain = node.attr("gamma", 1.05070102214813232421875)
    elif node.op_type == "Celu":
        width = alpha
    y = op.real(node.y)
    below = (y + gain * alpha) / width if width != 1.0 else y + gain * alpha
    above = g * gain if gain != 1.0 else g
    return [op.Where(positive(op, rises_with(node, gain * alpha > 0)), above, g * below)]


@vjp("Softplus", kind="activation", streams=streams.elementwise, sign=signs.always, cases=[case(x=(2, 5))])
def softplus(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """dy/dx = sigmoid(x)."""
    return [g * op.Sigmoid(op.real(node.x))]


@vjp(
    "Softsign",
    kind="activation",
    zero_at_zero=True,
    streams=streams.elementwise,
    sign=signs.first,
    cases=[case(x=(2, 5))],
)
def softsign(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """y = x / (1 + |x|), dy/dx = 1 / (1 + |x|)^2."""
    width = 1.0 + op.Abs(op.real(node.x))
    return [g / (width * width)]


@vjp(
    "HardSigmoid",
    kind="activation",
    streams=streams.elementwise,
    sign=signs.always,
    cases=[case(x=(4, 5)), case(x=(4, 5), alpha=0.7, beta=0.2)],
)
def hard_sigmoid(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """y = max(0, min(1, alpha x + beta)): alpha g where 0 < y < 1."""
    inside = op.And(positive(op, node.y), op.Less(node.y, 1.0))
    return [op.Where(inside, g * node.attr("alpha", 0.2), 0.0)]


@vjp(
    "HardSwish",
    kind="activation",
    zero_at_zero=True,
    streams=streams.elementwise,
    cases=[case(x=(6, 5)), case(x=(3,), sample="apart")],
)
def hard_swish(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """y = x clip(x / 6 + 1/2, 0, 1): slope 0 up to -3, x / 3 + 1/2 up to 3, then 1."""
    x = op.real(node.x)
    ramp = op.Where(op.Less(x, 3.0), x / 3.0 + 0.5, 1.0)
    return [op.Where(op.Greater(x, -3.0), g * ramp, 0.0)]


@vjp(
    "Swish",
    kind="activation",
    zero_at_zero=True,
    streams=streams.elementwise,
    sign=signs.first,
    cases=[case(x=(2, 5), opset=24), case(x=(2, 5), opset=24, alpha=1.7)],
)
def swish(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """y = x s with s = sigmoid(alpha x); dy/dx = s + alpha y (1 - s)."""
    x, y, alpha = op.real(node.x), op.real(node.y), node.attr("alpha", 1.0)
    s = op.Sigmoid(x * alpha if alpha != 1.0 else x)
    return [g * (s + alpha * y * (1.0 - s))]


@vjp(
    "Gelu",
    kind="activation",
    zero_at_zero=True,
    streams=streams.elementwise,
    cases=[case(x=(2, 5), opset=20), case(x=(2, 5), opset=20, approximate="tanh")],
)
def gelu(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """y = x F(x): dy/dx = F + x F', F the normal distribution or its tanh approximation (Hendrycks & Gimpel 2016)."""
    x = op.real(node.x)
    square = x * x
    if node.attr("approximate", "none") == "tanh":
        c, cubic = sqrt(2 / pi), 0.044715
        t = op.Tanh(c * x * (1.0 + cubic * square))
        slope = 0.5 * (1.0 - t * t) * (c + 3 * c * cubic * square)
    else:
        t = op.Erf(x * sqrt(0.5))
        slope = op.Exp(square * -0.5) * (1 / sqrt(2 * pi))
    return [g * (0.5 * (1.0 + t) + x * slope)]


@vjp(
    "Mish", kind="activation", zero_at_zero=True, streams=streams.elementwise, sign=signs.first, cases=[case(x=(2, 5))]
)
def mish(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """y = x t with t = tanh(softplus(x)); dy/dx = t + x (1 - t^2) sigmoid(x)."""
    x = op.real(node.x)
    t = op.Tanh(op.Softplus(x))
    return [g * (t + x * (1.0 - t * t) * op.Sigmoid(x))]


@vjp("Erf", kind="activation", zero_at_zero=True, streams=streams.elementwise, sign=signs.first, cases=[case(x=(2, 5))])
def erf(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """dy/dx = 2 / sqrt(pi) exp(-x^2)."""
    x = op.real(node.x)
    return [g * op.Exp(-(x * x)) * (2 / sqrt(pi))]
