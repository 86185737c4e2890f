"""GRU: an update gate, a reset gate and a candidate."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxplain.graph import streams
from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.builder import Builder
from onnxplain.graph.node import Node, dims
from onnxplain.graph.walk import Gradient
from onnxplain.vjp.recurrent.direction import (
    Direction,
    DirectionGradients,
    Values,
    activate,
    added,
    piece,
    product,
    scan_back,
    slope,
)
from onnxplain.vjp.recurrent.through_time import through_time
from onnxplain.vjp.registry import case, vjp


def gru_cell(op: Backward, node: Node, d: Direction) -> DirectionGradients:
    """h_t = (1 - z) n + z h_{t-1}; z and r gates, n the candidate, which sees h_{t-1} through r.

    n = g(x W^T + (r h) R^T + b), or with linear_before_reset n = g(x W^T + b_w + r (h R^T + b_r)).
    """
    f, tanh = d.activations
    r_gates, r_n = op.Slice(d.r, [0], [-_hidden(d)], [0]), piece(op, d.r, 2, 3, 0)
    forward = added(op, product(op, d.x, d.w), d.bias_w)
    from_x, from_n = _cut(op, forward)
    bias, bias_n = (None, None) if d.bias_r is None else _cut(op, d.bias_r)
    both = activate(op, f, added(op, from_x, product(op, d.before, r_gates), bias))
    z, r = op.Split(both, axis=-1, num_outputs=2, outputs=2)
    linear = node.attr("linear_before_reset", 0)
    if linear:
        inside = added(op, product(op, d.before, r_n), bias_n)
        n = activate(op, tanh, added(op, from_n, r * inside))
    else:
        n = activate(op, tanh, added(op, from_n, product(op, r * d.before, r_n), bias_n))
    to_z, to_n = (d.before - n) * slope(op, f, z), (1.0 - z) * slope(op, tanh, n)
    if linear:
        to_r = to_n * inside * slope(op, f, r)
        factors = [op.Concat(to_z, to_r, to_n * r, axis=-1), z]

        def step(inner: Builder, g: ir.Value, states: Values, factors: Values) -> tuple[Values, Values]:
            gates = inner.Mul(inner.Concat(g, g, g, axis=-1), factors[0])
            return [inner.Add(inner.MatMul(gates, d.r), inner.Mul(g, factors[1]))], [g]

        (h,), (g,) = scan_back(op, d, [d.g_h], factors, step)
        gates = op.Concat(g * to_z, g * to_r, g * to_n, axis=-1)
        return DirectionGradients(gates, h, lambda: [(op.Mul(op.Concat(g, g, g, axis=-1), factors[0]), d.before)])

    def step_inside(inner: Builder, g: ir.Value, states: Values, factors: Values) -> tuple[Values, Values]:
        to_z, to_n, to_r, z, r = factors
        candidate = inner.Mul(g, to_n)
        passed = inner.MatMul(candidate, r_n)
        gates = inner.Concat(inner.Mul(g, to_z), inner.Mul(passed, to_r), axis=-1)
        h = inner.Add(inner.MatMul(gates, r_gates), inner.Add(inner.Mul(passed, r), inner.Mul(g, z)))
        return [h], [inner.Concat(gates, candidate, axis=-1)]

    factors = [to_z, to_n, d.before * slope(op, f, r), z, r]
    (h,), (gates,) = scan_back(op, d, [d.g_h], factors, step_inside)

    def pairs() -> list[tuple[ir.Value, ir.Value]]:
        first, candidate = _cut(op, gates)
        return [(first, d.before), (candidate, op.Mul(r, d.before))]

    return DirectionGradients(gates, h, pairs)


def _hidden(d: Direction) -> int:
    size = dims(d.r)[-1]
    assert isinstance(size, int)
    return size


def _cut(op: Backward, value: ir.Value) -> tuple[ir.Value, ir.Value]:
    """The last of three equal parts of the last axis taken off."""
    whole = dims(value)[-1]
    assert isinstance(whole, int)
    at = whole // 3 * 2
    first, last = op.Split(value, [at, whole - at], axis=-1, outputs=2)
    return first, last


@vjp(
    "GRU",
    kind="other",
    silent=(4,),
    all_outputs=True,
    streams=streams.recurrent,
    cases=[
        case(x=(4, 2, 3), w=(1, 15, 3), r=(1, 15, 5), b=(1, 30), hidden_size=5, sample="unit"),
        case(
            x=(4, 2, 3),
            w=(1, 15, 3),
            r=(1, 15, 5),
            b=(1, 30),
            lengths=None,
            h=(1, 2, 5),
            hidden_size=5,
            linear_before_reset=1,
            sample="unit",
        ),
        case(
            x=(4, 2, 3),
            w=(1, 15, 3),
            r=(1, 15, 5),
            b=None,
            lengths=np.array([4, 4], np.int32),
            hidden_size=5,
            direction="reverse",
            sample="unit",
        ),
        case(
            x=(3, 1, 3),
            w=(2, 15, 3),
            r=(2, 15, 5),
            b=(2, 30),
            lengths=None,
            h=(2, 1, 5),
            hidden_size=5,
            direction="bidirectional",
            linear_before_reset=1,
            outputs=2,
            sample="unit",
        ),
    ],
)
def gru(op: Backward, node: Node, gs: list[Gradient]) -> list[Gradient]:
    """Back-propagation through time (Werbos 1990); hidden states come from the forward node's own first output."""
    return through_time(op, node, gs, gru_cell, ["Sigmoid", "Tanh"])
