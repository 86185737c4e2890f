"""Where a relevance pass begins: seed -> initial relevance, one per pass over the graph (most methods need one)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from onnxplain.errors import UnsupportedModel
from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.node import dims
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


def seed_itself(op: Backward, seed: ir.Value, y: ir.Value) -> list[Relevance]:
    """Gradient family: the vector of the vector-Jacobian product."""
    return [Relevance(seed)]


def seed_twice(op: Backward, seed: ir.Value, y: ir.Value) -> list[Relevance]:
    """The same in two passes, of which one is by rules."""
    return [Relevance(seed), Relevance(seed)]


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


STARTS: dict[str, Start] = {
    "seed": Start(seed_itself),
    "seed_twice": Start(seed_twice),
    "seed_times_output": Start(seed_times_output),
    "seed_times_magnitude": Start(seed_times_magnitude),
    "against_others": Start(against_others, spreads=True),
    "magnitude_and_others": Start(magnitude_and_others),
    "magnitude_twice": Start(magnitude_twice),
}
