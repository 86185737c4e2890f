"""Where the trees of a model lie: what is in front of them, and what is made of their sum behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxplain.errors import UnsupportedModel
from onnxplain.frontend.tree_nodes import is_trees, read_trees
from onnxplain.graph.node import FLOATS, Node, constant, dims, ints
from onnxplain.trees import Trees
from onnxplain.trees.ensemble import Array, scaled, side_by_side

KEPT = {"Identity", "Cast"}
EACH_COLUMN = KEPT | {
    "Scaler",
    "Imputer",
    "Neg",
    "Abs",
    "Relu",
    "Clip",
    "Exp",
    "Log",
    "Sqrt",
    "Tanh",
    "Sigmoid",
    "Floor",
}
BY_CONSTANT = {"Add", "Sub", "Mul", "Div", "Min", "Max", "Pow"}
Column = tuple[str, int]
"""A number of an input: its name, and its place behind the samples."""


@dataclass(frozen=True, eq=False)
class TreePath:
    """A sum of trees in a graph.

    trees, transform: see `TreeScore`. entry: the tensor they read. columns: what each of its columns is made of; None
    where it is an input of the model itself.
    """

    trees: Trees
    transform: str
    entry: str
    columns: tuple[Column, ...] | None

    def front(self, model: ir.Model) -> ir.Model:
        """The model from its inputs to `entry`."""
        front = model.clone()
        values = {str(value.name): value for node in front.graph for value in node.outputs}
        front.graph.outputs[:] = [values[self.entry]]
        used, pending = set[ir.Node](), [values[self.entry]]
        while pending:
            node = pending.pop().producer()
            if node is not None and node not in used:
                used.add(node)
                pending += [value for value in node.inputs if value is not None]
        front.graph.remove([node for node in front.graph if node not in used])
        return front


def find_trees(model: ir.Model, explained: str) -> TreePath:
    """The trees whose sum a tensor is. Raises UnsupportedModel, with the node that is in the way."""
    values = {str(value.name): value for node in model.graph for value in node.outputs}
    if explained not in values:
        raise UnsupportedModel(f"{explained} is no tensor that trees could make: it is an input of the model.")
    entries: dict[str, ir.Value] = {}
    trees, transform = _sum(values[explained], entries)
    if len(entries) != 1:
        raise UnsupportedModel(
            f"{explained} is a sum of trees that read different tensors ({', '.join(entries)}); tree_shap takes trees "
            "that read the same one."
        )
    (entry,) = entries.values()
    columns = None if entry.producer() is None else tuple(_columns(entry))
    return TreePath(trees, transform, str(entry.name), columns)


def _sum(value: ir.Value, entries: dict[str, ir.Value]) -> tuple[Trees, str]:
    """The trees that make a value, and their post_transform. entries: the tensors that they read are added to it."""
    producer = value.producer()
    if producer is None:
        raise UnsupportedModel(f"{value.name} is an input of the model, and no sum of trees.")
    node = Node.of(producer)
    if is_trees(producer):
        if value is not node.outputs[-1]:
            raise UnsupportedModel(f"{value.name} holds labels; the scores of {node} are {node.outputs[-1].name}.")
        entries[str(node.x.name)] = node.x
        return read_trees(node)
    if node.op_type in KEPT and value.dtype in FLOATS:
        return _sum(node.x, entries)
    given = [operand for operand in node.inputs if operand is not None]
    constants = {operand: np.asarray(array) for operand in given if (array := constant(operand)) is not None}
    moving = [operand for operand in given if operand not in constants]
    if node.op_type in ("Add", "Sum") and moving:
        parts = [_additive(node, operand, entries) for operand in moving]
        found = side_by_side(parts)
        return scaled(found, 1.0, _across(node, found, sum(constants.values()) + np.zeros(1))), "NONE"
    if node.op_type in ("Mul", "Div") and len(moving) == 1 and moving[0] is node.x and len(constants) == 1:
        found = _additive(node, moving[0], entries)
        factor = _across(node, found, next(iter(constants.values())).astype(np.float64))
        return scaled(found, factor if node.op_type == "Mul" else 1 / factor, np.zeros(1)), "NONE"
    raise UnsupportedModel(
        f"{node}: it stands between the trees and {value.name}, and what it makes of their sum is no sum of trees. "
        "Explain the scores of the trees themselves (--explain), or use a method that only runs the model."
    )


def _additive(node: Node, value: ir.Value, entries: dict[str, ir.Value]) -> Trees:
    found, transform = _sum(value, entries)
    if transform != "NONE":
        raise UnsupportedModel(
            f"{node}: it adds or scales what {found.name} answers behind its {transform}, which is no sum of trees. "
            f"Explain {value.name} (--explain), or use a method that only runs the model."
        )
    return found


def _across(node: Node, trees: Trees, array: Array) -> Array:
    """A constant as one number, or one for each score."""
    flat = array.reshape(-1)
    if array.size not in (1, len(trees.offset)) or (array.ndim and array.shape[-1] != array.size):
        raise UnsupportedModel(f"{node}: its constant {list(array.shape)} has not one number for each score.")
    return flat


def _columns(value: ir.Value) -> list[Column]:
    """What each column of a table is made of, where each is made of one number of the inputs."""
    producer = value.producer()
    if producer is None:
        shape = dims(value)
        lengths = [length for length in shape[1:] if isinstance(length, int)]
        if len(lengths) != len(shape) - 1 or len(shape) > 2:
            raise UnsupportedModel(
                f"{value.name}: the number of its columns is open, {shape}: give the model a fixed one."
            )
        return [(str(value.name), column) for column in range(lengths[0] if lengths else 1)]
    node = Node.of(producer)
    moving = [operand for operand in node.inputs if operand is not None and constant(operand) is None]
    if node.op_type in EACH_COLUMN and len(moving) == 1:
        return _columns(moving[0])
    if node.op_type in BY_CONSTANT and len(moving) == 1 and dims(moving[0])[1:] == dims(value)[1:]:
        return _columns(moving[0])
    if node.op_type == "FeatureVectorizer" or (node.op_type == "Concat" and node.attr("axis") in (1, -1)):
        joined = [_columns(operand) for operand in moving]
        widths = node.attr("inputdimensions", tuple(map(len, joined)))
        if len(moving) == len(node.inputs) and [len(part) for part in joined] == list(widths):
            return [column for part in joined for column in part]
    if node.op_type == "ArrayFeatureExtractor" or (node.op_type == "Gather" and node.attr("axis", 0) in (1, -1)):
        picked = ints(node.input(1))
        if picked is not None and len(moving) == 1:
            columns = _columns(moving[0])
            return [columns[index] for index in picked]
    raise UnsupportedModel(
        f"{node}: it stands in front of the trees, and is not known to make each of their columns of one number of the "
        "inputs alone. Cut the model behind it (onnxplain cut) and explain the trees by what they read, or use a "
        "method that only runs the model."
    )


def players_of(columns: Sequence[Column], inputs: dict[str, int]) -> Array:
    """Which number of the inputs, counted through all of them, each column is made of. inputs: name -> how many."""
    begins = dict(zip(inputs, np.cumsum([0, *inputs.values()]), strict=False))
    if other := next((name for name, _ in columns if name not in inputs), None):
        raise UnsupportedModel(
            f"{other} is read by the trees and not attributed to: tree_shap attributes to all they read."
        )
    return np.array([begins[name] + column for name, column in columns], np.int64)
