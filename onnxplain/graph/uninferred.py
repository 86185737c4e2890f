"""Types and shapes that onnx does not infer: most of ai.onnx.ml, and functions whose body it does not open."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import onnx_ir as ir

Shape = list[int | str | None]


def same(node: ir.Node, x: Shape) -> Shape:
    """That of the first input."""
    return x


def targets(node: ir.Node, x: Shape) -> Shape:
    """A row of targets for each row."""
    return [x[0] if len(x) > 1 else 1, _int(node, "targets", 1)]


def vectors(node: ir.Node, x: Shape) -> Shape:
    """Tables side by side."""
    return [x[0] if len(x) > 1 else 1, sum(node.attributes["inputdimensions"].as_ints())]


def picked(node: ir.Node, x: Shape) -> Shape:
    """One column for each index."""
    indices = node.inputs[1]
    lengths = [None] if indices is None or indices.shape is None else list(indices.shape)
    known = [length for length in lengths if isinstance(length, int)]
    columns = int(prod(known)) if len(known) == len(lengths) else None
    return [*(x[:-1] or [1]), columns]


def _int(node: ir.Node, name: str, default: int) -> int:
    return node.attributes[name].as_int() if name in node.attributes else default


SHAPES: dict[str, Callable[[ir.Node, Shape], Shape]] = {
    **dict.fromkeys(
        ("Asked", "Scaler", "Normalizer", "Imputer", "GroupNormalization", "MeanVarianceNormalization"), same
    ),
    "LinearRegressor": targets,
    "FeatureVectorizer": vectors,
    "ArrayFeatureExtractor": picked,
}
SINGLE = {"Scaler", "Normalizer", "LinearRegressor", "FeatureVectorizer"}  # answer float32 whatever they are given


def infer(node: ir.Node) -> bool:
    """Set type and shape of the output of an op listed here; False for others."""
    shape_of, x = SHAPES.get(node.op_type), node.inputs[0] if node.inputs else None
    if shape_of is None or x is None:
        return False
    y = node.outputs[0]
    y.type = ir.TensorType(ir.DataType.FLOAT) if node.op_type in SINGLE else x.type
    if x.shape is not None:
        y.shape = ir.Shape(shape_of(node, [d if isinstance(d, int) else d.value for d in x.shape]))
    return True
