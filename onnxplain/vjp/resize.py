"""Resize: linear in its input, so that the adjoint is one matrix per axis, or a convolution where it repeats itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from onnxplain.graph import streams
from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.node import Node, axes_of, constant, dims, ints, rank
from onnxplain.graph.walk import Gradient
from onnxplain.vjp.interpolation import FLOAT32, given_scales, matrix
from onnxplain.vjp.interpolation_nodes import open_matrix
from onnxplain.vjp.padding import unframed
from onnxplain.vjp.registry import case, vjp

PROBE = 16  # length of the input on which an integer upscaling shows its repeating pattern


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


def resized_axes(node: Node) -> list[int]:
    """Axes that change, or may: those whose length before and after is not known to be the same."""
    axes = node.attr("axes")
    axes = list(range(rank(node.x))) if axes is None else axes_of(axes, rank(node.x))
    if node.attr("coordinate_transformation_mode") == "tf_crop_and_resize":
        return axes
    scales = constant(given_scales(node))
    if scales is not None:
        return [axis for axis, scale in zip(axes, scales, strict=True) if scale != 1]
    before, after = dims(node.x), dims(node.y)
    return [axis for axis in axes if before[axis] is None or before[axis] != after[axis]]


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
    axes = [axis for axis in resized_axes(node) if axis != op.stream_axis(x)]
    named = node.attr("axes")
    named = list(range(rank(x))) if named is None else axes_of(named, rank(x))
    rates = constant(given_scales(node))
    scales = None if rates is None else [float(rates[named.index(axis)]) for axis in axes]
    upscaling = _upscaling(node, scales, [named.index(axis) for axis in axes])
    rest: list[Gradient] = [None] * (len(node.inputs) - 1)
    if upscaling is not None and min(axes, default=2) >= 2:
        if all(not p.before and len(p.weights) == p.scale and (p.weights == 1).all() for p in upscaling):
            return [_block_sums(op, g, axes, [p.scale for p in upscaling]), *rest]
        if any(not isinstance(d, int) for d in (*dims(x)[2:], *dims(node.y)[2:])) and isinstance(dims(x)[1], int):
            return [_strided(op, node, g, axes, upscaling), *rest]
    for i, axis in enumerate(axes):
        g = along(op, g, axis, _interpolation(op, node, axis, named, None if scales is None else scales[i]))
    return [g, *rest]


def _interpolation(
    op: Backward, node: Node, axis: int, named: Sequence[int], scale: float | None
) -> np.ndarray | ir.Value:
    """What the node does along an axis, (out, in): numbers where the lengths are known, else nodes that make them."""
    size, out, place = dims(node.x)[axis], dims(node.y)[axis], named.index(axis)
    if isinstance(size, int) and scale is not None:
        return matrix(node, place, scale, size, int(np.floor(FLOAT32(size) * FLOAT32(scale))))
    if isinstance(size, int) and isinstance(out, int) and given_scales(node) is None:
        stretched = node.attr("keep_aspect_ratio_policy", "stretch") == "stretch"
        rate = out / size if stretched else _common_scale(node, named)
        if rate is not None:
            return matrix(node, place, rate, size, out)
    return op.once(("interpolation", node.y, axis), lambda: open_matrix(op, node, axis, named))


def _common_scale(node: Node, axes: Sequence[int]) -> float | None:
    """One scale for all axes: the smallest (not_larger) or the largest (not_smaller); None where lengths are open."""
    sizes, before = ints(node.input(3)), [dims(node.x)[axis] for axis in axes]
    if sizes is None:
        return None
    rates = [size / length for size, length in zip(sizes, before, strict=True) if isinstance(length, int)]
    if len(rates) != len(axes):
        return None
    return float(min(rates) if node.attr("keep_aspect_ratio_policy") == "not_larger" else max(rates))


def along(op: Backward, g: ir.Value, axis: int, forward: np.ndarray | ir.Value) -> ir.Value:
    """Contract one axis of `g` with the rows of `forward` (out, in)."""
    assert g.dtype is not None
    last = rank(g) - 1
    if isinstance(forward, np.ndarray):
        weights = op.constant(forward.T if axis == last - 1 else forward, g.dtype)
    else:
        weights = forward if forward.dtype == g.dtype else op.Cast(forward, to=int(g.dtype))
        weights = op.Transpose(weights, perm=[1, 0]) if axis == last - 1 else weights
    if axis == last - 1:
        return op.MatMul(weights, g)  # type: ignore[no-any-return]
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
    assert isinstance(channels, int) and g.dtype is not None
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
