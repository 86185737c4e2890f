"""Types and shapes that onnx does not infer: most of ai.onnx.ml, onnxruntime's own ops, functions it does not open.

A rule takes the attributes of a node and the shapes of its inputs and gives the shape of the first output; None stands
for a rank, a length or an input that is not known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod

import onnx

Dim = int | str | None
Shape = list[Dim]
Attributes = Mapping[str, onnx.AttributeProto]
ShapeRule = Callable[[Attributes, Sequence[Shape | None]], Shape | None]


def like_first(attributes: Attributes, shapes: Sequence[Shape | None]) -> Shape | None:
    """That of the first input."""
    return shapes[0]


def targets(attributes: Attributes, shapes: Sequence[Shape | None]) -> Shape | None:
    """A row of targets for each row."""
    x = shapes[0]
    count = attributes["targets"].i if "targets" in attributes else 1
    return None if x is None else [x[0] if len(x) > 1 else 1, count]


def side_by_side(attributes: Attributes, shapes: Sequence[Shape | None]) -> Shape | None:
    """Tables beside one another."""
    x = shapes[0]
    return None if x is None else [x[0] if len(x) > 1 else 1, sum(attributes["inputdimensions"].ints)]


def picked(attributes: Attributes, shapes: Sequence[Shape | None]) -> Shape | None:
    """One column for each index."""
    x, indices = shapes
    if x is None:
        return None
    lengths = [None] if indices is None else indices
    known = [length for length in lengths if isinstance(length, int)]
    return [*(x[:-1] or [1]), int(prod(known)) if len(known) == len(lengths) else None]


ELEMENTWISE = (
    *(("ai.onnx.ml", op) for op in ("Scaler", "Normalizer", "Imputer", "Binarizer")),
    *(("", op) for op in ("GroupNormalization", "MeanVarianceNormalization", "SimplifiedLayerNormalization")),
    *(("com.microsoft", op) for op in ("Gelu", "BiasGelu", "FastGelu", "QuickGelu", "BiasAdd", "RotaryEmbedding")),
    *(("com.microsoft", op) for op in ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")),
    ("onnxplain", "Barrier"),  # of `frontend.barriers`
)
SHAPE_RULES: dict[tuple[str, str], ShapeRule] = {
    **dict.fromkeys(ELEMENTWISE, like_first),
    ("ai.onnx.ml", "LinearRegressor"): targets,
    ("ai.onnx.ml", "FeatureVectorizer"): side_by_side,
    ("ai.onnx.ml", "ArrayFeatureExtractor"): picked,
}
FLOAT32 = {"Scaler", "Normalizer", "LinearRegressor", "FeatureVectorizer"}  # answer this whatever they are given


def shape_rule(domain: str, op_type: str) -> ShapeRule | None:
    """The rule of an op listed here."""
    return SHAPE_RULES.get((domain, op_type))


def infer_by_rule(op: onnx.NodeProto, rule: ShapeRule, types: Sequence[onnx.TypeProto | None]) -> onnx.TypeProto | None:
    """Type of the first output; its element type is that of the first input (0: not known) or float32."""
    if not types or types[0] is None:
        return None
    attributes = {attribute.name: attribute for attribute in op.attribute}
    shape = rule(attributes, [None if proto is None else shape_of(proto) for proto in types])
    kind = onnx.TensorProto.FLOAT if op.op_type in FLOAT32 else types[0].tensor_type.elem_type
    return onnx.helper.make_tensor_type_proto(kind, shape)


def shape_of(proto: onnx.TypeProto) -> Shape | None:
    """The shape a type declares; None for an unknown rank."""
    if not proto.tensor_type.HasField("shape"):
        return None
    return [
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in proto.tensor_type.shape.dim
    ]
