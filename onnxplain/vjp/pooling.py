"""Pools: a maximum sends relevance to its winner, an average shares it out."""

from __future__ import annotations

from math import prod

import numpy as np
import onnx_ir as ir

from onnxplain.errors import UnsupportedOp
from onnxplain.graph import signs, streams
from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.node import Node, dims, rank
from onnxplain.graph.walk import Gradient
from onnxplain.vjp.input_gradient import conv_input_gradient
from onnxplain.vjp.lengths import joined, volume
from onnxplain.vjp.placement import scattered
from onnxplain.vjp.registry import case, vjp
from onnxplain.vjp.window import Window


def window_of(node: Node) -> Window:
    """The pool's geometry."""
    return Window.of(node, list(node.attr("kernel_shape")))


@vjp(
    "MaxPool",
    kind="routing",
    streams=streams.batch_first,
    sign=signs.first,
    cases=[
        case(x=(2, 3, 6, 4), kernel_shape=[2, 2], strides=[2, 2], sample="apart"),
        case(x=(2, 3, 7, 5), kernel_shape=[2, 2], strides=[2, 2], sample="apart"),
        case(x=(2, 3, 7, 7), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], sample="apart"),
        case(x=(2, 2, 8, 7), kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 0, 1], sample="apart"),
        case(x=(1, 2, 9, 9), kernel_shape=[3, 2], strides=[2, 2], dilations=[2, 3], sample="apart"),
        case(x=(2, 2, 8, 8), kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1, sample="apart"),
        case(x=(1, 2, 6, 5), kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER", sample="apart"),
        case(x=(2, 2, 9), kernel_shape=[3], strides=[2], sample="apart"),
        case(x=(1, 2, 4, 5, 4), kernel_shape=[2, 3, 2], strides=[1, 2, 2], sample="apart"),
        case(x=(2, 2, 6, 5), kernel_shape=[3, 3], storage_order=1, outputs=2, sample="apart"),
        case(x=(1, 2, 3, 4, 5), kernel_shape=[2, 2, 2], storage_order=1, sample="apart"),
    ],
)
def max_pool(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """Each window's winner gets its g; of ties the first in row-major order wins, as in the forward pool.

    2 x 2 blocks on even sizes: first-match masks (measured on 2 cores, 1x64x224x224, forward included, against the
    scatter: 26 to 12.4 ms against 32 to 17.6 ms; the forward pool keeps its fast kernel). Else the pool's own Indices.
    """
    if all(isinstance(size, int) and size % 2 == 0 for size in dims(node.x)[2:]):
        window = window_of(node)
        blocks = window.kernel == window.strides == [2, 2] and not any(window.begin + window.end)
        if blocks and window.dilations == [1, 1]:
            return [_first_match(op, node, g)]
    flat = op.Flatten(g, axis=1)
    zeros = op.Flatten(op.zeros(g, node.x), axis=1)
    return [op.like(scattered(op, flat, zeros, switches(op, node), 1), node.x)]


def switches(op: Backward, node: Node) -> ir.Value:
    """Switches of a MaxPool: flat index of each window's winner within one sample, int64 (N, C * prod(out)).

    ONNX counts over the batch as well; we take it modulo C*prod(in). Ties: first in row-major order, as ORT.
    """
    x = node.x

    def make() -> ir.Value:
        index = op.Flatten(op.forward_output(node.y, 1), axis=1)
        if dims(x)[0] != 1:
            index = op.Mod(index, op.Squeeze(volume(op, x, 1, rank(x)), [0]))
        return _row_major(op, x, index) if node.attr("storage_order", 0) else index

    return op.once(("switches", node.y), make)


def _row_major(op: Backward, x: ir.Value, index: ir.Value) -> ir.Value:
    """From storage_order=1, where the first spatial axis runs fastest."""
    plane = volume(op, x, 2, rank(x))
    rest = op.Mod(index, plane)
    parts = [op.Sub(index, rest)]
    for axis in range(2, rank(x)):
        length = op.size(x, axis)
        parts.append(op.Mul(op.Mod(rest, length), volume(op, x, axis + 1, rank(x))))
        rest = op.Div(rest, length)
    return _added(op, parts)


def _added(op: Backward, parts: list[ir.Value]) -> ir.Value:
    """Sum has no integer kernel."""
    total = parts[0]
    for part in parts[1:]:
        total = op.Add(total, part)
    return total


def _first_match(op: Backward, node: Node, g: ir.Value) -> ir.Value:
    """Non-overlapping 2 x 2 windows: SpaceToDepth lays their four entries side by side, in row-major order.

    An entry wins where it equals the maximum and none before it does; the last one where no other did. The masks depend
    on the forward pass only: they have its batch, whatever the number of streams.
    """
    entries = op.Split(op.SpaceToDepth(node.x, blocksize=2), axis=1, num_outputs=4, outputs=4)
    routed, lost = [], None
    for entry in entries[:3]:
        equal = op.once(("equal", entry), lambda entry=entry: op.Equal(entry, node.y))  # type: ignore[misc]
        wins = equal if lost is None else op.And(lost, equal)
        lost = op.Not(equal) if lost is None else op.And(lost, op.Not(equal))
        routed.append(op.Where(wins, g, 0.0))
    routed.append(op.Where(lost, g, 0.0))
    value: ir.Value = op.DepthToSpace(op.Concat(*routed, axis=1), blocksize=2)
    return value


@vjp(
    "GlobalMaxPool",
    kind="routing",
    streams=streams.batch_first,
    sign=signs.first,
    cases=[case(x=(2, 3, 4, 5), sample="apart"), case(x=(2, 3, 4), sample="apart")],
)
def global_max_pool(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """The first of the largest entries gets all."""
    x, layout = node.x, [0, 0, -1]
    winner = op.ArgMax(op.Reshape(x, layout), axis=2, keepdims=1)
    zeros = op.Reshape(op.zeros(g, x), layout)
    return [op.like(scattered(op, op.Reshape(g, layout), zeros, winner, 2), x)]


@vjp(
    "AveragePool",
    kind="mean",
    linear=True,
    streams=streams.batch_first,
    sign=signs.first,
    cases=[
        case(x=(2, 3, 6, 4), kernel_shape=[2, 2], strides=[2, 2]),
        case(x=(2, 3, 4, 4), kernel_shape=[2, 2], strides=[2, 2], pads=[1, 0, 0, 0], count_include_pad=1),  # cuts a row
        case(x=(2, 3, 7, 5), kernel_shape=[3, 2], strides=[2, 1]),
        case(x=(1, 18, 5, 5), kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        case(x=(2, 2, 7, 7), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 0, 1, 1]),
        case(x=(2, 2, 7, 7), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 0, 1, 1], count_include_pad=1),
        case(x=(2, 2, 8, 8), kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
        case(x=(2, 2, 8, 7), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], ceil_mode=1),
        case(x=(2, 2, 8, 8), kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1, count_include_pad=1),
        case(x=(1, 2, 6, 5), kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_LOWER"),
        case(x=(1, 2, 9, 8), kernel_shape=[3, 2], strides=[2, 1], dilations=[2, 3], opset=19),
        case(x=(2, 2, 9), kernel_shape=[4], strides=[2], pads=[1, 2]),
        case(x=(1, 2, 4, 5, 4), kernel_shape=[2, 3, 2], strides=[1, 2, 2]),
    ],
)
def average_pool(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """Each entry of a window gets g over the window's divisor."""
    return [window_sum_gradient(op, node, shares(op, node, g), window_of(node))]


def shares(op: Backward, node: Node, g: ir.Value) -> ir.Value:
    """g over the divisor of its window: the number of entries, padding counted or not."""
    window, x = window_of(node), node.x
    include, ceil = node.attr("count_include_pad", 0), node.attr("ceil_mode", 0)
    framed = any(window.begin + window.end)
    if any(s > 1 for s in window.strides) and not all(isinstance(size, int) for size in dims(x)[2:]):
        framed = True  # onnxruntime cuts a window that is larger than its input, by less than a stride
    if not ceil and (include or not framed):
        return g * (1.0 / prod(window.kernel))  # type: ignore[no-any-return]
    assert g.dtype is not None
    count = entries(op, node, window, g.dtype)
    if not include:
        return g / count  # type: ignore[no-any-return]

    def weight() -> ir.Value:  # what a pool of ones lacks is padding; how ceil_mode counts it is the kernel's affair
        assert g.dtype is not None
        ones = op.Expand(op.constant(1.0, g.dtype), joined(op, [op.ints([1, 1]), *spatial(op, x)]))
        return op.Div(op.emit(node.op_type, [ones], 1, node.attributes), count)  # type: ignore[no-any-return]

    return g * op.once(("share", node.y), weight)  # type: ignore[no-any-return]


def spatial(op: Backward, value: ir.Value) -> list[ir.Value]:
    """Length of each axis behind batch and channels."""
    return [op.size(value, axis) for axis in range(2, rank(value))]


def entries(op: Backward, node: Node, window: Window, dtype: ir.DataType) -> ir.Value:
    """Entries of x in each window, padding left out: (1, 1, *out)."""
    x, y = node.x, node.y
    sizes, outs = dims(x)[2:], dims(y)[2:]
    if all(isinstance(d, int) for d in (*sizes, *outs)):
        total = np.ones((1, 1))
        for i, (size, out) in enumerate(zip(sizes, outs, strict=True)):
            assert isinstance(size, int) and isinstance(out, int)
            at = np.arange(out)[:, None] * window.strides[i] - window.begin[i]
            taps = at + np.arange(window.kernel[i]) * window.dilations[i]
            total = total[..., None] * ((taps >= 0) & (taps < size)).sum(1)
        return op.constant(total, dtype)

    def make() -> ir.Value:
        n = len(window.kernel)
        ones = op.Expand(op.constant(1.0, dtype), joined(op, [op.ints([1, 1]), *spatial(op, x)]))
        ends = [end + s - 1 for end, s in zip(window.end, window.strides, strict=True)]
        framed = op.Pad(ones, [0, 0, *window.begin, 0, 0, *ends])
        kernel = op.constant(np.ones((1, 1, *window.kernel)), dtype)
        full = op.Conv(framed, kernel, strides=window.strides, dilations=window.dilations)
        return op.Slice(full, [0] * n, joined(op, spatial(op, y)), list(range(2, 2 + n)))  # type: ignore[no-any-return]

    return op.once(("entries", y), make)


def window_sum_gradient(op: Backward, node: Node, g: ir.Value, window: Window) -> ir.Value:
    """The adjoint of summing over windows: an entry collects from those it lies in. (S, C, *out) -> (S, C, *in)."""
    sizes, outs, channels = dims(node.x)[2:], dims(node.y)[2:], dims(node.x)[1]
    apart = window.kernel == window.strides and all(d == 1 for d in window.dilations) and not any(window.begin)
    if apart and [out * k if isinstance(out, int) else -1 for out, k in zip(outs, window.kernel, strict=True)] == sizes:
        return _repeated(op, node, g, window)
    if not isinstance(channels, int):
        raise UnsupportedOp(f"{node}: the number of channels must be known at compile time.")
    assert g.dtype is not None
    ones = op.constant(np.ones((channels, 1, *window.kernel)), g.dtype)
    return conv_input_gradient(op, g, ones, window, channels, sizes, node.x)


def _repeated(op: Backward, node: Node, g: ir.Value, window: Window) -> ir.Value:
    """Windows that tile the input: each output fills its block."""
    n = len(window.kernel)
    blocks = op.Unsqueeze(g, [3 + 2 * i for i in range(n)])
    shape = [1, 1]
    for k in window.kernel:
        shape += [1, k]
    return op.like(op.Expand(blocks, shape), node.x)


@vjp(
    "GlobalAveragePool",
    kind="mean",
    linear=True,
    streams=streams.batch_first,
    sign=signs.first,
    cases=[case(x=(2, 3, 4, 5)), case(x=(2, 3, 4))],
)
def global_average_pool(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """Everyone gets the same."""
    x = node.x
    lengths = dims(x)[2:]
    known = [length for length in lengths if isinstance(length, int)]
    if len(known) == len(lengths):
        return [op.expand(g * (1.0 / prod(known)), x)]
    assert g.dtype is not None
    return [op.expand(g / op.Cast(volume(op, x, 2, rank(x)), to=int(g.dtype)), x)]


def root_sum_factor(op: Backward, node: Node, g: ir.Value, p: int) -> ir.Value:
    """g y^(1 - p), zero where y is: the outer half of the derivative of (sum |x|^p)^(1/p)."""
    if p == 1:
        return g
    norm = op.real(node.y)
    zero = op.Equal(norm, 0.0)
    y = op.Where(zero, 1.0, norm)
    scaled = g / (y if p == 2 else op.Pow(y, float(p - 1)))
    return op.Where(zero, 0.0, scaled)  # type: ignore[no-any-return]


def power_slope(op: Backward, x: ir.Value, p: int) -> ir.Value:
    """sign(x) |x|^(p - 1), the inner half."""
    if p == 1:
        return op.Sign(x)  # type: ignore[no-any-return]
    return x if p == 2 else op.Mul(op.Sign(x), op.Pow(op.Abs(x), float(p - 1)))


@vjp(
    "LpPool",
    kind="other",
    streams=streams.batch_first,
    sign=signs.always,
    cases=[
        case(x=(2, 2, 6, 4), kernel_shape=[2, 2], strides=[2, 2], sample="away"),
        case(x=(2, 2, 7, 6), kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 0, 1], p=3, sample="away"),
        case(x=(2, 2, 6), kernel_shape=[3], p=1, sample="away"),
    ],
)
def lp_pool(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """y = (sum |x|^p)^(1/p) over each window."""
    p = node.attr("p", 2)
    inner = window_sum_gradient(op, node, root_sum_factor(op, node, g, p), window_of(node))
    return [op.Mul(inner, power_slope(op, op.real(node.x), p))]


@vjp(
    "GlobalLpPool",
    kind="other",
    streams=streams.batch_first,
    sign=signs.always,
    cases=[case(x=(2, 3, 4, 5), sample="away"), case(x=(2, 3, 4), p=3, sample="away")],
)
def global_lp_pool(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """y = (sum |x|^p)^(1/p) over each channel."""
    p = node.attr("p", 2)
    return [op.Mul(root_sum_factor(op, node, g, p), power_slope(op, op.real(node.x), p))]
