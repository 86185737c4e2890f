"""What Resize does along one axis, as a matrix of numbers: for lengths that are known at compile time."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxplain.errors import UnsupportedOp
from onnxplain.graph.node import Node, constant

FLOAT32 = np.float32  # onnxruntime computes coordinates in it; rounding decides which neighbour is nearest


def given_scales(node: Node) -> ir.Value | None:
    """The scales; None where sizes are given in their place (old exports leave an empty tensor there)."""
    scales = node.input(2)
    numbers = constant(scales)
    return None if numbers is not None and not numbers.size else scales


def region(node: Node, index: int) -> tuple[np.float32, np.float32]:
    """Begin and end of the part of the input that tf_crop_and_resize takes along one axis."""
    roi = constant(node.input(1))
    if roi is None:
        raise UnsupportedOp(f"{node}: tf_crop_and_resize needs a region that is known at compile time.")
    return FLOAT32(roi[index]), FLOAT32(roi[index + len(roi) // 2])


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
        start, end = region(node, index)
        if out == 1:
            return half * (start + end) * FLOAT32(size - 1) + 0 * x
        return start * FLOAT32(size - 1) + x * (end - start) * FLOAT32(size - 1) / FLOAT32(out - 1)
    if mode == "pytorch_half_pixel" and out == 1:
        return 0 * x
    centred = (x + half) / scale - half
    if mode == "half_pixel_symmetric":
        return FLOAT32(size) / 2 * (one - out / (scale * FLOAT32(size))) + centred
    if mode in ("half_pixel", "pytorch_half_pixel"):
        return centred
    raise UnsupportedOp(f"{node}: no derivative for coordinate_transformation_mode={mode}.")


def nearest(x: np.ndarray, rounding: str) -> np.ndarray:
    """The entry each coordinate falls on."""
    if rounding == "round_prefer_floor":
        return np.ceil(x - 0.5)
    if rounding == "round_prefer_ceil":
        return np.floor(x + 0.5)
    return np.floor(x) if rounding == "floor" else np.ceil(x)  # type: ignore[no-any-return]


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
