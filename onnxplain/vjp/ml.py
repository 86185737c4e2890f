"""Classical models, domain ai.onnx.ml, as onnxruntime computes them. Inputs of integers get nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnxplain.errors import UnsupportedOp
from onnxplain.graph import signs, streams
from onnxplain.graph.backward_builder import Backward
from onnxplain.graph.node import Node, dims, rank
from onnxplain.graph.streams import CONSTANT, UNPROVEN, Axis
from onnxplain.graph.walk import Gradient
from onnxplain.vjp.copies import gradient_at
from onnxplain.vjp.registry import case, vjp
from onnxplain.vjp.underived import without_derivative

ML = "ai.onnx.ml"


def rows(node: Node, axes: Sequence[Axis]) -> Axis:
    """A table with a sample a row; columns may be mixed."""
    batched = {axis for axis in axes if axis != CONSTANT}
    return 0 if batched == {0} and rank(node.x) > 1 else UNPROVEN


def labels_and_rows(node: Node, axes: Sequence[Axis]) -> Sequence[Axis]:
    """The same for both outputs of a classifier."""
    return [rows(node, axes)] * 2


TREES = (
    "a tree ensemble is constant between its thresholds, so its derivative is zero everywhere and no relevance rule "
    "applies. Explain it by --method tree_shap, which reads its trees, or by another forward-only method, which runs "
    "the model (`onnxplain methods`)."
)
without_derivative("TreeEnsembleClassifier", domain=ML, streams=labels_and_rows, why=TREES)
without_derivative("TreeEnsembleRegressor", "TreeEnsemble", domain=ML, streams=rows, why=TREES)


def table(op: Backward, node: Node, values: Sequence[float], lines: int, g: ir.Value) -> ir.Value:
    """Coefficients (lines, features) in the type of g."""
    array = np.asarray(values, dtype=np.float32)
    if len(array) % lines:
        raise UnsupportedOp(f"{node}: {len(array)} coefficients do not make {lines} rows.")
    return op.constant(array.reshape(lines, -1), g.dtype or ir.DataType.FLOAT)


@vjp(
    "Scaler",
    domain=ML,
    kind="normalisation",
    linear=True,
    streams=streams.elementwise,
    cases=[case(x=(2, 3), offset=[1.0, -2.0, 0.5], scale=[2.0, 0.1, -1.0]), case(x=(2, 3), offset=[1.0], scale=[3.0])],
)
def scaler(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """y = (x - offset) scale."""
    scale = np.asarray(node.attr("scale"), dtype=np.float32)
    return [gradient_at(op, node.x, g * op.constant(scale, g.dtype or ir.DataType.FLOAT))]


@vjp(
    "Normalizer",
    domain=ML,
    kind="normalisation",
    streams=rows,
    cases=[case(x=(3, 4), norm=norm, sample="apart") for norm in ("MAX", "L1", "L2")] + [case(x=(4,), norm="L2")],
)
def normalizer(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """y = x / n over the last axis: (g - n' sum g y) / n; a norm of 0 leaves the row as it is. MAX is signed."""
    x, y, norm = op.real(node.x), op.real(node.y), node.attr("norm", "MAX")
    x = x if x.dtype == g.dtype else op.Cast(x, to=int(g.dtype or ir.DataType.FLOAT))
    if norm == "MAX":
        n = op.ReduceMax(x, [-1], keepdims=1)
        wins = op.Cast(op.Equal(x, n), to=int(g.dtype or ir.DataType.FLOAT))
        direction = wins / op.ReduceSum(wins, [-1], keepdims=1)
    elif norm == "L1":
        n, direction = op.ReduceL1(x, [-1], keepdims=1), op.Sign(x)
    else:
        n, direction = op.ReduceL2(x, [-1], keepdims=1), y
    r = (g - direction * op.ReduceSum(g * y, [-1], keepdims=1)) / n
    return [gradient_at(op, node.x, op.Where(op.Equal(n, 0.0), g, r))]


@vjp(
    "LinearRegressor",
    domain=ML,
    kind="other",
    linear=True,
    streams=rows,
    cases=[
        case(x=(2, 3), coefficients=[0.3, -0.2, 0.5], intercepts=[0.1]),
        case(x=(2, 3), coefficients=[0.3, -0.2, 0.5, 0.1, 0.4, -0.3], intercepts=[0.1, 0.2], targets=2),
        case(x=(2, 3), coefficients=[0.3, -0.2, 0.5]),
    ],
)
def linear_regressor(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """y = x C^T + intercepts."""
    if node.attr("post_transform", "NONE") != "NONE":
        raise UnsupportedOp(
            f"{node}: post_transform {node.attr('post_transform')} of a LinearRegressor is not covered."
        )
    coefficients = table(op, node, node.attr("coefficients"), node.attr("targets", 1), g)
    return [gradient_at(op, node.x, op.MatMul(g, coefficients))]


def decisions(node: Node) -> tuple[list[float], int, str]:
    """Coefficients of a LinearClassifier, in how many rows, and what becomes of their scores."""
    after = node.attr("post_transform", "NONE")
    labels = node.attr("classlabels_ints") or node.attr("classlabels_strings") or ()
    values = list(node.attr("coefficients"))
    lines = len(node.attr("intercepts") or ()) or max(1, len(labels))
    if after not in ("NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO"):
        raise UnsupportedOp(f"{node}: post_transform {after} of a LinearClassifier is not covered.")
    if lines == 1 and len(labels) == 2:
        return [-value for value in values] + values, 2, after if after == "LOGISTIC" else "NONE"
    return values, lines, after


@vjp(
    "LinearClassifier",
    domain=ML,
    kind="other",
    all_outputs=True,
    streams=labels_and_rows,
    cases=[
        *(
            case(
                x=(2, 3),
                coefficients=[0.3, -0.2, 0.5, 0.1, 0.4, -0.3, 0.7, 0.2, -0.6],
                intercepts=[0.1, 0.2, -0.3],
                classlabels_ints=[0, 1, 2],
                post_transform=after,
                outputs=2,
            )
            for after in ("NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO")
        ),
        *(
            case(
                x=(2, 3),
                coefficients=[0.3, -0.2, 0.5],
                intercepts=[0.1],
                classlabels_strings=["no", "yes"],
                post_transform=after,
                outputs=2,
            )
            for after in ("NONE", "LOGISTIC", "SOFTMAX")
        ),
    ],
)
def linear_classifier(op: Backward, node: Node, g: list[Gradient]) -> list[Gradient]:
    """Scores, the second output: s = x C^T + intercepts, then post_transform.

    One row of coefficients for two classes: onnxruntime answers (1 - s, s), with LOGISTIC (sigmoid(-s), sigmoid(s)).
    """
    at = g[1] if len(g) > 1 else None
    if at is None:
        return [None]
    values, lines, after = decisions(node)
    y = op.real(node.outputs[1])
    if after == "LOGISTIC":
        at = at * y * (1.0 - y)
    elif after != "NONE":  # classes that SOFTMAX_ZERO leaves out have y = 0 and get nothing
        at = at * y - y * op.ReduceSum(at * y, [-1], keepdims=1)
    return [gradient_at(op, node.x, op.MatMul(at, table(op, node, values, lines, at)))]


def picked(node: Node, axes: Sequence[Axis]) -> Axis:
    """Rows stay; the indices pick columns and do not depend on the batch."""
    return axes[0] if axes[1] == CONSTANT and 0 <= axes[0] < rank(node.x) - 1 else UNPROVEN


@vjp(
    "ArrayFeatureExtractor",
    domain=ML,
    kind="routing",
    silent=(1,),
    linear=True,
    streams=picked,
    sign=signs.first,
    cases=[
        case(x=(2, 4), indices=np.array([[2, 0, 2]])),
        case(x=(2, 3, 4), indices=np.array([3])),
        case(x=(4,), indices=np.array([1, 3])),
    ],
)
def array_feature_extractor(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """Columns by index: each element of g goes back to its column."""
    features, indices = dims(node.x)[-1], node.inputs[1]
    if not isinstance(features, int):
        raise UnsupportedOp(f"{node}: the derivative needs the number of columns, which this model leaves open.")
    column = op.Reshape(indices, [-1, 1])
    picks = op.Cast(op.Equal(column, np.arange(features)[None]), to=int(g.dtype or ir.DataType.FLOAT))
    r = op.MatMul(g, picks)
    return [gradient_at(op, node.x, r if rank(r) == rank(node.x) else op.like(r, node.x)), None]


@vjp(
    "Imputer",
    domain=ML,
    kind="routing",
    streams=streams.elementwise,
    cases=[
        case(x=(2, 3), imputed_value_floats=[0.1, 0.2, 0.3], replaced_value_float=float("nan")),
        case(x=(2, 3), imputed_value_floats=[0.1], replaced_value_float=-0.5),
    ],
)
def imputer(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """g where x was kept."""
    missing = node.attr("replaced_value_float", 0.0)
    x = op.real(node.x)
    gone = op.IsNaN(x) if np.isnan(missing) else op.Equal(x, missing)
    return [gradient_at(op, node.x, op.Where(gone, 0.0, g))]


@vjp(
    "FeatureVectorizer",
    domain=ML,
    kind="routing",
    streams=rows,
    sign=signs.every,
    cases=[
        case(a=(2, 3), b=(2, 2), inputdimensions=[3, 2]),
        case(a=(2, 3), b=(2, 2), c=(2, 1), inputdimensions=[2, 4, 1]),
    ],
)
def feature_vectorizer(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """Tables side by side, each cut or filled with zeros to its width: everyone gets its columns."""
    shares: list[Gradient] = []
    begin = 0
    for value, width in zip(node.inputs, node.attr("inputdimensions"), strict=True):
        assert value is not None
        own = dims(value)[-1]
        if not isinstance(own, int):
            raise UnsupportedOp(f"{node}: the derivative needs the number of columns, which this model leaves open.")
        share = op.Slice(g, [begin], [begin + min(own, width)], [-1])
        if own > width:
            share = op.Pad(share, [0, 0, 0, own - width])
        shares.append(gradient_at(op, value, share if rank(value) == rank(g) else op.like(share, value)))
        begin += width
    return shares


@vjp("Binarizer", domain=ML, kind="flat", streams=streams.elementwise, sign=signs.always, cases=[case(x=(2, 3))])
def binarizer(op: Backward, node: Node, g: ir.Value) -> list[Gradient]:
    """A step."""
    return [None]
