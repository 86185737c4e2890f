"""Ops that move values: reshape, transpose, join, cut, look up."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxplain.graph import signs, streams
from onnxplain.graph.backward import Backward
from onnxplain.graph.node import Node, rank
from onnxplain.graph.walk import Gradient
from onnxplain.vjp.registry import case, vjp


def rest(node: Node) -> list[Gradient]:
    """Nothing flows to a shape op's other inputs."""
    return [None] * (len(node.inputs) - 1)


@vjp(
    "Reshape",
    kind="routing",
    linear=True,
    streams=streams.reshape,
    sign=signs.first,
    cases=[case(x=(2, 3, 4), shape=np.array([2, -1])), case(x=(2, 3, 4), shape=np.array([0, 2, 6]))],
)
@vjp(
    "Flatten", kind="routing", linear=True, streams=streams.reshape, sign=signs.first, cases=[case(x=(2, 3, 4), axis=2)]
)
@vjp(
    "Squeeze",
    kind="routing",
    linear=True,
    streams=streams.squeeze,
    sign=signs.first,
    cases=[case(x=(2, 1, 4, 1), axes=np.array([-1])), case(x=(2, 1, 4, 1), axes=np.array([1, 3]))],
)
@vjp(
    "Unsqueeze",
    kind="routing",
    linear=True,
    streams=streams.unsqueeze,
    sign=signs.first,
    cases=[case(x=(2, 4), axes=np.array([1, -1]))],
)
def reshape(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """Only the layout changed: put it back."""
    return [op.like(g, node.x), *rest(node)]


@vjp(
    "Transpose",
    kind="routing",
    linear=True,
    streams=streams.transpose,
    sign=signs.first,
    cases=[case(x=(2, 3, 4), perm=[1, 2, 0]), case(x=(2, 3))],
)
def transpose(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """The inverse permutation."""
    perm = list(node.attr("perm") or reversed(range(rank(node.x))))
    return [op.Transpose(g, perm=[perm.index(axis) for axis in range(len(perm))])]
