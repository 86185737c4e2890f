"""FullGrad: what the input adds to a score and what every bias adds, in one map of the input's positions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.node import dims, rank


@dataclass(frozen=True)
class BiasGradient:
    """What the bias of a layer adds to the score: gradient times bias, element by element of the layer's output y.

    value (S, …) as y. channels: the axis of the channels of y; None where it has no positions.
    """

    value: ir.Value
    y: ir.Value
    channels: int | None


BiasMap = Callable[[Backward, ir.Value, Sequence[BiasGradient], ir.Value], ir.Value]
"""`(op, gradient times input (S, C, *space), bias gradients, input x) -> map (S, 1, *space)`."""


def full_grad(op: Backward, product: ir.Value, biases: Sequence[BiasGradient], x: ir.Value) -> ir.Value:
    """sum_c psi((x g)_c) + sum over layers and their channels of psi((b g_b)_c). Srinivas and Fleuret 2019, eq. 5.

    psi: the absolute value, brought to 0..1 by its own minimum and maximum, and enlarged to the input's positions,
    linear between the middles of its own. Layers without positions are no part of the picture. Channels are summed
    before they are enlarged, which is the same.
    """
    return _map(op, product, biases, x, False)


def full_grad_code(op: Backward, product: ir.Value, biases: Sequence[BiasGradient], x: ir.Value) -> ir.Value:
    """The same as its authors' code has it: minimum and maximum are those of a whole layer; weak channels stay so."""
    return _map(op, product, biases, x, True)


def _map(op: Backward, product: ir.Value, biases: Sequence[BiasGradient], x: ir.Value, whole: bool) -> ir.Value:
    total = _of_one(op, product, 1, whole)
    by_size: dict[tuple[int | str | None, ...], ir.Value] = {}
    for bias in biases:
        if bias.channels is None or rank(bias.y) != rank(x):
            continue
        found = _of_one(op, bias.value, bias.channels, whole)
        size = tuple(dims(found)[2:])
        by_size[size] = found if None in size or size not in by_size else op.Add(by_size[size], found)
        if None in size:  # two lengths that nobody knows may differ
            total = total + _enlarged(op, by_size.pop(size), x)
    for found in by_size.values():
        total = total + _enlarged(op, found, x)
    return total


def _of_one(op: Backward, value: ir.Value, channels: int, whole: bool) -> ir.Value:
    """Of the elements of a layer: absolute, 0..1 in each sample, summed over the channels, which come to axis 1.

    whole: 0..1 in the whole layer, not in each channel.
    """
    axes = op.ints([axis for axis in range(1, rank(value)) if whole or axis != channels])
    size = op.Abs(value)
    low, high = op.ReduceMin(size, axes, keepdims=1), op.ReduceMax(size, axes, keepdims=1)
    spread = op.Sub(high, low)
    scaled = op.Div(op.Sub(size, low), op.Where(op.Equal(spread, 0.0), 1.0, spread))
    summed = op.ReduceSum(scaled, op.ints([channels]), keepdims=1)
    if channels == 1:
        return summed  # type: ignore[no-any-return]
    order = [0, channels, *(axis for axis in range(1, rank(value)) if axis != channels)]
    return op.Transpose(summed, perm=order)  # type: ignore[no-any-return]


def _enlarged(op: Backward, found: ir.Value, x: ir.Value) -> ir.Value:
    space = range(2, rank(x))
    if [dims(found)[axis] for axis in space] == [dims(x)[axis] for axis in space] and None not in dims(x)[2:]:
        return found
    sizes = op.Concat(*(op.size(found, axis) for axis in (0, 1)), *(op.size(x, axis) for axis in space), axis=0)
    large = op.Resize(found, None, None, sizes, mode="linear", coordinate_transformation_mode="half_pixel")
    return op.reshaped(large, [*dims(found)[:2], *dims(x)[2:]])
