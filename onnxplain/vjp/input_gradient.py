"""The gradient of a convolution's input, in the fastest exact form for the case.

Measured on onnxruntime's CPU: stride 1 with many input channels wants a plain Conv on the flipped kernel (it keeps the
blocked layout), first layers and stride 2 a ConvTranspose, stride 4 and more one Conv that makes all phases followed by
DepthToSpace. Inserting zeros is never the fastest.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.node import dims, rank
from onnxplain.vjp.window import Window, even_pads

FLIP_FROM = 16  # input channels from which the flipped Conv beats ConvTranspose at stride 1 (measured, see above)


def conv_input_gradient(
    op: Backward, g: ir.Value, w: ir.Value, window: Window, group: int, sizes: Sequence[int | str | None], x: ir.Value
) -> ir.Value:
    """g (S, M, *out) -> (S, C, *sizes) for y = Conv(x, w); x gives sizes that only the run knows."""
    channels = dims(x)[1]
    unit = all(s == 1 for s in window.strides)
    flat_enough = all(
        span - 1 - pad >= 0
        for span, pads in zip(window.spans, zip(window.begin, window.end, strict=True), strict=True)
        for pad in pads
    )
    if unit and flat_enough and isinstance(channels, int) and channels >= FLIP_FROM:
        return _flipped(op, g, w, window, group)
    known = [size for size in sizes if isinstance(size, int)]
    if (
        len(set(window.strides)) == 1
        and window.strides[0] >= 4
        and rank(w) == 4
        and group == 1
        and len(known) == 2
        and all(d == 1 for d in window.dilations)
    ):
        return _phases(op, g, w, window, known)
    return _transposed(op, g, w, window, group, sizes, x)


def _flipped(op: Backward, g: ir.Value, w: ir.Value, window: Window, group: int) -> ir.Value:
    """Stride 1: a Conv with the kernel turned round and its channel axes exchanged."""
    before = [span - 1 - pad for span, pad in zip(window.spans, window.begin, strict=True)]
    after = [span - 1 - pad for span, pad in zip(window.spans, window.end, strict=True)]
    g, before, after = even_pads(op, g, before, after)
    value: ir.Value = op.Conv(
        g, flipped_kernel(op, w, group), group=group, dilations=window.dilations, pads=[*before, *after]
    )
    return value


def flipped_kernel(op: Backward, w: ir.Value, group: int) -> ir.Value:
    """(M, C/group, *kernel) -> (C, M/group, *kernel), turned round. Emitted as nodes; onnxruntime folds them once."""

    def make() -> ir.Value:
        spatial = list(range(2, rank(w)))
        shape = dims(w)
        value = w
        if any(shape[axis] != 1 for axis in spatial):
            least = [-(2**31)] * len(spatial)
            value = op.Slice(w, [-1] * len(spatial), least, spatial, [-1] * len(spatial))
        if group == 1:
            return op.Transpose(value, perm=[1, 0, *spatial])  # type: ignore[no-any-return]
        if shape[1] == 1 and shape[0] == group:
            return value
        out, into = shape[0], shape[1]
        assert isinstance(out, int) and isinstance(into, int)
        value = op.Reshape(value, [group, out // group, into, *(d for d in shape[2:] if isinstance(d, int))])
        value = op.Transpose(value, perm=[0, 2, 1, *(axis + 1 for axis in spatial)])
        return op.Reshape(value, [group * into, out // group, *(d for d in shape[2:] if isinstance(d, int))])  # type: ignore[no-any-return]

    return op.once(("flipped", w, group), make)


def _transposed(
    op: Backward, g: ir.Value, w: ir.Value, window: Window, group: int, sizes: Sequence[int | str | None], x: ir.Value
) -> ir.Value:
    """ConvTranspose; output_padding restores the rows the last stride stepped over.

    Padding that differs between the sides, or sizes only the run knows, are cut off by a Slice afterwards: onnxruntime
    ignores `pads` beside `output_shape`, and CUDA refuses asymmetric ones.
    """
    lost = []
    even = window.begin == window.end
    for i, size in enumerate(sizes):
        known = isinstance(size, int)
        s, span = window.strides[i], window.spans[i]
        out = dims(g)[2 + i]
        if known and isinstance(out, int):
            lost.append(int(size) - ((out - 1) * s + span - window.begin[i] - window.end[i]))  # type: ignore[arg-type]
        else:
            lost.append(0 if s == 1 else -1)
    if even and all(0 <= rows < max(s, d) for rows, s, d in zip(lost, window.strides, window.dilations, strict=True)):
        return op.ConvTranspose(  # type: ignore[no-any-return]
            g, w, group=group, strides=window.strides, dilations=window.dilations,
            pads=[*window.begin, *window.end], output_padding=lost if any(lost) else None,
        )  # fmt: skip
    full = op.ConvTranspose(g, w, group=group, strides=window.strides, dilations=window.dilations)
    return _fit(op, full, window, sizes, x)


def open_kernel_input_gradient(
    op: Backward, g: ir.Value, w: ir.Value, window: Window, group: int, sizes: Sequence[int | str | None], x: ir.Value
) -> ir.Value:
    """ConvTranspose, cut to size: needs of the window all but the kernel."""
    full = op.ConvTranspose(g, w, group=group, strides=window.strides, dilations=window.dilations)
    return _fit(op, op.reshaped(full, [dims(g)[0], dims(x)[1], *[None] * len(sizes)]), window, sizes, x)


def _fit(op: Backward, full: ir.Value, window: Window, sizes: Sequence[int | str | None], x: ir.Value) -> ir.Value:
    """Cut the padding off, and add zero rows behind (stride - 1, more where a pad was wider than the window)."""
    axes = list(range(2, 2 + len(sizes)))
    grown = [s - 1 + end for s, end in zip(window.strides, window.end, strict=True)]
    if any(grown):
        full = op.Pad(full, [0, 0, *[0] * len(axes), 0, 0, *grown])
    begin = op.ints(window.begin)
    lengths = [op.ints([size]) if isinstance(size, int) else op.size(x, 2 + i) for i, size in enumerate(sizes)]
    if all(isinstance(size, int) for size in sizes):
        end = op.ints([b + int(size) for b, size in zip(window.begin, sizes, strict=True)])  # type: ignore[arg-type]
    else:
        end = op.Concat(*lengths, axis=0)
        if any(window.begin):
            end = op.Add(end, begin)
    value: ir.Value = op.Slice(full, begin, end, axes)
    return value


def _phases(op: Backward, g: ir.Value, w: ir.Value, window: Window, sizes: list[int]) -> ir.Value:
    """Stride s >= 4, two axes: one Conv makes the s x s sub-pixel phases as channels, DepthToSpace lays them out.

    With q = i + begin = s t + r the gradient at i is sum_j g[t - j] w[s j + r]: a stride-1 Conv of g with phase r's
    taps.
    """
    s = window.strides[0]
    out_channels, channels = dims(w)[0], dims(w)[1]
    assert isinstance(out_channels, int) and isinstance(channels, int)
    taps = [-(-k // s) for k in window.kernel]

    def kernel() -> ir.Value:
        grown = op.Pad(w, [0, 0, 0, 0, 0, 0, *(t * s - k for t, k in zip(taps, window.kernel, strict=True))])
        split = op.Reshape(grown, [out_channels, channels, taps[0], s, taps[1], s])
        split = op.Slice(split, [-1, -1], [-(2**31)] * 2, [2, 4], [-1, -1])
        return op.Reshape(op.Transpose(split, perm=[3, 5, 1, 0, 2, 4]), [s * s * channels, out_channels, *taps])  # type: ignore[no-any-return]

    weights = op.once(("phases", w, s), kernel)
    last = [(b + size - 1) // s for b, size in zip(window.begin, sizes, strict=True)]  # the last t that is asked for
    outs = [d for d in dims(g)[2:] if isinstance(d, int)]
    before = [t - 1 for t in taps]
    after = [max(0, top - (out - 1)) for top, out in zip(last, outs, strict=True)]
    padded = op.Pad(g, [0, 0, *before, 0, 0, *after]) if any(before) or any(after) else g
    large = op.DepthToSpace(op.Conv(padded, weights), blocksize=s)
    ends = [b + size for b, size in zip(window.begin, sizes, strict=True)]
    value: ir.Value = op.Slice(large, window.begin, ends, [2, 3])
    return value
