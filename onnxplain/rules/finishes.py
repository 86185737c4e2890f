"""Where a relevance pass ends: arrived relevance -> output.

A finish gets what every pass brought to a tensor x and gives the output; for integer inputs it says what a token's
relevance is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.node import rank


@dataclass(frozen=True)
class Finish:
    """combine: relevances of the passes and x -> output, elementwise. token: the same, summed over an embedding."""

    name: str
    combine: Callable[[Backward, Sequence[ir.Value], ir.Value], ir.Value]
    token: Callable[[Backward, Sequence[ir.Value], ir.Value], ir.Value]


def _token_axes(op: Backward, embedding: ir.Value) -> ir.Value:
    return op.ints([rank(embedding) - 1])


def _finish(
    name: str,
    combine: Callable[[Backward, Sequence[ir.Value], ir.Value], ir.Value],
    before: Callable[[Backward, ir.Value, ir.Value], ir.Value] = lambda op, r, x: r,
    after: Callable[[Backward, ir.Value], ir.Value] = lambda op, r: r,
) -> Finish:
    def token(op: Backward, rs: Sequence[ir.Value], x: ir.Value) -> ir.Value:
        summed = op.ReduceSum(before(op, rs[0], x), _token_axes(op, x), keepdims=0)
        return after(op, summed)

    return Finish(name, combine, token)


def _normalised_difference(op: Backward, rs: Sequence[ir.Value], x: ir.Value) -> ir.Value:
    """clip+(R / sum R - R_dual / sum R_dual) divided by its maximum, per stream."""
    stream = op.facts.axes.get(x, 0)
    axes = op.ints([axis for axis in range(rank(x)) if axis != max(stream, 0)])
    shares = []
    for r in rs:
        total = op.ReduceSum(r, axes, keepdims=1)
        shares.append(op.Div(r, op.Where(op.Equal(total, 0.0), 1.0, total)))
    clipped = op.Max(op.Sub(*shares), 0.0)
    top = op.ReduceMax(clipped, axes, keepdims=1)
    return op.Div(clipped, op.Where(op.Equal(top, 0.0), 1.0, top))  # type: ignore[no-any-return]


AS_IT_IS = _finish("as it is", lambda op, rs, x: rs[0])
GRADIENT = _finish("as it is", lambda op, rs, x: rs[0], before=lambda op, r, x: r * op.real(x))
ABSOLUTE = _finish("absolute", lambda op, rs, x: op.Abs(rs[0]), before=lambda op, r, x: op.Abs(r))
SQUARE = _finish("square", lambda op, rs, x: rs[0] * rs[0], before=lambda op, r, x: r * r)
TIMES_INPUT = _finish("times input", lambda op, rs, x: rs[0] * op.real(x), before=lambda op, r, x: r * op.real(x))
POSITIVE = _finish("positive", lambda op, rs, x: op.Max(rs[0], 0.0), after=lambda op, r: op.Max(r, 0.0))
NORMALISED_DIFFERENCE = Finish("normalised difference", _normalised_difference, _normalised_difference)

FINISHES: dict[str, Finish] = {
    "gradient": GRADIENT,
    "absolute": ABSOLUTE,
    "square": SQUARE,
    "times_input": TIMES_INPUT,
    "as_it_is": AS_IT_IS,
    "positive": POSITIVE,
    "normalised_difference": NORMALISED_DIFFERENCE,
}
