"""Both halves of alpha-beta in one convolution: positive and negative weights stacked along the output channels.

Measured on onnxruntime's CPU this is a third faster than a convolution for each half: one pass over the input, twice
the channels, and the factors alpha and -beta ride in the backward weights.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.node import Node, dims
from onnxplain.graph.relevance import Portion, Relevance
from onnxplain.rules.linear import Layer, Modifier, minus, plus
from onnxplain.vjp import lookup

Half = tuple[float, Modifier | None]
"""Coefficient of a half, and what it makes of the bias (None: no bias)."""


def stacks(op: Backward, node: Node) -> bool:
    """Whether the short way exists: a convolution without groups, of an input known not to be negative."""
    weights = lookup(node).weights
    if weights is None or not weights.full_window(node):
        return False
    return isinstance(dims(node.y)[1], int) and op.is_nonnegative(node.x)


def stacked(op: Backward, node: Node, r: ir.Value, up: Half, down: Half, epsilon: float) -> list[Portion]:
    """R_in = x * sum over both halves of coefficient * W'^T (R / (W' x + b' ± epsilon)), W' = W+ and W-.

    W- x + b- is never positive, so its stabiliser is -epsilon; both ride in the bias.
    """
    layer = Layer.of(op, node, "alpha_beta")
    count = dims(node.y)[1]
    dtype = layer.w.dtype
    assert isinstance(count, int) and dtype is not None
    w = op.once(("stacked", layer.w), lambda: op.Concat(plus(op, layer.w), minus(op, layer.w), axis=0))
    bias = op.once(("stacked bias", node.y, layer.w, epsilon), lambda: _bias(op, layer, up[1], down[1], count, epsilon))
    shape = dims(node.y)
    z = layer.forward(op, layer.x, w, bias)
    sizes = [dim for dim in shape[2:] if isinstance(dim, int)]
    if len(sizes) == len(shape) - 2:  # let the division broadcast over the halves rather than copy r
        halved = op.once(("halves", z), lambda: op.Reshape(z, op.ints([-1, 2, count, *sizes])))
        s = op.Reshape(op.Div(op.Unsqueeze(r, op.ints([1])), halved), op.ints([-1, 2 * count, *sizes]))
    else:
        s = op.Div(op.Concat(r, r, axis=1), z)
    weights = op.once(
        ("weighted", layer.w, up[0], down[0]),
        lambda: op.Concat(op.Mul(plus(op, layer.w), up[0]), op.Mul(minus(op, layer.w), down[0]), axis=0),
    )
    result = layer.x * layer.back(op, weights, s)
    return [Relevance(result, frozenset([node.x])), *[None] * (len(node.inputs) - 1)]


def _bias(
    op: Backward, layer: Layer, up: Modifier | None, down: Modifier | None, count: int, epsilon: float
) -> ir.Value:
    """The stabilised biases of both halves, one behind the other."""
    dtype = layer.w.dtype
    assert dtype is not None
    parts = []
    for change, stabiliser in ((up, epsilon), (down, -epsilon)):
        if change is None or layer.bias is None:
            parts.append(op.constant([stabiliser] * count, dtype))
        else:
            parts.append(op.Add(change(op, layer.bias), stabiliser))
    value: ir.Value = op.Concat(*parts, axis=0)
    return value
