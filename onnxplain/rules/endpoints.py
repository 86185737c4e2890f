"""Where a relevance pass begins and ends: seed -> initial relevance, arrived relevance -> output.

A start gives one initial relevance per pass over the graph (most methods need one). A finish gets what every pass
brought to a tensor x and gives the output; for integer inputs it says what a token's relevance is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxplain.errors import UnsupportedModel
from onnxplain.graph.backward import Backward
from onnxplain.graph.node import dims, rank
from onnxplain.graph.relevance import Relevance

Initial = Callable[[Backward, ir.Value, ir.Value], list[Relevance]]
"""`(op, seed (S, …), explained tensor y) -> [initial relevance (S, …) of each pass]`."""


@dataclass(frozen=True)
class Start:
    """initial: what each pass begins with. spreads: units get relevance however small their value is.

    Where it spreads, no rule may divide by these values: a logit near 0 would take over the map.
    """

    initial: Initial
    spreads: bool = False


@dataclass(frozen=True)
class Finish:
    """combine: relevances of the passes and x -> output, elementwise. token: the same, summed over an embedding."""

    name: str
    combine: Callable[[Backward, Sequence[ir.Value], ir.Value], ir.Value]
    token: Callable[[Backward, Sequence[ir.Value], ir.Value], ir.Value]


def seed_itself(op: Backward, seed: ir.Value, y: ir.Value) -> list[Relevance]:
    """Gradient family: the vector of the vector-Jacobian product."""
    return [Relevance(seed)]


def seed_times_output(op: Backward, seed: ir.Value, y: ir.Value) -> list[Relevance]:
    """Relevance family: a one-hot seed redistributes that output."""
    return [Relevance(seed * op.real(y), frozenset([y]))]


def seed_times_magnitude(op: Backward, seed: ir.Value, y: ir.Value) -> list[Relevance]:
    """CLRP2: |y| on the target.

    The paper's score is positive (its section 3.1 draws classes so that it is), its code starts from |y|: with a
    negative logit itself, max(0, R - R_dual) would show what speaks for the other side.
    """
    return [Relevance(seed * op.Abs(op.real(y)), frozenset([y]))]


def against_others(op: Backward, seed: ir.Value, y: ir.Value) -> list[Relevance]:
    """CLRP1: seed |y| - (1 - seed) (sum seed |y|) / (n - 1): the target's score, minus the same spread over the others.

    The sum is over the n classes; with several positions (N, classes, H, W) each has its own. |y|: as in CLRP2.
    """
    axis = class_axis(y, "clrp1")
    relevance = seed * op.Abs(op.real(y))
    total = op.ReduceSum(relevance, op.ints([axis]), keepdims=1)
    count = dims(y)[axis]
    if isinstance(count, int):
        share = total / float(count - 1)
    else:
        rest = op.Sub(op.size(y, axis), op.ints([1]))
        share = total / op.Cast(rest, to=int(seed.dtype or ir.DataType.FLOAT))
    return [Relevance(relevance - (1.0 - seed) * share)]


def magnitude_and_others(op: Backward, seed: ir.Value, y: ir.Value) -> list[Relevance]:
    """CLRP1 as its code has it: |y| on the target, and in a second pass |y| on every other class."""
    size = op.Abs(op.real(y))
    asked = op.ReduceMax(seed, op.ints([class_axis(y, "clrp1")]), keepdims=1)  # at positions that have a target
    return [Relevance(seed * size, frozenset([y])), Relevance((asked - seed) * size, frozenset([y]))]


def class_axis(y: ir.Value, method: str) -> int:
    """The axis of the classes: the only one behind the batch longer than 1, else axis 1 (the last for rank 3)."""
    shape = dims(y)
    known = [axis for axis in range(1, len(shape)) if isinstance(shape[axis], int) and shape[axis] != 1]
    if len(known) == 1:
        return known[0]
    chosen = {2: 1, 3: 2}.get(len(shape), 1)
    if len(shape) < 2 or shape[chosen] == 1:
        raise UnsupportedModel(
            f"{method} contrasts a class with the others, and {y.name} of shape {shape} has one class only. Use "
            f"clrp2, or name a tensor with several classes by --explain."
        )
    return chosen


def magnitude_twice(op: Backward, seed: ir.Value, y: ir.Value) -> list[Relevance]:
    """CLRP2 as its code has it: |y| on the target, in two passes of which the second negates the last weights."""
    size = Relevance(seed * op.Abs(op.real(y)), frozenset([y]))
    return [size, size]


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

STARTS: dict[str, Start] = {
    "seed": Start(seed_itself),
    "seed_times_output": Start(seed_times_output),
    "seed_times_magnitude": Start(seed_times_magnitude),
    "against_others": Start(against_others, spreads=True),
    "magnitude_and_others": Start(magnitude_and_others),
    "magnitude_twice": Start(magnitude_twice),
}
FINISHES: dict[str, Finish] = {
    "gradient": GRADIENT,
    "absolute": ABSOLUTE,
    "square": SQUARE,
    "times_input": TIMES_INPUT,
    "as_it_is": AS_IT_IS,
    "positive": POSITIVE,
    "normalised_difference": NORMALISED_DIFFERENCE,
}
