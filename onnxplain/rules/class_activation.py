"""Class activation maps: gradient and activation of one feature map -> one number a position.

g is the gradient of the score (S, C, *space), a the activation (N, C, *space), `at` says which axes are which; the
result is (S, 1, *space), with a 1 in the place of the channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from onnxplain.graph.backward_builder import Backward


@dataclass(frozen=True)
class MapAxes:
    """channels: the axis that is reduced. space: those of the positions."""

    channels: int
    space: tuple[int, ...]


ActivationMap = Callable[[Backward, ir.Value, ir.Value, MapAxes], ir.Value]
"""`(op, g, a, axes) -> map`."""


def cam(op: Backward, g: ir.Value, a: ir.Value, at: MapAxes) -> ir.Value:
    """sum_c w_c a_c, w_c = sum of g_c over the positions. Zhou et al. 2016, eq. 2.

    Below a global average pool and a linear head that is the head's weight, and the mean of the map is the score less
    its bias. The compiler asks for such a head (`Finish.pooled_head`).
    """
    return _over_channels(op, _sum(op, g, at) * a, at)


def grad_cam(op: Backward, g: ir.Value, a: ir.Value, at: MapAxes) -> ir.Value:
    """ReLU(sum_c w_c a_c), w_c = mean of g_c over the positions. Selvaraju et al. 2017, eq. 1 and 2."""
    return _positive(op, _over_channels(op, _mean(op, g, at) * a, at))


def hires_cam(op: Backward, g: ir.Value, a: ir.Value, at: MapAxes) -> ir.Value:
    """sum_c g_c a_c, with its sign: where all above is linear it sums to the score less its bias. Draelos, Carin 2020.

    pytorch-grad-cam cuts the negative half off.
    """
    return _over_channels(op, g * a, at)


def x_grad_cam(op: Backward, g: ir.Value, a: ir.Value, at: MapAxes) -> ir.Value:
    """ReLU(sum_c w_c a_c), w_c = sum of g_c a_c / sum of a_c over the positions. Fu et al. 2020, eq. 8.

    A channel whose activations sum to 0 has w = sum of g_c a_c. For activations that are not negative it has none.
    """
    weights = _sum(op, g * a, at) / _nonzero(op, _sum(op, a, at))
    return _positive(op, _over_channels(op, weights * a, at))


def layer_cam(op: Backward, g: ir.Value, a: ir.Value, at: MapAxes) -> ir.Value:
    """ReLU(sum_c ReLU(g_c) a_c): a weight for each position of each channel. Jiang et al. 2021, eq. 6 and 7."""
    return _positive(op, _over_channels(op, _positive(op, g) * a, at))


def grad_cam_plus_plus(op: Backward, g: ir.Value, a: ir.Value, at: MapAxes) -> ir.Value:
    """ReLU(sum_c w_c a_c), w_c = sum of alpha_c ReLU(g_c), by the paper. Chattopadhyay et al. 2018, eq. 5 and 19.

    alpha = g^2 / (2 g^2 + (sum of a_c) g^3) for the score Y = exp(S) above Relus, whose derivatives are exp(S) times
    powers of g = dS/da. g^2 is divided out, so that small gradients lose no digits: alpha = 1 / (2 + (sum of a_c) g),
    asked for only where g > 0. The factor exp(S) of the whole map is left out.
    """
    positive = _positive(op, g)
    weights = _sum(op, positive * _alpha(op, positive, a, at), at)
    return _positive(op, _over_channels(op, weights * a, at))


def grad_cam_plus_plus_code(op: Backward, g: ir.Value, a: ir.Value, at: MapAxes) -> ir.Value:
    """The same as its authors' code has it: alpha_c is divided by its sum over the positions where g_c > 0."""
    positive = _positive(op, g)
    alpha = _alpha(op, positive, a, at)
    whole = _sum(op, op.Where(op.Greater(positive, 0.0), alpha, 0.0), at)
    weights = _sum(op, positive * alpha, at) / _nonzero(op, whole)
    return _positive(op, _over_channels(op, weights * a, at))


def _alpha(op: Backward, positive: ir.Value, a: ir.Value, at: MapAxes) -> ir.Value:
    return op.Div(1.0, _nonzero(op, 2.0 + _sum(op, a, at) * positive))  # type: ignore[no-any-return]


def _positive(op: Backward, x: ir.Value) -> ir.Value:
    return op.Max(x, 0.0)  # type: ignore[no-any-return]


def _nonzero(op: Backward, x: ir.Value) -> ir.Value:
    return op.Where(op.Equal(x, 0.0), 1.0, x)  # type: ignore[no-any-return]


def _mean(op: Backward, x: ir.Value, at: MapAxes) -> ir.Value:
    return op.ReduceMean(x, op.ints(at.space), keepdims=1)  # type: ignore[no-any-return]


def _sum(op: Backward, x: ir.Value, at: MapAxes) -> ir.Value:
    return op.ReduceSum(x, op.ints(at.space), keepdims=1)  # type: ignore[no-any-return]


def _over_channels(op: Backward, x: ir.Value, at: MapAxes) -> ir.Value:
    return op.ReduceSum(x, op.ints([at.channels]), keepdims=1)  # type: ignore[no-any-return]
