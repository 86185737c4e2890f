"""LSTM: a cell state behind input, output and forget gates."""

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
    product,
    scan_back,
    slope,
    zeros_like,
)
from onnxplain.vjp.recurrent.through_time import through_time
from onnxplain.vjp.registry import case, vjp


def lstm_cell(op: Backward, node: Node, d: Direction) -> DirectionGradients:
    """c_t = f c_{t-1} + i n; h_t = o tanh(c_t). Gates i, o, f see c through the peepholes, o the new one.

    The cell states are no output for every step: a first Scan computes them again.
    """
    sigmoid, tanh, squash = d.activations
    coupled = node.attr("input_forget", 0)
    raw = added(op, product(op, d.x, d.w), product(op, d.before, d.r), d.bias_w, d.bias_r)
    to_i, to_o, to_f, to_n = op.Split(raw, axis=-1, num_outputs=4, outputs=4)
    n = activate(op, tanh, to_n)
    peep = d.peepholes
    assert d.start_c is not None

    def cells(inner: Builder, states: Values, entries: Values) -> tuple[Values, Values]:
        (c,), (i, f, n) = states, entries
        i = activate(inner, sigmoid, inner.Add(i, inner.Mul(c, peep[0])) if peep else i)
        f = activate(inner, sigmoid, inner.Add(f, inner.Mul(c, peep[2])) if peep else f)
        kept = inner.Sub(1.0, i) if coupled else f
        c = inner.reshaped(inner.Add(inner.Mul(kept, c), inner.Mul(i, n)), dims(c))
        return [c], [c]

    _, (c,) = op.scan([d.start_c], [to_i, to_f, n], cells)
    before = op.reshaped(op.Concat(op.Unsqueeze(d.start_c, [0]), op.Slice(c, [0], [-1], [0]), axis=0), dims(c))
    if peep is not None:
        to_i, to_o, to_f = to_i + before * peep[0], to_o + c * peep[1], to_f + before * peep[2]
    i, o = activate(op, sigmoid, to_i), activate(op, sigmoid, to_o)
    squashed = activate(op, squash, c)
    di = (n - before if coupled else n) * slope(op, sigmoid, i)
    do = squashed * slope(op, sigmoid, o)
    dn = i * slope(op, tanh, n)
    if coupled:
        f, df = 1.0 - i, zeros_like(op, i)
    else:
        f = activate(op, sigmoid, to_f)
        df = before * slope(op, sigmoid, f)

    def step(inner: Builder, g: ir.Value, states: Values, factors: Values) -> tuple[Values, Values]:
        to_c, do, others, f = factors
        out = inner.Mul(g, do)
        c = inner.Add(states[0], inner.Mul(g, to_c))
        c = inner.Add(c, inner.Mul(out, peep[1])) if peep else c
        i_gate, f_gate, n_gate = inner.Split(
            inner.Mul(inner.Concat(c, c, c, axis=-1), others), axis=-1, num_outputs=3, outputs=3
        )
        gates = inner.Concat(i_gate, out, f_gate, n_gate, axis=-1)
        earlier = inner.Mul(c, f)
        if peep:
            earlier = inner.Add(earlier, inner.Add(inner.Mul(i_gate, peep[0]), inner.Mul(f_gate, peep[2])))
        return [inner.MatMul(gates, d.r), earlier], [gates]

    g_c = d.g_c if d.g_c is not None else zeros_like(op, d.g_h)
    factors = [o * slope(op, squash, squashed), do, op.Concat(di, df, dn, axis=-1), f]
    (h, c_start), (gates,) = scan_back(op, d, [d.g_h, g_c], factors, step)
    return DirectionGradients(gates, h, lambda: [(gates, d.before)], c_start, (before, c))


@vjp(
    "LSTM",
    kind="other",
    silent=(4,),
    all_outputs=True,
    streams=streams.recurrent,
    cases=[
        case(x=(4, 2, 3), w=(1, 20, 3), r=(1, 20, 5), b=(1, 40), hidden_size=5, sample="unit"),
        case(
            x=(4, 2, 3),
            w=(1, 20, 3),
            r=(1, 20, 5),
            b=None,
            lengths=None,
            h=(1, 2, 5),
            c=(1, 2, 5),
            hidden_size=5,
            direction="reverse",
            sample="unit",
        ),
        case(
            x=(3, 2, 3),
            w=(2, 20, 3),
            r=(2, 20, 5),
            b=(2, 40),
            lengths=None,
            h=(2, 2, 5),
            c=(2, 2, 5),
            p=(2, 15),
            hidden_size=5,
            direction="bidirectional",
            outputs=3,
            sample="unit",
        ),
        case(
            x=(3, 1, 3),
            w=(1, 20, 3),
            r=(1, 20, 5),
            b=(1, 40),
            lengths=None,
            h=None,
            c=None,
            p=(1, 15),
            hidden_size=5,
            input_forget=1,
            sample="unit",
        ),
        case(
            x=np.linspace(-1, 1, 18).reshape(2, 3, 3),
            w=np.linspace(-1, 1, 120).reshape(2, 20, 3),
            r=(2, 20, 5),
            b=(2, 40),
            lengths=None,
            h=(2, 2, 5),
            c=None,
            p=(2, 15),
            hidden_size=5,
            direction="bidirectional",
            layout=1,
            sample="unit",
        ),
    ],
)
def lstm(op: Backward, node: Node, gs: list[Gradient]) -> list[Gradient]:
    """Back-propagation through time (Werbos 1990); hidden states come from the forward node's own first output."""
    return through_time(op, node, gs, lstm_cell, ["Sigmoid", "Tanh", "Tanh"])
