"""Resize: linear in its input, so that the adjoint is one matrix per axis, or a convolution where it repeats itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from onnxplain.errors import UnsupportedOp
from onnxplain.graph import streams
from onnxplain.graph.backward import Backward
from onnxplain.graph.node import Node, axes_of, constant, dims, ints, rank
from onnxplain.graph.walk import Gradient
from onnxplain.vjp.registry import case, vjp
from onnxplain.vjp.shape import unframed

PROBE = 16  # length of the input on which an integer upscaling shows its repeating pattern
FLOAT32 = np.float32  # onnxruntime computes coordinates in it; rounding decides which neighbour is nearest


class Pattern(NamedTuple):
    """What one input entry gives to the output of a whole-number upscaling.

    weights: of the outputs it reaches; before: how many of these lie before its own block; scale: length of the block.
    """

    weights: np.ndarray
    before: int
    scale: int


def numbers(values: Sequence[float]) -> np.ndarray:
    """Scales: float32, whatever the type of the input."""
    return np.array(values, dtype=np.float32)


def resized_axes(node: Node) -> list[int] | None:
    """Axes that change; None where only the run knows."""
    axes = node.attr("axes")
    axes = list(range(rank(node.x))) if axes is None else axes_of(axes, rank(node.x))
    if node.attr("coordinate_transformation_mode") == "tf_crop_and_resize":
        return axes
    scales = constant(node.input(2))
    if scales is not None and scales.size:
        return [axis for axis, scale in zip(axes, scales, strict=True) if scale != 1]
    before, after = dims(node.x), dims(node.y)
    if any(after[axis] is None for axis in axes):
        return None
    return [axis for axis in axes if before[axis] != after[axis]]


def coordinates(node: Node, index: int, scale: np.float32, size: int, out: int) -> np.ndarray:
    """Where each output entry lies on the input's axis, as the ONNX text defines it for each transformation mode.

    index: place of the axis in `axes`, which roi follows. size, out: lengths before and after.
    """
    x = np.arange(out, dtype=FLOAT32)
    half, one = FLOAT32(0.5), FLOAT32(1)
    mode = node.attr("coordinate_transformation_mode", "half_pixel")
    if mode == "asymmetric":
        return x / scale
    if mode == "align_corners":
        return x * FLOAT32(size - 1) / FLOAT32(out - 1) if out > 1 else 0 * x
    if mode == "tf_crop_and_resize":
        roi = constant(node.input(1))
        if roi is None:
            raise UnsupportedOp(f"{node}: tf_crop_and_resize needs a region that is known at compile time.")
        start, end = roi[index], roi[index + len(roi) // 2]
        if out == 1:
            return half * (start + end) * FLOAT32(size - 1) + 0 * x  # type: ignore[no-any-return]
        return start * FLOAT32(size - 1) + x * (end - start) * FLOAT32(size - 1) / FLOAT32(out - 1)  # type: ignore[no-any-return]
    if mode == "pytorch_half_pixel" and out == 1:
        return 0 * x
    centred = (x + half) / scale - half
    if mode == "half_pixel_symmetric":
        return FLOAT32(size) / 2 * (one - out / (scale * FLOAT32(size))) + centred
    if mode in ("half_pixel", "pytorch_half_pixel"):
        return centred
    raise UnsupportedOp(f"{node}: no derivative for coordinate_transformation_mode={mode}.")


def nearest(x: np.ndarray, how: str) -> np.ndarray:
    """The entry each coordinate falls on."""
    if how == "round_prefer_floor":
        return np.ceil(x - 0.5)
    if how == "round_prefer_ceil":
        return np.floor(x + 0.5)
    return np.floor(x) if how == "floor" else np.ceil(x)  # type: ignore[no-any-return]


def kernel(distance: np.ndarray, mode: str, a: float) -> np.ndarray:
    """Weight of an entry at a distance: a triangle, or the cubic of Keys 1981 with parameter a."""
    d = np.abs(distance)
    if mode == "linear":
        return np.clip(1 - d, 0, None)  # type: ignore[no-any-return]
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0))


def matrix(node: Node, index: int, scale: float, size: int, out: int) -> np.ndarray:
    """What Resize does along one axis: (out, size), rows are output entries."""
    rate = FLOAT32(scale)
    x = coordinates(node, index, rate, size, out)
    rows = np.arange(out)
    result = np.zeros((out, size))
    mode = node.attr("mode", "nearest")
    if mode == "nearest":
        at = nearest(x, node.attr("nearest_mode", "round_prefer_floor")).astype(int)
        result[rows, np.clip(at, 0, size - 1)] = 1
    else:
        squeeze = min(scale, 1.0) if node.attr("antialias", 0) else 1.0  # a smaller picture averages over more
        radius = int(np.ceil((1 if mode == "linear" else 2) / squeeze))
        taps = np.floor(x).astype(int)[:, None] + np.arange(1 - radius, radius + 1)
        weights = kernel((taps - x[:, None].astype(float)) * squeeze, mode, node.attr("cubic_coeff_a", -0.75))
        if node.attr("exclude_outside", 0):
            weights = weights * ((taps >= 0) & (taps < size))
        weights = weights / weights.sum(1, keepdims=True)
        np.add.at(result, (np.broadcast_to(rows[:, None], taps.shape), np.clip(taps, 0, size - 1)), weights)
    if node.attr("coordinate_transformation_mode") == "tf_crop_and_resize":
        result[(x < 0) | (x > size - 1)] = 0  # the extrapolation value, a constant
    return result


@vjp(
    "Resize",
    kind="mean",
    silent=(3,),
    linear=True,
    streams=streams.keeps(resized_axes),
    sign=lambda node, known: known[0] and node.attr("mode", "nearest") != "cubic",
    cases=[
        case(
            x=(2, 3, 3, 4),
            roi=None,
            scales=numbers([1, 1, 2, 3]),
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        ),
        case(x=(2, 3, 3, 4), roi=None, scales=numbers([1, 1, 2, 2])),
        case(x=(2, 2, 3, 4), roi=None, scales=numbers([1, 1, 2, 2]), mode="linear"),
        case(x=(2, 2, 4, 4), roi=None, scales=None, sizes=np.array([2, 2, 7, 3]), mode="linear"),
        case(
            x=(2, 2, 4, 4),
            roi=None,
            scales=None,
            sizes=np.array([2, 2, 7, 3]),
            mode="linear",
            coordinate_transformation_mode="align_corners",
        ),
        case(
            x=(1, 2, 6, 5),
            roi=None,
            scales=None,
            sizes=np.array([3, 1]),
            axes=[2, 3],
            mode="linear",
            coordinate_transformation_mode="pytorch_half_pixel",
        ),
        case(x=(1, 2, 4, 5), roi=None, scales=numbers([1, 1, 2, 2]), mode="cubic"),
        case(
            x=(1, 2, 4, 5),
            roi=None,
            scales=None,
            sizes=np.array([1, 2, 9, 8]),
            mode="cubic",
            exclude_outside=1,
            cubic_coeff_a=-0.5,
        ),
        case(x=(1, 1, 8, 9), roi=None, scales=None, sizes=np.array([1, 1, 3, 4]), mode="linear", antialias=1),
        case(
            x=(1, 1, 8, 9),
            roi=None,
            scales=None,
            sizes=np.array([1, 1, 3, 4]),
            mode="cubic",
            antialias=1,
            exclude_outside=1,
        ),
        case(
            x=(1, 1, 5, 6),
            roi=np.array([0, 0, 0.2, 0.1, 1, 1, 0.9, 1.2]),
            scales=None,
            sizes=np.array([1, 1, 4, 5]),
            mode="linear",
            coordinate_transformation_mode="tf_crop_and_resize",
        ),
        case(x=(1, 2, 7, 5), roi=None, scales=None, sizes=np.array([1, 2, 4, 9]), nearest_mode="ceil"),
        case(
            x=(1, 2, 7, 5),
            roi=None,
            scales=None,
            sizes=np.array([1, 2, 4, 9]),
            nearest_mode="round_prefer_ceil",
            coordinate_transformation_mode="align_corners",
        ),
        case(
            x=(1, 2, 7, 5),
            roi=None,
            scales=numbers([1, 1, 0.6, 1.7]),
            mode="linear",
            coordinate_transformation_mode="half_pixel_symmetric",
            opset=19,
        ),
        case(
            x=(1, 2, 6, 4),
            roi=None,
            scales=None,
            sizes=np.array([9, 8]),
            axes=[2, 3],
            keep_aspect_ratio_policy="not_larger",
        ),
        case(x=(2, 3, 5), roi=None, scales=numbers([1, 1, 2]), mode="linear"),
    ],
)
def resize(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """Transposed interpolation along each axis. g (S, *out) -> (S, *in)."""
    x = node.x
    axes = resized_axes(node)
    if axes is None:
        raise _unknown(node)
    axes = [axis for axis in axes if axis != op.stream_axis(x)]
    named = node.attr("axes")
    named = list(range(rank(x))) if named is None else axes_of(named, rank(x))
    rates = constant(node.input(2))
    scales = None if rates is None or not rates.size else [float(rates[named.index(axis)]) for axis in axes]
    upscaling = _upscaling(node, scales, [named.index(axis) for axis in axes])
    rest: list[Gradient] = [None] * (len(node.inputs) - 1)
    if upscaling is not None and min(axes, default=2) >= 2:
        if all(not p.before and len(p.weights) == p.scale and (p.weights == 1).all() for p in upscaling):
            return [_block_sums(op, g, axes, [p.scale for p in upscaling]), *rest]
        if any(not isinstance(d, int) for d in (*dims(x)[2:], *dims(node.y)[2:])):
            return [_strided(op, node, g, axes, upscaling), *rest]
    for i, axis in enumerate(axes):
        size, out = dims(x)[axis], dims(node.y)[axis]
        if isinstance(size, int) and scales is not None:
            out = int(np.floor(FLOAT32(size) * FLOAT32(scales[i])))
        if not isinstance(size, int) or not isinstance(out, int):
            raise _unknown(node)
        scale = out / size if scales is None else scales[i]
        if scales is None and node.attr("keep_aspect_ratio_policy", "stretch") != "stretch":
            scale = _common_scale(node, named)
        g = along(op, g, axis, matrix(node, named.index(axis), scale, size, out))
    return [g, *rest]


def _unknown(node: Node) -> UnsupportedOp:
    return UnsupportedOp(
        f"{node}: the derivative needs the sizes before and after, which this model leaves open (whole-number scales "
        f"of axes 2 and up work without). Fix the input size (onnxruntime's make_dynamic_shape_fixed tool)."
    )


def _common_scale(node: Node, axes: Sequence[int]) -> float:
    """One scale for all axes: the smallest (not_larger) or the largest (not_smaller)."""
    sizes, before = ints(node.input(3)), dims(node.x)
    if sizes is None or not all(isinstance(before[axis], int) for axis in axes):
        raise _unknown(node)
    rates = [size / before[axis] for size, axis in zip(sizes, axes, strict=True)]  # type: ignore[operator]
    return float(min(rates) if node.attr("keep_aspect_ratio_policy") == "not_larger" else max(rates))


def along(op: Backward, g: ir.Value, axis: int, forward: np.ndarray) -> ir.Value:
    """Contract one axis of `g` with the rows of `forward` (out, in)."""
    assert g.dtype is not None
    last = rank(g) - 1
    if axis == last - 1:
        return op.MatMul(op.constant(forward.T, g.dtype), g)  # type: ignore[no-any-return]
    weights = op.constant(forward, g.dtype)
    if axis == last:
        return op.MatMul(g, weights)  # type: ignore[no-any-return]
    perm = [i if i not in (axis, last) else axis + last - i for i in range(last + 1)]
    return op.Transpose(op.MatMul(op.Transpose(g, perm=perm), weights), perm=perm)  # type: ignore[no-any-return]


def _upscaling(node: Node, scales: Sequence[float] | None, places: Sequence[int]) -> list[Pattern] | None:
    """The pattern of each axis, found on a probe away from its ends; None where scales are not known whole numbers."""
    mode = node.attr("coordinate_transformation_mode", "half_pixel")
    if scales is None or node.attr("exclude_outside", 0) or mode in ("align_corners", "tf_crop_and_resize"):
        return None
    result = []
    for scale, place in zip(scales, places, strict=True):
        k = round(scale)
        if k != scale or k < 1:
            return None
        column = matrix(node, place, scale, PROBE, PROBE * k)[:, PROBE // 2]
        reached = np.flatnonzero(column)
        begin, end = int(reached[0]), int(reached[-1]) + 1
        result.append(Pattern(column[begin:end], PROBE // 2 * k - begin, k))
    return result


def _block_sums(op: Backward, g: ir.Value, axes: Sequence[int], scales: Sequence[int]) -> ir.Value:
    """Nearest: each entry was copied to a block of its own. Any size; the average pool is onnxruntime's fastest sum."""
    factors = dict(zip(axes, scales, strict=True))
    block = [factors.get(axis, 1) for axis in range(2, rank(g))]
    return op.AveragePool(g, kernel_shape=block, strides=block) * float(np.prod(block))  # type: ignore[no-any-return]


def _strided(op: Backward, node: Node, g: ir.Value, axes: Sequence[int], upscaling: Sequence[Pattern]) -> ir.Value:
    """Any size: one strided depthwise convolution per axis gathers what each entry reached.

    Entries beyond the ends, whose place the outermost ones took, are made as well and then added to those.
    """
    channels = dims(node.x)[1]
    if not isinstance(channels, int):
        raise UnsupportedOp(f"{node}: the number of channels must be known at compile time.")
    assert g.dtype is not None
    spatial = rank(g) - 2
    for axis, (weights, before, k) in zip(axes, upscaling, strict=True):

        def here(value: int, other: int, axis: int = axis) -> list[int]:
            return [value if i == axis - 2 else other for i in range(spatial)]

        after = len(weights) - before - k
        frame = max(0, -(-before // k), -(-after // k))  # entries beyond either end that reach into the picture
        framed = op.Pad(g, [0, 0, *here(before + frame * k, 0), 0, 0, *here(after + frame * k, 0)])
        shape = here(len(weights), 1)
        taps = np.broadcast_to(weights.reshape(1, 1, *shape), (channels, 1, *shape))
        g = op.Conv(framed, op.constant(taps, g.dtype), group=channels, strides=here(k, 1))
        if frame:
            g = unframed(op, g, op.size(node.x, axis), axis, frame, frame, "edge")
    return g
