"""RNN: one activation of what comes in."""

from __future__ import annotations

import onnx_ir as ir

from onnxplain.graph import streams
from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.builder import Builder
from onnxplain.graph.node import Node
from onnxplain.graph.walk import Gradient
from onnxplain.vjp.recurrent.direction import (
    Direction,
    DirectionGradients,
    Values,
    scan_back,
    slope,
)
from onnxplain.vjp.recurrent.through_time import through_time
from onnxplain.vjp.registry import case, vjp


def rnn_cell(op: Backward, node: Node, d: Direction) -> DirectionGradients:
    """h_t = f(x W^T + h_{t-1} R^T + b)."""

    def step(inner: Builder, g: ir.Value, states: Values, factors: Values) -> tuple[Values, Values]:
        gate = inner.Mul(g, factors[0])
        return [inner.MatMul(gate, d.r)], [gate]

    (h,), (gates,) = scan_back(op, d, [d.g_h], [slope(op, d.activations[0], d.h)], step)
    return DirectionGradients(gates, h, lambda: [(gates, d.before)])


@vjp(
    "RNN",
    kind="other",
    silent=(4,),
    all_outputs=True,
    streams=streams.recurrent,
    cases=[
        case(x=(4, 2, 3), w=(1, 5, 3), r=(1, 5, 5), b=(1, 10), hidden_size=5, sample="unit"),
        case(
            x=(4, 2, 3),
            w=(2, 5, 3),
            r=(2, 5, 5),
            b=None,
            lengths=None,
            h=(2, 2, 5),
            hidden_size=5,
            direction="bidirectional",
            activations=["Tanh", "Sigmoid"],
            sample="unit",
        ),
    ],
)
def rnn(op: Backward, node: Node, gs: list[Gradient]) -> list[Gradient]:
    """Back-propagation through time (Werbos 1990); hidden states come from the forward node's own first output."""
    return through_time(op, node, gs, rnn_cell, ["Tanh"])
