"""Sums of several tensors: how a residual Add shares relevance between its branches.

In proportion to the branches' values (`norm`) the shares are unbounded: 1 and -0.999 split R = 1 into 1000 and -999.
The other policies cannot explode. A summand that no relevance can go on from (a constant, a mask made by a comparison)
gets none of it.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from onnxplain.errors import UnsupportedOp
from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.node import Node
from onnxplain.graph.relevance import NOTHING, Portion, Relevance
from onnxplain.rules.linear import EPSILON
from onnxplain.rules.registry import RuleFunction, rule
from onnxplain.vjp import lookup

ABSOLUTE = "Binder et al. 2023, Shortcomings of Top-Down Randomization (sums by magnitude)"


def summand(op: Backward, node: Node, index: int) -> ir.Value:
    """A summand with the sign it has in the sum; -inf of a mask counts as a huge number, whose share is all."""
    value = node.inputs[index]
    assert value is not None
    x = op.bounded(value)
    if index == 1 and not lookup(node).commutes:
        positive = x
        x = op.once(("negated", positive), lambda: op.Neg(positive))
    return x


def _weighted(weigh: Callable[[Backward, ir.Value], ir.Value], epsilon: float) -> RuleFunction:
    def apply(op: Backward, node: Node, r: Relevance) -> list[Portion]:
        given = [i for i, value in enumerate(node.inputs) if op.receives(value)]
        weights = {i: weigh(op, summand(op, node, i)) for i in given}
        total = op.once(("weights", node.y, epsilon), lambda: op.Add(_sum(op, list(weights.values())), epsilon))
        s = r.value / total
        if op.absorbed is not None:
            op.absorb("stabiliser", s * epsilon, node)
        result: list[Portion] = []
        for i, value in enumerate(node.inputs):
            if i not in weights:
                result.append(NOTHING)
            else:
                assert value is not None
                result.append(Relevance(weights[i] * s, frozenset([value])))
        return result

    return apply


def _sum(op: Backward, values: list[ir.Value]) -> ir.Value:
    total = values[0]
    for value in values[1:]:
        total = op.Add(total, value)
    return total


@rule("add_abs", "sum", "affine", cite=ABSOLUTE)
def add_abs(epsilon: float = EPSILON) -> RuleFunction:
    """R_i = |x_i| / sum_k |x_k| R over the summands that relevance can go on from. Bounded."""
    return _weighted(lambda op, v: v if op.is_nonnegative(v) else op.once(("abs", v), lambda: op.Abs(v)), epsilon)


@rule("add_positive", "sum", "affine", cite="Montavon et al. 2017, z+ for a sum")
def add_positive(epsilon: float = EPSILON) -> RuleFunction:
    """R_i = x_i+ / sum_k x_k+ R. Bounded; where no summand is positive the relevance is lost to the stabiliser."""
    return _weighted(lambda op, v: v if op.is_nonnegative(v) else op.once(("plus", v), lambda: op.Max(v, 0.0)), epsilon)


@rule("add_half", "sum", "affine", cite="Achtibat et al. 2024, AttnLRP (uniform rule)")
def add_half() -> RuleFunction:
    """The same for each of the n summands that relevance can go on from: R / n."""

    def apply(op: Backward, node: Node, r: Relevance) -> list[Portion]:
        given = [value for value in node.inputs if op.receives(value)]
        share = Relevance(r.value if len(given) == 1 else r.value * (1.0 / len(given)), r.zero_with)
        return [share if op.receives(value) else NOTHING for value in node.inputs]

    return apply


@rule("add_skip", "sum", "affine", cite="identity branch of a residual block takes all")
def add_skip() -> RuleFunction:
    """All to the skip connection: the summand from which the other one was computed."""

    def apply(op: Backward, node: Node, r: Relevance) -> list[Portion]:
        values = [value for value in node.inputs if op.receives(value) and value is not None]
        skips = [v for v in values if any(other is not v and _depends(other, v) for other in values)]
        if len(values) > 1 and len(skips) != 1:
            raise UnsupportedOp(
                f"{node}: rule add_skip finds no identity branch (no summand is computed from the other one). "
                f"Use add_abs, or name the nodes that have one: --rule 'name:…=add_skip'."
            )
        chosen = skips[0] if skips else values[0]
        return [r if value is chosen else NOTHING for value in node.inputs]

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
