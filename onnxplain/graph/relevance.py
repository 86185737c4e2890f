"""What travels backwards: a relevance with what is known of it, or the word that a rule knowingly gives nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

import onnx_ir as ir

from onnxplain.graph.node import Node


@dataclass(frozen=True)
class Activated:
    """Where a relevance comes from, if from an activation alone: that step, and what its output got."""

    node: Node
    relevance: ir.Value


@dataclass(frozen=True)
class Relevance:
    """The relevance (or gradient) of a forward tensor.

    zero_with: forward tensors of its own layout; wherever one of them is zero, it is zero as well. A linear rule
    multiplies by the activation, so its result is zero with that activation; a seed is zero with nothing. activated:
    for a layer whose rule looks at the activation above it.
    """

    value: ir.Value
    zero_with: frozenset[ir.Value] = frozenset()
    activated: Activated | None = None

    def but(self, value: ir.Value) -> Relevance:
        """Another value of which the same is known."""
        return Relevance(value, self.zero_with)

    def zero_also_with(self, *tensors: ir.Value) -> Relevance:
        """The same value, known to be zero with these tensors too."""
        return Relevance(self.value, self.zero_with | frozenset(tensors))


class Nothing(Enum):
    """A portion of zero that a rule decided on. A missing one (None) is an error where one is due."""

    NOTHING = "nothing"


NOTHING = Nothing.NOTHING
Portion = Relevance | Nothing | None
"""What a rule gives an input. None: the input takes none by nature (an index), or nobody asks for its relevance."""


def common(parts: Iterable[Relevance]) -> frozenset[ir.Value]:
    """What a sum of relevances is zero with: what all of them are."""
    sets = [part.zero_with for part in parts]
    return frozenset.intersection(*sets) if sets else frozenset()


def values(relevances: Sequence[Relevance | None]) -> list[ir.Value | None]:
    """The bare tensors."""
    return [None if relevance is None else relevance.value for relevance in relevances]
