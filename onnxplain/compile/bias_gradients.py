"""The biases of a net, said and implicit, each with its gradient: what a score has that is not gradient times input."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import onnx_ir as ir

from onnxplain.compile.feature_maps import Layout
from onnxplain.composites.places import kind_of
from onnxplain.errors import UnsupportedModel, UsageError
from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.node import Node, dims, is_float, rank
from onnxplain.graph.relevance import Relevance
from onnxplain.graph.walk import inputs_of
from onnxplain.rules.full_gradient import BiasGradient
from onnxplain.vjp import lookup, weight_and_bias

ROUNDING = 1e-5  # of the terms of a difference: what is smaller is rounding, and no bias


def bias_gradients(
    op: Backward, arrived: Mapping[ir.Value, Relevance], sent: Mapping[Node, Sequence[Relevance | None]], layout: Layout
) -> list[BiasGradient]:
    """Of every node that has any. arrived: the gradient at each tensor; sent: what each node gave its inputs of it.

    A layer's is g b. What is no linear layer has the implicit bias y - J x (Srinivas and Fleuret 2019, section 3): none
    for a Relu, a pool or whatever is homogeneous; -y for a product of two; g y - g_x x for what has one input of the
    shape of its output. With these, gradient times input and all biases sum to the score. Raises UnsupportedModel for a
    node whose implicit bias has no place.
    """
    found = []
    for node in sent:
        if node.y not in arrived or not is_float(node.y):
            continue
        with op.scope(node):
            value = _bias_gradient(op, node, arrived[node.y].value, sent[node])
        if value is not None:
            op.reshaped(value, op.stream_shape(node.y))
            channels = layout.channels[node.y] if layout.has_positions(node.y) else None
            found.append(BiasGradient(value, node.y, channels))
    return found


def _bias_gradient(op: Backward, node: Node, g: ir.Value, sent: Sequence[Relevance | None]) -> ir.Value | None:
    entry, kind = lookup(node), kind_of(op, node)
    moved = [(x, r.value) for i, x in inputs_of(node) if i < len(sent) and (r := sent[i]) is not None]
    if kind == "linear":
        return _of_layer(op, node, g)
    if kind in ("sum", "routing") or (kind == "mean" and entry.linear) or entry.zero_or_input:
        return None
    if kind == "affine" and entry.kind == "product":
        return None
    if kind == "affine" and entry.commutes:
        added = [value for value in node.inputs if value is not None and not op.receives(value)]
        plain = len(added) == 1 and [r for _, r in moved] == [g]  # g goes on as it is, so nothing is scaled
        return g * op.real(added[0]) if plain else _residual(op, node, g, moved)
    if kind == "product" and (entry.commutes or entry.kind == "linear"):
        return -1.0 * g * op.real(node.y) if len(moved) == 2 else None
    return _residual(op, node, g, moved)


def _of_layer(op: Backward, node: Node, g: ir.Value) -> ir.Value | None:
    """g b of a layer with constant weights."""
    layer, weights = weight_and_bias(op, node), lookup(node).weights
    if layer is None or weights is None or (bias := layer[2]) is None:
        return None
    bias = op.real(bias)
    if weights.bias == "channels":
        bias = op.Reshape(bias, op.ints([-1 if axis == 1 else 1 for axis in range(1, rank(node.y))]))
    factor = node.attr(weights.factors[1], 1.0) if weights.factors is not None else 1.0
    scaled: ir.Value = g * bias if factor == 1.0 else g * bias * factor
    return scaled


def _residual(op: Backward, node: Node, g: ir.Value, moved: Sequence[tuple[ir.Value, ir.Value]]) -> ir.Value:
    """g y - sum of g_x x over the inputs, of which rounding is taken away."""
    if not moved or any(value.shape is None or dims(value) != dims(node.y) for value, _ in moved):
        raise UnsupportedModel(
            f"{node}: FullGrad gives every element of a layer's output its bias, and which it is here is not known, "
            "since the node has several inputs or another shape. Take grad_cam or gradient_x_input, or attribute to a "
            "tensor above it by --attribute-to."
        )
    after = g * op.real(node.y)
    rest, size = after, op.Abs(after)
    for value, r in moved:
        before = r * op.real(value)
        rest, size = op.Sub(rest, before), op.Add(size, op.Abs(before))
    large = op.Greater(op.Abs(rest), size * ROUNDING)
    return op.Where(large, rest, 0.0)  # type: ignore[no-any-return]


def pictures(layout: Layout, wanted: Collection[ir.Value], by_user: bool) -> dict[ir.Value, int]:
    """The attributed tensors over which bias gradients can be laid → the axis of their channels.

    Raises UsageError for another that the user named, UnsupportedModel where there is none.
    """
    found = {value: 1 for value in wanted if layout.channels.get(value) == 1 and layout.has_positions(value)}
    others = [
        f"{value.name} {dims(value) if value.shape is not None else ''}" for value in wanted if value not in found
    ]
    what = "a picture (N, C, H, W) that a convolution reads, over which bias gradients are laid"
    if others and by_user:
        raise UsageError(f"--attribute-to {others[0]}: FullGrad attributes to {what}.")
    if not found:
        raise UnsupportedModel(f"FullGrad attributes to {what}, and there is none among {', '.join(others)}.")
    return found
