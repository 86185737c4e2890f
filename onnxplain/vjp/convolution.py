"""Convolution and its transpose."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxplain.errors import UnsupportedOp
from onnxplain.graph import signs, streams
from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.node import Node, dims, rank
from onnxplain.graph.walk import Gradient
from onnxplain.vjp.facts import Weights, first_by_second
from onnxplain.vjp.input_gradient import conv_input_gradient, open_kernel_input_gradient
from onnxplain.vjp.kernel_gradient import bias_gradient, kernel_gradient
from onnxplain.vjp.registry import case, vjp
from onnxplain.vjp.window import Window, even_pads


def channels(node: Node, index: int) -> int:
    """The axis of the channels."""
    return 1


def ungrouped(node: Node) -> bool:
    """Whether every output channel sees every input channel."""
    return bool(node.attr("group", 1) == 1)


@vjp(
    "Conv",
    kind="linear",
    weights=Weights("convolution", first_by_second, "channels", channels, full_window=ungrouped),
    linear=True,
    streams=streams.batch_first,
    sign=signs.every,
    cases=[
        case(x=(2, 3, 8, 8), w=(6, 3, 3, 3), b=(6,), pads=[1, 1, 1, 1]),
        case(x=(2, 3, 8, 9), w=(6, 3, 3, 3), strides=[2, 2]),
        case(x=(1, 4, 7, 9), w=(4, 2, 3, 2), group=2, pads=[1, 0, 1, 1], dilations=[2, 1]),
        case(x=(2, 18, 6, 5), w=(4, 18, 3, 3), pads=[1, 1, 1, 1]),
        case(x=(2, 18, 6, 5), w=(4, 18, 2, 3), pads=[0, 2, 1, 0], dilations=[1, 2]),
        case(x=(2, 18, 6, 5), w=(4, 18, 2, 2), pads=[2, 2, 0, 0]),
        case(x=(1, 32, 6, 6), w=(8, 16, 3, 3), group=2, pads=[1, 1, 1, 1]),
        case(x=(1, 16, 6, 6), w=(16, 1, 3, 3), group=16, pads=[1, 1, 1, 1]),
        case(x=(1, 16, 7, 6), w=(16, 1, 3, 3), group=16, pads=[1, 1, 1, 1], strides=[2, 2]),
        case(x=(1, 3, 23, 21), w=(5, 3, 11, 11), strides=[4, 4], pads=[2, 2, 2, 2]),
        case(x=(1, 3, 19, 18), w=(5, 3, 5, 7), strides=[4, 4], pads=[1, 3, 2, 0]),
        case(x=(1, 3, 8, 9), w=(4, 3, 3, 3), strides=[2, 2], auto_pad="SAME_UPPER"),
        case(x=(1, 3, 8, 9), w=(4, 3, 4, 3), strides=[2, 3], auto_pad="SAME_LOWER"),
        case(x=(1, 3, 8, 9), w=(4, 3, 3, 3), strides=[3, 1], auto_pad="VALID"),
        case(x=(2, 3, 9), w=(4, 3, 3), strides=[2], pads=[1, 0]),
        case(x=(1, 2, 5, 6, 5), w=(3, 2, 3, 2, 3), strides=[2, 1, 2], pads=[1, 0, 1, 1, 1, 0]),
        case(x=(1, 4, 9, 9), w=(6, 4, 1, 1), strides=[3, 3]),
        case(x=(1, 16, 9, 9), w=(6, 16, 2, 2), strides=[5, 5]),
        case(x=(1, 2, 5, 5), w=(3, 2, 2, 2), strides=[3, 3], pads=[1, 1, 1, 1]),
        case(x=np.linspace(-1, 1, 2 * 2 * 6 * 5).reshape(2, 2, 6, 5), w=(3, 2, 3, 2), b=(3,), dilations=[2, 1]),
        case(x=(2, 6, 9, 8), w=(9, 2, 2, 3), b=(9,), group=3, strides=[2, 3], pads=[0, 2, 1, 0], dilations=[3, 2]),
        case(x=(2, 4, 7), w=(4, 1, 3), group=4, strides=[3], auto_pad="SAME_LOWER"),
        case(x=(2, 2, 2, 2), w=(3, 2, 3, 3), pads=[3, 3, 3, 3], strides=[2, 2]),
    ],
)
def conv(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """Transposed convolution. g (S, M, *out) -> (S, C, *in); w (M, C/group, *kernel); computed w and bias as well."""
    x, w = node.x, node.inputs[1]
    assert w is not None
    kernel, group = kernel_of(node, w), node.attr("group", 1)
    window = Window.of(node, kernel or [1] * (rank(w) - 2))
    back = conv_input_gradient if kernel else open_kernel_input_gradient
    to_x = None if op.is_constant(x) else back(op, g, op.real(w), window, group, dims(x)[2:], x)
    to_w = None if op.is_constant(w) else kernel_gradient(op, op.real(x), g, w, window, group)
    return [to_x, to_w, bias_gradient(op, g, node.input(2))][: len(node.inputs)]


def kernel_of(node: Node, w: ir.Value) -> list[int] | None:
    """Lengths of the kernel, from its shape or the attribute; None where only the run knows."""
    lengths = [length for length in node.attr("kernel_shape") or dims(w)[2:] if isinstance(length, int)]
    if len(lengths) == rank(w) - 2:
        return lengths
    if node.attr("auto_pad", "NOTSET") in ("NOTSET", "VALID") and node.attr("output_shape") is None:
        return None
    raise UnsupportedOp(
        f"{node}: the kernel's size is open, {dims(w)[2:]}, and its padding follows from it. Write its pads out."
    )


@vjp(
    "ConvTranspose",
    kind="linear",
    weights=Weights("convolution", first_by_second, "channels", channels),
    linear=True,
    streams=streams.batch_first,
    sign=signs.every,
    cases=[
        case(x=(2, 3, 5, 5), w=(3, 4, 3, 3), b=(4,), strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1]),
        case(x=(2, 3, 5, 4), w=(3, 4, 2, 2), strides=[2, 2]),
        case(x=(1, 4, 5, 4), w=(4, 3, 3, 2), group=2, dilations=[2, 1], pads=[1, 0, 2, 1]),
        case(x=(1, 2, 5), w=(2, 3, 4), strides=[3], auto_pad="SAME_UPPER"),
        case(x=(1, 2, 5, 5), w=(2, 3, 3, 3), strides=[2, 2], output_shape=[10, 11]),
        case(x=(2, 4, 3, 4), w=(4, 1, 2, 3), b=(2,), group=2, strides=[3, 2], output_padding=[2, 1], pads=[0, 2, 1, 0]),
        case(x=np.linspace(-1, 1, 24).reshape(2, 3, 4), w=(3, 2, 2), b=(2,), strides=[3], dilations=[2]),
        case(x=(2, 2, 3, 3), w=(2, 3, 2, 2), b=(3,), strides=[2, 2], auto_pad="SAME_LOWER"),
    ],
)
def conv_transpose(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """The plain convolution with the same kernel. g (S, M, *out) -> (S, C, *in); w (C, M/group, *kernel)."""
    x, w = node.x, node.inputs[1]
    assert w is not None
    group, spatial = node.attr("group", 1), rank(w) - 2
    kernel = kernel_of(node, w) or [1] * spatial
    strides = list(node.attr("strides") or [1] * spatial)
    dilations = list(node.attr("dilations") or [1] * spatial)
    to_bias = bias_gradient(op, g, node.input(2))
    begin, end = _transpose_pads(node, kernel, strides, dilations)
    # a negative pad cuts rows of g that output_padding beyond the window made
    cut = [max(0, -pad) for pad in (*begin, *end)]
    begin, end = [max(0, pad) for pad in begin], [max(0, pad) for pad in end]
    if any(cut):
        g = op.Pad(g, [0, 0, *(-c for c in cut[:spatial]), 0, 0, *(-c for c in cut[spatial:])])
    window = Window(kernel, strides, dilations, begin, end)
    to_x = None if op.is_constant(x) else _gathered(op, g, op.real(w), window, group, x)
    to_w = None if op.is_constant(w) else kernel_gradient(op, g, op.real(x), w, window, group)
    return [to_x, to_w, to_bias][: len(node.inputs)]


def _gathered(op: Backward, g: ir.Value, w: ir.Value, window: Window, group: int, x: ir.Value) -> ir.Value:
    """The plain convolution of g, cut to the size of x."""
    spatial = rank(w) - 2
    g, begin, end = even_pads(op, g, window.begin, window.end)
    value = op.Conv(g, w, group=group, strides=window.strides, dilations=window.dilations, pads=[*begin, *end])
    if value.shape is None:  # a kernel of open size
        value = op.reshaped(value, [dims(g)[0], dims(x)[1], *[None] * spatial])
    sizes = [d for d in dims(x)[2:] if isinstance(d, int)]
    if len(sizes) == spatial and dims(value)[2:] != sizes:
        value = op.Slice(value, [0] * spatial, sizes, list(range(2, 2 + spatial)))
    elif len(sizes) != spatial and any(s > 1 for s in window.strides):
        lengths = op.Concat(*(op.size(x, 2 + i) for i in range(spatial)), axis=0)
        value = op.Slice(value, [0] * spatial, lengths, list(range(2, 2 + spatial)))
    return value  # type: ignore[no-any-return]


def _transpose_pads(
    node: Node, kernel: list[int], strides: list[int], dilations: list[int]
) -> tuple[list[int], list[int]]:
    """Pads of a ConvTranspose; with output_shape or auto_pad they follow from the sizes, as the ONNX text says."""
    spatial = len(kernel)
    pads = list(node.attr("pads") or [0] * 2 * spatial)
    auto, shape = node.attr("auto_pad", "NOTSET"), node.attr("output_shape")
    if auto == "VALID":
        return [0] * spatial, [0] * spatial
    if shape is None and auto == "NOTSET":
        return pads[:spatial], pads[spatial:]
    extra = list(node.attr("output_padding") or [0] * spatial)
    begin, end = [], []
    for i in range(spatial):
        size = dims(node.x)[2 + i]
        if not isinstance(size, int):
            raise UnsupportedOp(
                f"{node}: output_shape or auto_pad needs the input's size, which this model leaves open."
            )
        out = dims(node.y)[2 + i]  # the run's: onnx's and onnxruntime's ideas of SAME with output_padding differ
        if not isinstance(out, int):
            out = shape[-spatial:][i] if shape else size * strides[i]
        total = max(0, strides[i] * (size - 1) + extra[i] + (kernel[i] - 1) * dilations[i] + 1 - out)
        small, large = total // 2, total - total // 2
        begin.append(small if auto == "SAME_UPPER" else large)
        end.append(large if auto == "SAME_UPPER" else small)
    return begin, end
