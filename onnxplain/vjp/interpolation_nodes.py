"""What Resize does along one axis, as nodes: for lengths that only the run knows. The formulas of `interpolation`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxplain.errors import UnsupportedOp
from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.node import Node
from onnxplain.vjp.interpolation import given_scales, region
from onnxplain.vjp.lengths import joined, scalar

FLOAT = int(ir.DataType.FLOAT)
INT64 = int(ir.DataType.INT64)


def open_matrix(op: Backward, node: Node, axis: int, named: Sequence[int]) -> ir.Value:
    """(out, in) float32, rows are output entries. named: the axes that scales, sizes and roi follow."""
    place = list(named).index(axis)
    size, out = op.size(node.x, axis), op.size(node.y, axis)
    length, count = op.Cast(size, to=FLOAT), op.Cast(out, to=FLOAT)
    scale = rate(op, node, place, named, length, count)
    x = coordinates(op, node, place, scale, length, count)
    if node.attr("mode", "nearest") == "nearest":
        taps = nearest(op, x, node.attr("nearest_mode", "round_prefer_floor"))
        weights = op.Add(op.Mul(taps, 0.0), 1.0)
    else:
        taps, weights = neighbours(op, node, x, scale, length)
    at = op.Cast(op.Max(op.Min(taps, length - 1.0), 0.0), to=INT64)
    zeros = op.Expand(op.constant(0.0, ir.DataType.FLOAT), joined(op, [out, size]))
    result = op.ScatterElements(zeros, at, weights, axis=1, reduction="add")
    if node.attr("coordinate_transformation_mode") == "tf_crop_and_resize":  # the extrapolation value, a constant
        outside = op.Or(op.Less(x, 0.0), op.Greater(x, length - 1.0))
        result = op.Where(outside, 0.0, result)
    return result  # type: ignore[no-any-return]


def rate(op: Backward, node: Node, place: int, named: Sequence[int], length: ir.Value, count: ir.Value) -> ir.Value:
    """The scale (1,): as given, or from the lengths; one for all axes where the aspect ratio is kept."""
    scales = given_scales(node)
    if scales is not None:
        return op.Slice(scales, [place], [place + 1])  # type: ignore[no-any-return]
    policy = node.attr("keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        return count / length  # type: ignore[no-any-return]
    before = op.Cast(joined(op, [op.size(node.x, axis) for axis in named]), to=FLOAT)
    rates = op.Cast(node.inputs[3], to=FLOAT) / before
    smallest = policy == "not_larger"
    return (op.ReduceMin if smallest else op.ReduceMax)(rates, [0], keepdims=1)  # type: ignore[no-any-return]


def coordinates(op: Backward, node: Node, place: int, scale: ir.Value, length: ir.Value, count: ir.Value) -> ir.Value:
    """Where each output entry lies on the input's axis: (out, 1)."""
    number = op.Range(scalar(op, 0), op.Squeeze(op.Cast(count, to=INT64), [0]), scalar(op, 1))
    x = op.Unsqueeze(op.Cast(number, to=FLOAT), [1])
    mode = node.attr("coordinate_transformation_mode", "half_pixel")
    steps = op.Max(count - 1.0, 1.0)  # one entry: x = 0, whatever it is divided by
    if mode == "asymmetric":
        return x / scale  # type: ignore[no-any-return]
    if mode == "align_corners":
        return x * (length - 1.0) / steps  # type: ignore[no-any-return]
    if mode == "tf_crop_and_resize":
        start, end = (float(edge) for edge in region(node, place))
        several = start * (length - 1.0) + x * (end - start) * (length - 1.0) / steps
        return op.Where(op.Equal(count, 1.0), 0.5 * (start + end) * (length - 1.0) + x, several)  # type: ignore[no-any-return]
    centred = (x + 0.5) / scale - 0.5
    if mode == "half_pixel":
        return centred  # type: ignore[no-any-return]
    if mode == "pytorch_half_pixel":
        return op.Where(op.Equal(count, 1.0), 0.0, centred)  # type: ignore[no-any-return]
    if mode == "half_pixel_symmetric":
        return length / 2.0 * (1.0 - count / (scale * length)) + centred  # type: ignore[no-any-return]
    raise UnsupportedOp(f"{node}: no derivative for coordinate_transformation_mode={mode}.")


def nearest(op: Backward, x: ir.Value, rounding: str) -> ir.Value:
    """The entry each coordinate falls on."""
    if rounding == "round_prefer_floor":
        return op.Ceil(x - 0.5)  # type: ignore[no-any-return]
    if rounding == "round_prefer_ceil":
        return op.Floor(x + 0.5)  # type: ignore[no-any-return]
    return op.Floor(x) if rounding == "floor" else op.Ceil(x)  # type: ignore[no-any-return]


def neighbours(op: Backward, node: Node, x: ir.Value, scale: ir.Value, length: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Entries that each output sees, and their weights: (out, taps) twice."""
    mode, reach = node.attr("mode"), 1 if node.attr("mode") == "linear" else 2
    if node.attr("antialias", 0):  # a smaller picture averages over more
        squeeze = op.Min(scale, 1.0)
        radius = op.Cast(op.Ceil(op.constant([reach], ir.DataType.FLOAT) / squeeze), to=INT64)
        first, last = op.Sub(op.ints([1]), radius), op.Add(radius, op.ints([1]))
        offsets = op.Cast(op.Range(op.Squeeze(first, [0]), op.Squeeze(last, [0]), scalar(op, 1)), to=FLOAT)
    else:
        squeeze = None
        offsets = op.constant(np.arange(1 - reach, reach + 1), ir.DataType.FLOAT)
    taps = op.Floor(x) + offsets
    distance = op.Abs(taps - x)
    distance = distance if squeeze is None else distance * squeeze
    if mode == "linear":
        weights = op.Max(1.0 - distance, 0.0)
    else:
        weights = cubic(op, distance, node.attr("cubic_coeff_a", -0.75))
    if node.attr("exclude_outside", 0):
        inside = op.And(op.GreaterOrEqual(taps, 0.0), op.Less(taps, length))
        weights = op.Where(inside, weights, 0.0)
    return taps, weights / op.ReduceSum(weights, [1], keepdims=1)


def cubic(op: Backward, d: ir.Value, a: float) -> ir.Value:
    """Weight of an entry at distance d >= 0: the cubic of Keys 1981 with parameter a."""
    near = ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0
    far = ((a * d - 5.0 * a) * d + 8.0 * a) * d - 4.0 * a
    return op.Where(op.LessOrEqual(d, 1.0), near, op.Where(op.Less(d, 2.0), far, 0.0))  # type: ignore[no-any-return]
