"""Which axis carries the batch behind ops that pick or write values by index."""

from __future__ import annotations

from collections.abc import Sequence

from onnxplain.graph.node import Node, dims, rank
from onnxplain.graph.streams import CONSTANT, UNPROVEN, Axis


def gather(node: Node, axes: Sequence[Axis]) -> Axis:
    """Table look-up (indices carry the batch) or selection along another axis (data carry it)."""
    data, indices = axes[:2]
    axis: int = node.attr("axis", 0) % rank(node.x)
    index = node.input(1)
    assert index is not None
    if data == CONSTANT and indices >= 0:
        return axis + indices
    if indices == CONSTANT and data >= 0 and data != axis:
        return data if data < axis else data - 1 + rank(index)
    return UNPROVEN


def gather_nd(node: Node, axes: Sequence[Axis]) -> Axis:
    """A batch dimension of both, or an axis of the data behind those that the indices name."""
    data, indices = axes[:2]
    index = node.input(1)
    assert index is not None
    shared_axes = node.attr("batch_dims", 0)
    depth = dims(index)[-1]
    if data >= 0 and data < shared_axes:
        return data if indices in (data, CONSTANT) and dims(index)[data] == dims(node.x)[data] else UNPROVEN
    if indices != CONSTANT or not isinstance(depth, int) or data < shared_axes + depth:
        return UNPROVEN
    return data + rank(node.y) - rank(node.x)


def scatter_nd(node: Node, axes: Sequence[Axis]) -> Axis:
    """An axis of data and updates behind those that the indices name."""
    data, indices, updates = axes[:3]
    index, source = node.input(1), node.input(2)
    assert index is not None and source is not None
    depth = dims(index)[-1]
    behind = rank(node.x) - rank(source)
    batched = {data} | {updates + behind if updates >= 0 else updates}
    batched.discard(CONSTANT)
    if indices != CONSTANT or len(batched) != 1 or not isinstance(depth, int):
        return UNPROVEN
    (axis,) = batched
    return axis if axis >= depth and dims(source)[axis - behind] == dims(node.x)[axis] else UNPROVEN
