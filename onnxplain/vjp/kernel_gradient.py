"""Derivatives of a kernel and a bias that the model computes: dynamic convolutions, hypernetworks, filtered kernels.

Streams are the batch here: a computed kernel never carries the batch on an axis of its own (`streams.batch_first`
calls it unproven), so that the sums over the batch are right.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.node import dims, rank
from onnxplain.vjp.lengths import joined
from onnxplain.vjp.window import Window, even_pads


def kernel_gradient(
    op: Backward, large: ir.Value, small: ir.Value, w: ir.Value, window: Window, group: int
) -> ir.Value:
    """d/dw of sum small[n, m, o] large[n, c, stride o + dilation k - begin] w[m, c, k], in the shape of w.

    large (N, C, *in), small (N, M, *out), w (M, C/group, *kernel). For a Conv large is x and small is g, for a
    ConvTranspose the other way round. It is a convolution of `large` with `small` as its kernel: the batch takes the
    place of the channels and the strides that of the dilations.
    """
    large, begin, end = even_pads(op, large, window.begin, window.end)
    large = _batch_as_channels(op, large, group)
    kernel = op.Transpose(small, perm=[1, 0, *range(2, rank(small))])
    gradient = op.Conv(
        large, kernel, group=group, strides=window.dilations, dilations=window.strides, pads=[*begin, *end]
    )
    spatial = list(range(2, rank(w)))
    if gradient.shape is None:  # a kernel of open size
        gradient = op.reshaped(gradient, [dims(large)[0], dims(kernel)[0], *[None] * len(spatial)])
    gradient = op.Transpose(gradient, perm=[1, 0, *spatial])  # (C/group, M, …) -> (M, C/group, …)
    # where the last stride stepped over rows, there are taps behind the last one
    sizes = joined(op, [op.size(w, axis) for axis in spatial])
    if spatial and (None in dims(gradient)[2:] or dims(gradient)[2:] != dims(w)[2:]):
        gradient = op.Slice(gradient, [0] * len(spatial), sizes, spatial)
    return op.reshaped(gradient, dims(w))


def _batch_as_channels(op: Backward, x: ir.Value, group: int) -> ir.Value:
    """(N, group * C, …) -> (C, group * N, …)."""
    if group == 1:
        return op.Transpose(x, perm=[1, 0, *range(2, rank(x))])  # type: ignore[no-any-return]
    sizes = [op.size(x, axis) for axis in range(2, rank(x))]
    channels = dims(x)[1]
    each = op.ints([channels // group]) if isinstance(channels, int) else op.Div(op.size(x, 1), op.ints([group]))
    split = op.Reshape(x, joined(op, [op.ints([0, group]), each, *sizes]))
    turned = op.Transpose(split, perm=[2, 1, 0, *range(3, rank(x) + 1)])
    return op.Reshape(turned, joined(op, [each, op.ints([-1]), *sizes]))  # type: ignore[no-any-return]


def bias_gradient(op: Backward, g: ir.Value, bias: ir.Value | None) -> ir.Value | None:
    """g (N, M, *out) summed over all but the channels; None for a constant or absent bias."""
    if bias is None or op.is_constant(bias):
        return None
    return op.ReduceSum(g, [0, *range(2, rank(g))], keepdims=0)  # type: ignore[no-any-return]
