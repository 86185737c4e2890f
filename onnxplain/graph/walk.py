"""The backward walk: nodes in reverse, one function each, sums at fan-out, nothing emitted for dead branches."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

import onnx_ir as ir

from onnxplain.graph.backward import Backward
from onnxplain.graph.node import Node, is_float

Gradient = ir.Value | None
Rule = Callable[[Backward, Node, Any], Sequence[Gradient]]
"""`(op, node, g) -> one relevance per input or None`; None: nothing flows there. With `all_outputs` g is a list."""


def active_values(
    nodes: Sequence[Node], wanted: Collection[ir.Value], passes: Callable[[Node, int], bool]
) -> set[ir.Value]:
    """Tensors through which relevance can reach `wanted`. passes(node, i): may it flow back into input i?"""
    active = set(wanted)
    for node in nodes:
        if any(value in active and passes(node, i) for i, value in enumerate(node.inputs) if value is not None):
            active.update(node.outputs)
    return active


def needed_nodes(
    nodes: Sequence[Node],
    explained: Collection[ir.Value],
    active: Collection[ir.Value],
    passes: Callable[[Node, int], bool] = lambda node, index: True,
) -> list[Node]:
    """The nodes on a path from `explained` back to active tensors, last first. passes: as in `active_values`."""
    reached, path = set(explained), []
    for node in reversed(nodes):
        if not any(value in reached for value in node.outputs):
            continue
        onwards = [v for i, v in enumerate(node.inputs) if v is not None and v in active and passes(node, i)]
        if onwards:
            path.append(node)
            reached.update(onwards)
    return path


def backward(
    op: Backward,
    path: Sequence[Node],
    start: Mapping[ir.Value, ir.Value],
    active: Collection[ir.Value],
    rule_of: Callable[[Node], Rule],
    settings: Callable[[Node], Settings],
    done: Callable[[Node, list[Gradient], list[Gradient]], None] | None = None,
) -> dict[ir.Value, ir.Value]:
    """Carry `start` (forward tensor -> its relevance) down to every active tensor.

    path: `needed_nodes`. done(node, relevances of the outputs, relevances of the inputs) is told of each step.
    Returns forward tensor -> relevance.
    """
    arrived: dict[ir.Value, list[ir.Value]] = {value: [relevance] for value, relevance in start.items()}
    result: dict[ir.Value, ir.Value] = {}

    def collect(value: ir.Value) -> Gradient:
        if value not in result and value in arrived:
            result[value] = op.total(arrived.pop(value))
        return result.get(value)

    for node in path:
        with op.scope(node):
            gs = [collect(value) for value in node.outputs]
            if all(g is None for g in gs):
                continue
            how = settings(node)
            given: ir.Value | list[Gradient] = gs
            if not how.all_outputs:
                if gs[0] is None or any(g is not None for g in gs[1:]):
                    raise how.unsupported(node)
                given = gs[0]
            relevances = list(rule_of(node)(op, node, given))
            if len(relevances) != len(node.inputs):
                raise AssertionError(f"{node}: {len(relevances)} relevances for {len(node.inputs)} inputs")
            for i, (value, r) in enumerate(zip(node.inputs, relevances, strict=True)):
                if value is None or r is None or value not in active:
                    relevances[i] = None
                    continue
                if how.broadcasts:
                    r = op.unbroadcast(r, value)
                elif is_float(value) or r.shape is None:
                    op.reshaped(r, op.stream_shape(value))
                if (
                    how.routes
                    and node.attr("reduction", "none") == "none"
                    and all(g in op.vanishing for g in gs if g is not None)
                ):
                    op.vanishing.add(r)
                relevances[i] = r
                arrived.setdefault(value, []).append(r)
            if done is not None:
                done(node, gs, relevances)
    for value in list(arrived):
        collect(value)
    return result


def prune(graph: ir.Graph, first: int) -> None:
    """Remove nodes emitted after the first `first` ones whose results nobody uses, and constants left over."""
    outputs = set(graph.outputs)
    for node in reversed(list(graph)[first:]):
        if all(not value.uses() and value not in outputs for value in node.outputs):
            graph.remove(node, safe=True)
    inputs = set(graph.inputs)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and value not in outputs and value not in inputs:
            del graph.initializers[name]


class Settings(Protocol):
    """How the walk treats a node (`vjp.Op` is one)."""

    @property
    def all_outputs(self) -> bool:
        """The rule takes a list, one gradient or None per output."""

    @property
    def broadcasts(self) -> bool:
        """Inputs may have been stretched; what comes back is summed to their shapes."""

    @property
    def routes(self) -> bool:
        """Every output is a copy of an input: relevance follows the value it belongs to."""

    def unsupported(self, node: Node) -> Exception:
        """The error for relevance arriving at an output the derivative does not know."""
