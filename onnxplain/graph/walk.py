"""The backward walk: nodes in reverse, one function each, sums at fan-out, nothing emitted for dead branches."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol

import onnx_ir as ir

from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.node import Node, is_float
from onnxplain.graph.relevance import NOTHING, Portion, Relevance
from onnxplain.interrupt import check_interrupt

Gradient = ir.Value | None
Derivative = Callable[[Backward, Node, Any], Sequence[Gradient]]
"""`(op, node, g) -> one gradient per input or None`, on bare tensors. With `all_outputs` g is a list."""
Arrived = Relevance | list[Relevance | None]
Rule = Callable[[Backward, Node, Any], Sequence[Portion]]
"""`(op, node, r) -> one portion per input`. With `all_outputs` r is a list, one relevance or None per output."""
Passes = Callable[[Node, int], bool]
"""May relevance flow from a node back into its input at that index?"""


def inputs_of(node: Node) -> Iterator[tuple[int, ir.Value]]:
    """Everything a node reads with its index: its inputs, then what its bodies (If, Loop, Scan) take from outside."""
    for index, value in enumerate((*node.inputs, *node.captured)):
        if value is not None:
            yield index, value


def dependent_values(nodes: Sequence[Node], on: Collection[ir.Value]) -> set[ir.Value]:
    """Tensors that are computed from `on`, in whatever way and of whatever type."""
    found = set(on)
    for node in nodes:
        if any(value in found for _, value in inputs_of(node)):
            found.update(node.outputs)
    return found


def active_values(
    nodes: Sequence[Node],
    wanted: Collection[ir.Value],
    passes: Passes,
    moves: Callable[[Node, ir.Value, ir.Value], bool] = lambda node, value, output: True,
) -> set[ir.Value]:
    """Tensors through which relevance can reach `wanted`. moves: may an output change with an input's values?"""
    active = set(wanted)
    for node in nodes:
        for i, value in inputs_of(node):
            if value in active and passes(node, i):
                active.update(output for output in node.outputs if moves(node, value, output))
    return active


def needed_nodes(
    nodes: Sequence[Node],
    explained: Collection[ir.Value],
    active: Collection[ir.Value],
    passes: Passes = lambda node, index: True,
) -> list[Node]:
    """The nodes on a path from `explained` back to active tensors, last first."""
    reached, path = set(explained), []
    for node in reversed(nodes):
        if not any(value in reached for value in node.outputs):
            continue
        onwards = [value for i, value in inputs_of(node) if value in active and passes(node, i)]
        if onwards:
            path.append(node)
            reached.update(onwards)
    return path


def backward(
    op: Backward,
    path: Sequence[Node],
    start: Mapping[ir.Value, Relevance],
    active: Collection[ir.Value],
    rule_of: Callable[[Node], Rule],
    settings: Callable[[Node], Settings],
    passes: Passes = lambda node, index: True,
    done: Callable[[Node, list[Relevance | None], list[Relevance | None]], None] | None = None,
) -> dict[ir.Value, Relevance]:
    """Carry `start` (forward tensor -> its relevance) down to every active tensor.

    path: `needed_nodes`. passes: as there; an active input that it lets through must get a portion, or an error names
    it. done(node, relevances of the outputs, relevances of the inputs) is told of each step. Returns forward tensor ->
    relevance; tensors to which every rule knowingly gave nothing are left out.
    """
    arrived: dict[ir.Value, list[Relevance]] = {value: [relevance] for value, relevance in start.items()}
    result: dict[ir.Value, Relevance] = {}

    def collect(value: ir.Value) -> Relevance | None:
        if value not in result and value in arrived:
            result[value] = op.total(arrived.pop(value))
        return result.get(value)

    for node in path:
        check_interrupt()
        with op.scope(node):
            rs = [collect(value) for value in node.outputs]
            if all(r is None for r in rs):
                continue
            entry = settings(node)
            given: Arrived = rs
            if not entry.all_outputs:
                if rs[0] is None or any(r is not None for r in rs[1:]):
                    raise entry.unsupported(node)
                given = rs[0]
            portions = list(rule_of(node)(op, node, given))
            if len(portions) != len(node.inputs):
                raise AssertionError(f"{node}: {len(portions)} relevances for {len(node.inputs)} inputs")
            portions += [None] * len(node.captured)
            sent: list[Relevance | None] = [None] * len(portions)
            for i, value in inputs_of(node):
                portion = portions[i]
                asked = value in active and passes(node, i)
                if portion is NOTHING or not (asked or (isinstance(portion, Relevance) and op.books(value))):
                    continue
                if not isinstance(portion, Relevance):
                    raise entry.forgets(node, i)
                r = portion.value
                if entry.broadcasts:
                    r = op.unbroadcast(r, value)
                elif is_float(value) or r.shape is None:
                    op.reshaped(r, op.stream_shape(value))
                if r is not portion.value:
                    portion = Relevance(r, portion.zero_with & {value})  # others have other shapes now
                sent[i] = portion
                if asked:
                    arrived.setdefault(value, []).append(portion)
            if done is not None:
                done(node, rs, sent[: len(node.inputs)])
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

    def unsupported(self, node: Node) -> Exception:
        """The error for relevance arriving at an output the derivative does not know."""

    def forgets(self, node: Node, index: int) -> Exception:
        """The error for an input that should get a portion and got none."""
