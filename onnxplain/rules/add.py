"""Sums of several tensors: how a residual Add shares relevance between its branches.

In proportion to the branches' values (`norm`) the shares are unbounded: 1 and -0.999 split R = 1 into 999 and -998.
The other policies cannot explode.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from onnxplain.errors import UnsupportedOp
from onnxplain.graph.backward import Backward
from onnxplain.graph.node import Node
from onnxplain.graph.walk import Gradient, Rule
from onnxplain.rules.linear import EPSILON
from onnxplain.rules.registry import rule

ABSOLUTE = "Binder et al. 2023, Shortcomings of Top-Down Randomization (sums by magnitude)"


def operands(op: Backward, node: Node) -> list[ir.Value]:
    """The summands, with the sign they have in the sum."""
    values = [op.real(value) for value in node.inputs if value is not None]
    if node.op_type == "Sub":
        subtracted = values[1]
        values[1] = op.once(("negated", subtracted), lambda: op.Neg(subtracted))
    return values


def _weighted(weigh: Callable[[Backward, ir.Value], ir.Value], epsilon: float) -> Rule:
    def apply(op: Backward, node: Node, r: ir.Value | list[Gradient]) -> list[Gradient]:
        assert isinstance(r, ir.Value)
        weights = [weigh(op, value) for value in operands(op, node)]
        total = op.once(("weights", node.y, epsilon), lambda: op.Add(_sum(op, weights), epsilon))
        s = r / total
        if op.absorbed is not None:
            op.absorb("stabiliser", s * epsilon, node)
        result: list[Gradient] = []
        for value, weight in zip(node.inputs, weights, strict=True):
            share = weight * s
            op.vanishing.add(share)
            if op.is_constant(value):
                op.absorb("bias", share, node)
            result.append(share)
        return result

    return apply


def _sum(op: Backward, values: list[ir.Value]) -> ir.Value:
    total = values[0]
    for value in values[1:]:
        total = op.Add(total, value)
    return total


@rule("add_abs", "sum", cite=ABSOLUTE)
def add_abs(epsilon: float = EPSILON) -> Rule:
    """R_i = |x_i| / sum_k |x_k| R. Bounded; what a constant summand takes is absorbed."""
    return _weighted(lambda op, v: v if op.is_nonnegative(v) else op.once(("abs", v), lambda: op.Abs(v)), epsilon)


@rule("add_positive", "sum", cite="Montavon et al. 2017, z+ for a sum")
def add_positive(epsilon: float = EPSILON) -> Rule:
    """R_i = x_i+ / sum_k x_k+ R. Bounded; where no summand is positive the relevance is lost to the stabiliser."""
    return _weighted(lambda op, v: v if op.is_nonnegative(v) else op.once(("plus", v), lambda: op.Max(v, 0.0)), epsilon)


@rule("add_half", "sum", cite="Achtibat et al. 2024, AttnLRP (uniform rule)")
def add_half() -> Rule:
    """The same for each of the n summands that are not constant: R / n."""

    def apply(op: Backward, node: Node, r: ir.Value | list[Gradient]) -> list[Gradient]:
        assert isinstance(r, ir.Value)
        free = [value for value in node.inputs if value is not None and not op.is_constant(value)]
        share = r if len(free) == 1 else r * (1.0 / len(free))
        return [None if value not in free else share for value in node.inputs]

    return apply


@rule("add_skip", "sum", cite="identity branch of a residual block takes all")
def add_skip() -> Rule:
    """All to the skip connection: the summand from which the other one was computed."""

    def apply(op: Backward, node: Node, r: ir.Value | list[Gradient]) -> list[Gradient]:
        assert isinstance(r, ir.Value)
        values = [value for value in node.inputs if value is not None and not op.is_constant(value)]
        skips = [v for v in values if any(other is not v and _depends(other, v) for other in values)]
        if len(values) > 1 and len(skips) != 1:
            raise UnsupportedOp(
                f"{node}: rule add_skip finds no identity branch (no summand is computed from the other one). "
                f"Use add_abs, or name the nodes that have one: --rule 'name:…=add_skip'."
            )
        chosen = skips[0] if skips else values[0]
        return [r if value is chosen else None for value in node.inputs]

    return apply


def _depends(value: ir.Value, on: ir.Value) -> bool:
    """Whether `value` is computed from `on`."""
    seen: set[ir.Value] = set()
    stack = [value]
    while stack:
        current = stack.pop()
        if current is on:
            return True
        producer = current.producer()
        if current in seen or producer is None:
            continue
        seen.add(current)
        stack.extend(v for v in producer.inputs if v is not None)
    return False
