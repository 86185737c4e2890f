"""Models that compute in 16 bits: normalised, verified by the precision inside, and explained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxplain.explainer import Explainer
from onnxplain.frontend.compare import HALF_TOLERANCE, TOLERANCE
from onnxplain.frontend.load import from_proto, load
from onnxplain.frontend.normalise import normalise
from onnxplain.frontend.verify import reference

MODELS = Path(__file__).parents[2] / "models"
FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def halved(path: Path) -> onnx.ModelProto:
    """A float16 copy, as converters make it: weights, ports, constants and casts, in bodies too."""
    proto = onnx.load(path)
    _halve(proto.graph)
    return proto


def _halve(graph: onnx.GraphProto) -> None:
    nodes = [attribute for node in graph.node for attribute in node.attribute]
    for tensor in (*graph.initializer, *(a.t for a in nodes if a.type == onnx.AttributeProto.TENSOR)):
        if tensor.data_type == FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == FLOAT:
            value.type.tensor_type.elem_type = HALF
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == FLOAT:
                attribute.i = HALF
            if attribute.type == onnx.AttributeProto.GRAPH:
                _halve(attribute.g)


@pytest.mark.parametrize("method", ["gradient", "lrp"])
@pytest.mark.parametrize("name", [pytest.param("digits_cnn"), "digits_vit"])
def test_a_half_copy_gives_the_map_of_the_whole(name, method, tmp_path):
    path = next((MODELS / name).glob("*/model.onnx"))
    onnx.save(halved(path), tmp_path / "half.onnx")
    half, whole = Explainer(tmp_path / "half.onnx", method), Explainer(path, method)
    half.verify()
    (spec,) = whole.subject.inputs
    shape = [n if isinstance(n, int) else 2 for n in spec.shape]
    x = np.random.default_rng(0).uniform(0, 1, shape).astype(np.float32)
    maps = [
        explainer.explain(x.astype(kind), 3).relevances[spec.name].astype(np.float64).ravel()
        for explainer, kind in ((half, np.float16), (whole, np.float32))
    ]
    assert np.corrcoef(*maps)[0, 1] > 0.99  # a Relu that is on in one and off in the other is seen


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_the_tolerance_follows_the_precision_inside(kind):
    """float32 ports around 16 bits: a folded scale rounds otherwise, by more than float32 does."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=kind),
        helper.make_node("Cast", ["h"], ["y"], to=FLOAT),
    ]
    ports = [helper.make_tensor_value_info(name, FLOAT, ["N", 64]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:])
    source = from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8))
    assert reference(source).tolerance == HALF_TOLERANCE
    assert reference(load(next((MODELS / "digits_cnn").glob("*/model.onnx")))).tolerance == TOLERANCE

    weights = {"w": (64, 64), "s": (64,), "b": (64,)}
    layers = [
        helper.make_node("Cast", ["x"], ["h"], to=HALF),
        helper.make_node("Gemm", ["h", "w"], ["g"]),
        helper.make_node("Mul", ["g", "s"], ["m"]),
        helper.make_node("Add", ["m", "b"], ["a"]),
        helper.make_node("Cast", ["a"], ["y"], to=FLOAT),
    ]
    tensors = [numpy_helper.from_array(rng.standard_normal(s).astype(np.float16), n) for n, s in weights.items()]
    graph = helper.make_graph(layers, "g", ports[:1], ports[1:], tensors)
    result = normalise(from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)))
    assert [node.op_type for node in result.model.graph] == ["Cast", "Gemm", "Cast"] and not result.notes
