"""The law of shapes: no type, rank or length of a normalised model is other than in a run, at inner tensors too."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxplain.compile import Request, compile_graph, resolve
from onnxplain.cpu_session import CpuSession
from onnxplain.errors import UnsupportedOp
from onnxplain.explainer import Explainer
from onnxplain.frontend.load import from_proto
from onnxplain.frontend.normalise import STEPS, normalise
from onnxplain.recipes import Recipe

FLOAT, MICROSOFT, ML = TensorProto.FLOAT, "com.microsoft", "ai.onnx.ml"


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def model(nodes, inputs, outputs=("y",), opset=18, **initializers):
    """nodes: NodeProtos. inputs: name -> shape of a float. Shapes of outputs and inner tensors are not declared."""
    io = [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in inputs.items()]
    made = [helper.make_tensor_value_info(name, FLOAT, None) for name in outputs]
    graph = helper.make_graph(
        nodes, "g", io, made, [numpy_helper.from_array(np.asarray(a), n) for n, a in initializers.items()]
    )
    domains = {"": opset} | {node.domain: {MICROSOFT: 1, ML: 3}[node.domain] for node in nodes if node.domain}
    opsets = [helper.make_opsetid(domain, version) for domain, version in domains.items()]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def no_contradiction(proto: onnx.ModelProto, *feeds: dict[str, np.ndarray]):
    """Normalise; then plain onnxruntime says the shape and type of every tensor at each of the feeds."""
    result = normalise(from_proto(proto))
    exposed = ir.to_proto(result.model)
    del exposed.graph.output[:], exposed.graph.value_info[:]
    values = {v.name: v for node in result.model.graph for v in node.outputs if v.name}
    exposed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in values)
    session = CpuSession(exposed.SerializeToString())
    for feed in feeds:
        lengths = {}
        for value in result.model.graph.inputs:
            lengths |= dict(zip([str(dim) for dim in value.shape], feed[value.name].shape, strict=True))
        for name, array in session.run(feed).items():
            shape, value = array.shape, values[name]
            assert value.dtype == ir.DataType.from_numpy(array.dtype) and len(value.shape) == len(shape), name
            for dim, length in zip(value.shape, shape, strict=True):
                known = dim if isinstance(dim, int) else lengths.setdefault(dim.value, length)
                assert known == length, (name, value.shape, shape)
    return result


def same_derivative(normalised, feed: dict[str, np.ndarray]) -> None:
    """The gradient along a direction, in a stock session, is the untouched model's difference quotient."""
    propagation = Recipe("gradient").propagation()
    request = Request(head="keep")
    source = normalised.source.model
    compiled = compile_graph(normalised, resolve(source, request), propagation, request)
    before = CpuSession(ir.to_proto(source).SerializeToString())
    after = CpuSession(ir.to_proto(compiled.model).SerializeToString(), optimise=True)
    seed, step = weights(*before.run(feed)["y"].shape, seed=1), 1e-2 * weights(*feed["x"].shape, seed=2)
    found = float((after.run(feed | {"y.seed": seed})["x.relevance"] * step).sum())
    moved = [before.run({"x": feed["x"] + sign * step})["y"].astype(np.float64) for sign in (1, -1)]
    expected = float(((moved[0] - moved[1]) * seed).sum() / 2)
    if not any(node.op_type == "MaxPool" for node in source.graph):  # which has kinks; that it runs is the test
        assert abs(found - expected) < 1e-3 * np.sqrt(seed.size)  # float32, second order


@pytest.mark.parametrize("size", [8, "H"])
@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"])
@pytest.mark.parametrize(("stride", "dilation", "extra"), itertools.product([1, 2, 3], [1, 2], [0, 1]))
def test_transposed_convolutions_are_as_long_as_in_the_run(size, auto_pad, stride, dilation, extra, monkeypatch):
    if extra >= stride:
        pytest.skip("output_padding is smaller than the stride")
    spread = {"strides": [stride] * 2, "dilations": [dilation] * 2, "output_padding": [extra] * 2}
    nodes = [
        helper.make_node("ConvTranspose", ["x", "w"], ["c"], auto_pad=auto_pad, **spread),
        helper.make_node("Neg", ["c"], ["r"]),
        helper.make_node("Add", ["r", "r"], ["y"]),
    ]
    proto = model(nodes, {"x": ["N", 3, size, size]}, w=weights(3, 4, 3, 3))
    feeds = [{"x": weights(rows, 3, 8, 8)} for rows in (2, 1)]
    result = no_contradiction(proto, *feeds)
    same_derivative(result, feeds[0])
    monkeypatch.setitem(STEPS, "settle windows", lambda model, *rest: model)
    no_contradiction(proto, *feeds)


POOLS = [
    dict(kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], ceil_mode=1),
    dict(kernel_shape=[2, 2], strides=[3, 3], ceil_mode=1),
    dict(kernel_shape=[2, 2], strides=[2, 2], pads=[0, 0, 1, 1], ceil_mode=1),
    dict(kernel_shape=[9, 9], strides=[2, 2]),
    dict(kernel_shape=[9, 9], strides=[2, 2], ceil_mode=1),
    dict(kernel_shape=[12, 12], strides=[4, 4], pads=[2, 2, 2, 2], ceil_mode=1),
    dict(kernel_shape=[3, 3], strides=[3, 3], auto_pad="SAME_LOWER"),
]


@pytest.mark.parametrize("opset", [11, 18, 19, 22])
@pytest.mark.parametrize("op_type", ["MaxPool", "AveragePool", "LpPool"])
@pytest.mark.parametrize("attributes", POOLS, ids=lambda a: "-".join(f"{k}{v}" for k, v in a.items()).replace(" ", ""))
@pytest.mark.parametrize("size", [8, 10, "H"])
def test_pools_are_as_long_as_in_the_run(opset, op_type, attributes, size, monkeypatch):
    if op_type == "LpPool" and (opset < 18 or "ceil_mode" in attributes):
        pytest.skip("LpPool has no ceil_mode before opset 18, and onnxruntime ignores it after")
    nodes = [helper.make_node(op_type, ["x"], ["p"], **attributes), helper.make_node("Neg", ["p"], ["y"])]
    proto = model(nodes, {"x": ["N", 3, size, size]}, opset=opset)
    feed = {"x": weights(2, 3, *[size if isinstance(size, int) else 10] * 2)}
    try:
        CpuSession(proto.SerializeToString()).run(feed)
    except Exception:
        pytest.skip("onnxruntime does not run it")
    try:
        same_derivative(no_contradiction(proto, feed), feed)
    except UnsupportedOp as error:
        assert "which this model leaves open" in str(error)
    monkeypatch.setitem(STEPS, "settle windows", lambda model, *rest: model)
    no_contradiction(proto, feed)


def test_a_corrected_shape_is_told_once_where_it_arose(monkeypatch):
    nodes = [
        helper.make_node(
            "ConvTranspose", ["x", "w"], ["c"], auto_pad="SAME_UPPER", strides=[2, 2], output_padding=[1, 1]
        ),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    proto = model(nodes, {"x": ["N", 3, 8, 8]}, w=weights(3, 4, 3, 3))
    result = no_contradiction(proto, {"x": weights(2, 3, 8, 8)})
    assert not result.notes and result.changes == ["c (ConvTranspose) has auto_pad gone, pads [1, 1, 1, 1]"]
    monkeypatch.setitem(STEPS, "settle windows", lambda model, *rest: model)
    result = no_contradiction(proto, {"x": weights(2, 3, 8, 8)})
    (note,) = result.notes
    assert "c (ConvTranspose)" in note and "Relu" not in note
    assert [str(dim) for dim in result.model.graph.outputs[0].shape] == ["N", "4", "16", "16"]


UNKNOWN = {
    "FusedMatMul": (dict(alpha=0.5), ["x", "w"], (4, 6)),
    "CDist": (dict(metric="euclidean"), ["flat", "w"], (6, 4)),
    "Gelu": ({}, ["x"], None),
    "QuickGelu": (dict(alpha=1.7), ["x"], None),
    "BiasGelu": ({}, ["x", "w"], (4,)),
    "FastGelu": ({}, ["x", "w"], (4,)),
    "FusedGemm": (dict(activation="Relu"), ["flat", "w"], (4, 6)),
}


@pytest.mark.parametrize("op_type", UNKNOWN)
def test_types_and_ranks_that_no_inference_knows_are_learned(op_type):
    attributes, inputs, shape = UNKNOWN[op_type]
    nodes = [
        helper.make_node("Reshape", ["x", "rows"], ["flat"]),
        helper.make_node(op_type, inputs, ["a"], domain=MICROSOFT, **attributes),
        helper.make_node("Transpose", ["a"], ["t"]),
        helper.make_node("Exp", ["t"], ["e"]),
        helper.make_node("Add", ["e", "e"], ["y"]),
    ]
    given = {"rows": np.int64([-1, 4])} | ({"w": weights(*shape)} if shape else {})
    proto = model(nodes, {"x": ["N", "L", 4]}, **given)
    no_contradiction(proto, {"x": weights(2, 5, 4)}, {"x": weights(3, 7, 4)}, {"x": weights(1, 1, 4)})


@pytest.mark.parametrize("rank", [2, 4])
def test_an_input_without_a_rank_gets_that_of_the_layer_that_reads_it(rank):
    layer = helper.make_node("MatMul" if rank == 2 else "Conv", ["x", "w"], ["a"])
    proto = model([layer, helper.make_node("Relu", ["a"], ["y"])], {"x": None}, w=weights(*(5, 5, 3, 3)[4 - rank :]))
    shape = (3, 3) if rank == 2 else (2, 5, 9, 8)
    no_contradiction(proto, {"x": weights(*shape)})


def test_an_empty_cache_is_a_length_of_zero(tmp_path):
    """past (N, heads, 0, d), as decoders are exported for their first step."""
    nodes = [
        helper.make_node("Concat", ["past", "x"], ["k"], axis=2),
        helper.make_node("Transpose", ["k"], ["t"], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["x", "t"], ["s"]),
        helper.make_node("Softmax", ["s"], ["a"]),
        helper.make_node("MatMul", ["a", "k"], ["y"]),
    ]
    proto = model(nodes, {"past": ["N", 2, 0, 4], "x": ["N", 2, "L", 4]}, ("y", "k"))
    past = np.zeros((3, 2, 0, 4), np.float32)
    no_contradiction(proto, {"past": past, "x": weights(3, 2, 5, 4)})
    onnx.save(proto, tmp_path / "m.onnx")
    explainer = Explainer(tmp_path / "m.onnx", "gradient", attribute_to="x")
    explainer.verify()
    y = explainer.run({"past": past, "x": weights(3, 2, 5, 4)}, np.ones((3, 2, 5, 4), np.float32))
    assert np.abs(y["x.relevance"]).max() > 0


def zipped(*outputs: str) -> onnx.ModelProto:
    """A classifier as scikit-learn's converter writes it: its probabilities are dictionaries."""
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["s"]),
        helper.make_node("Softmax", ["s"], ["p"]),
        helper.make_node("ZipMap", ["p"], ["probabilities"], domain=ML, classlabels_strings=["a", "b", "c"]),
    ]
    proto = model(nodes, {"x": ["N", 4]}, (), w=weights(4, 3))
    proto.graph.output.extend(helper.make_tensor_value_info(name, FLOAT, ["N", 3]) for name in outputs)
    output = proto.graph.output.add(name="probabilities")
    entry = output.type.sequence_type.elem_type.map_type
    entry.key_type, entry.value_type.tensor_type.elem_type = TensorProto.STRING, FLOAT
    return proto


@pytest.mark.parametrize("outputs", [(), ("s",)])
def test_a_classifier_that_answers_with_maps_is_explained_below_them(tmp_path, outputs):
    onnx.save(zipped(*outputs), tmp_path / "m.onnx")
    explainer = Explainer(tmp_path / "m.onnx", "gradient")
    assert explainer.explained == ("s",)
    explainer.save(tmp_path / "e.onnx")
    explainer.verify(tmp_path / "e.onnx")
    onnx.checker.check_model(tmp_path / "e.onnx")
    found = explainer.run({"x": weights(1, 4)}, np.float32([[0, 1, 0]]))
    np.testing.assert_allclose(found["x.relevance"], weights(4, 3)[None, :, 1], rtol=1e-6)
    assert set(found["probabilities"][0]) == {"a", "b", "c"}


@pytest.mark.parametrize("start", [0, 1])
def test_what_a_loop_carries_has_no_length_of_its_own(start):
    """out = cat([out, x[i] + len(out)]), declared with the length it starts with, as torch does it."""
    carried = lambda name: helper.make_tensor_value_info(name, FLOAT, [start, 4])  # noqa: E731
    body = helper.make_graph(
        [
            helper.make_node("Gather", ["x", "i"], ["row"]),
            helper.make_node("Unsqueeze", ["row", "zero"], ["rows"]),
            helper.make_node("Shape", ["out"], ["shape"], end=1),
            helper.make_node("Cast", ["shape"], ["length"], to=FLOAT),
            helper.make_node("Add", ["rows", "length"], ["more"]),
            helper.make_node("Concat", ["out", "more"], ["longer"], axis=0),
            helper.make_node("Identity", ["on"], ["still"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            carried("out"),
        ],
        [helper.make_tensor_value_info("still", TensorProto.BOOL, []), carried("longer")],
    )
    nodes = [helper.make_node("Loop", ["three", "", "begin"], ["l"], body=body), helper.make_node("Neg", ["l"], ["y"])]
    given = {"three": np.int64(3), "zero": np.int64([0]), "begin": weights(start, 4)}
    proto = model(nodes, {"x": [3, 4]}, **given)
    result = no_contradiction(proto, {"x": weights(3, 4)})
    assert not any("left out" in note for note in result.notes)
    assert not any(isinstance(dim, int) and dim == start for dim in result.model.graph.outputs[0].shape)
