"""Ops that have no derivative that says anything: they block what goes backwards, and their batch axis is known."""

from __future__ import annotations

from dataclasses import dataclass

from onnxplain.graph.node import Node
from onnxplain.graph.streams import AxisRule


@dataclass(frozen=True)
class Underived:
    """Of one op type. why: in a sentence that names a way out."""

    domain: str
    streams: AxisRule
    why: str


UNDERIVED: dict[str, Underived] = {}


def without_derivative(*op_types: str, domain: str, streams: AxisRule, why: str) -> None:
    """Declare that ops have no derivative, in the words of `Underived`."""
    for op_type in op_types:
        UNDERIVED[op_type] = Underived(domain, streams, why)


def underived(node: Node) -> Underived | None:
    """What is declared of a node's op; None where nothing is."""
    entry = UNDERIVED.get(node.op_type)
    return entry if entry is not None and entry.domain == node.domain else None
