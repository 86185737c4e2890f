"""Tensors replaced and nodes taken out of a graph, in time that does not grow with the number of its outputs.

onnx-ir goes through all outputs for each of the two: where every tensor is kept, through the whole graph for each node.
"""

from __future__ import annotations

import onnx_ir as ir


class Replacement:
    """Replacements in one graph, which nobody else changes the outputs of meanwhile. Ends with `finish`."""

    def __init__(self, graph: ir.Graph):
        self.graph = graph
        self._places: dict[ir.Value, list[int]] = {}
        self._detached: list[ir.Node] = []
        for place, value in enumerate(graph.outputs):
            self._places.setdefault(value, []).append(place)

    def is_output(self, value: ir.Value) -> bool:
        """Whether this graph returns the tensor (a body that returns it does not count)."""
        return value in self._places

    def replace(self, value: ir.Value, other: ir.Value) -> None:
        """All that read a tensor read the other, the outputs of the graph included."""
        for place in (places := self._places.pop(value, [])):
            self.graph.outputs[place] = other
        if places:
            self._places.setdefault(other, []).extend(places)
        value.replace_all_uses_with(other)

    def detach(self, node: ir.Node) -> None:
        """A node whose outputs nobody reads reads nothing any more; `finish` takes it out."""
        if left := [value.name for value in node.outputs if value.uses() or value in self._places]:
            raise ValueError(f"{node.name} ({node.op_type}) cannot go: {left[0]} is read")
        for index in range(len(node.inputs)):
            node.replace_input_with(index, None)
        self._detached.append(node)

    def finish(self) -> None:
        """Take the detached nodes out of the graph."""
        self.graph.remove(self._detached)
        self._detached = []
