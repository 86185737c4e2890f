"""Which tokens are patches of a picture, and where in it: proven on the graph, from a feature map to the tokens."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from onnxplain.compile.feature_maps import Layout
from onnxplain.graph import streams
from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.node import Node, dims, rank
from onnxplain.vjp import registered


@dataclass(frozen=True)
class PatchGrid:
    """Tokens of a tensor that are the positions of a feature map (N, C, rows, columns), row by row.

    axis: that of the tokens. first: the place of the first patch; before and behind may be others, such as a class
    token.
    """

    axis: int
    first: int
    rows: int
    columns: int

    def content(self) -> dict[str, int]:
        """For provenance."""
        return {"first": self.first, "rows": self.rows, "columns": self.columns}


def patch_grids(
    op: Backward, nodes: Sequence[Node], layout: Layout, maps: Collection[ir.Value]
) -> dict[ir.Value, PatchGrid]:
    """The grids of those of `maps` that are tokens (N, T, D) whose way from a feature map is known.

    A feature map whose positions are laid out along one axis is a row of patches. That axis is followed as a batch axis
    is, through everything in which rows along it do not mix, and through what joins other tokens to its ends; what is
    added to it (attention, beside which it passes by) leaves every token its place. Where it cannot be followed there
    is no grid.
    """
    found: dict[ir.Value, PatchGrid] = {}
    for node in nodes:
        grid = _flattened(op, node, layout) or _followed(node, found)
        if grid is not None:
            found[node.y] = grid
    return {value: grid for value in maps if (grid := found.get(value)) is not None and grid.axis == 1}


def _flattened(op: Backward, node: Node, layout: Layout) -> PatchGrid | None:
    """Of a feature map whose two axes of positions become one: only what keeps the order of elements can do that."""
    entry, x = registered(node), node.x
    if entry is None or entry.kind != "routing" or x not in layout.channels or rank(x) != 4:
        return None
    if node.y.shape is None or rank(node.y) != 3 or op.facts.axes.get(node.y, streams.UNPROVEN) != 0:
        return None
    channels = layout.channels[x]
    length = dims(x)[channels]
    rows, columns = (dims(x)[axis] for axis in (1, 2, 3) if axis != channels)
    if not isinstance(rows, int) or not isinstance(columns, int) or min(rows, columns) < 2:
        return None
    positions = rows * columns
    if dims(node.y)[1:] == ([length, positions] if channels == 1 else [positions, length]):
        return PatchGrid(2 if channels == 1 else 1, 0, rows, columns)
    return None


def _followed(node: Node, found: dict[ir.Value, PatchGrid]) -> PatchGrid | None:
    """Where the grid of one of the inputs lies in the output."""
    entry = registered(node)
    before = next((value for value in node.inputs if value is not None and value in found), None)
    if before is None or entry is None or entry.streams is None or node.y.shape is None:
        return None
    grid, length = found[before], dims(before)[found[before].axis]
    axes = [found[v].axis if v is before else streams.CONSTANT for v in node.inputs]
    moved = entry.streams(node, axes)
    if isinstance(moved, int) and 0 <= moved < rank(node.y) and dims(node.y)[moved] == length:
        return replace(grid, axis=moved)
    return _joined(node, before, grid) if entry.kind == "routing" else None


def _joined(node: Node, x: ir.Value, grid: PatchGrid) -> PatchGrid | None:
    """Of a node whose inputs lie behind each other along the axis of the tokens: their lengths add up to its own."""
    parts = [value for value in node.inputs if value is not None and value.shape is not None]
    if len(parts) < 2 or len(parts) != len(node.inputs) or any(rank(v) != rank(node.y) for v in parts):
        return None
    lengths = [dims(value)[grid.axis] for value in parts]
    known = [length for length in lengths if isinstance(length, int)]
    if len(known) != len(lengths) or sum(known) != dims(node.y)[grid.axis]:
        return None
    return replace(grid, first=grid.first + sum(known[: parts.index(x)]))
