"""Nothing on a path is forgotten: what depends on an attributed tensor has relevance, none by nature, or is named."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from nets import compiled, net, normal
from onnx import TensorProto, helper

from onnxplain import Explainer
from onnxplain.errors import OnnxplainError, UnsupportedModel, UnsupportedOp
from onnxplain.graph.node import Node
from onnxplain.vjp import OPS, STEPS, silent_inputs


def branch(name: str, node: onnx.NodeProto) -> onnx.GraphProto:
    return helper.make_graph([node], name, [], [helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None)])


def captured_by_if() -> onnx.ModelProto:
    """y = x + (if positive: 2 x, else: -x): both branches read x from outside, beside a skip connection."""
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0),
        helper.make_node("Greater", ["total", "zero"], ["positive"]),
        helper.make_node(
            "If",
            ["positive"],
            ["z"],
            name="choice",
            then_branch=branch("then", helper.make_node("Add", ["x", "x"], ["t"])),
            else_branch=branch("else", helper.make_node("Neg", ["x"], ["e"])),
        ),
        helper.make_node("Add", ["x", "z"], ["y"]),
    ]
    return model(nodes, {"x": ["N", 3]}, {"y": ["N", 3]}, zero=np.zeros((), np.float32))


def captured_by_loop() -> onnx.ModelProto:
    """y = x + x + x + x, three of them in a Loop's body that takes x from outside."""
    step = helper.make_graph(
        [helper.make_node("Add", ["before", "x"], ["after"]), helper.make_node("Identity", ["again"], ["on"])],
        "step",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("again", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("after", TensorProto.FLOAT, None),
        ],
    )
    nodes = [
        helper.make_node("Loop", ["three", "", "start"], ["z"], name="loop", body=step),
        helper.make_node("Add", ["x", "z"], ["y"]),
    ]
    numbers = {"three": np.array(3), "start": np.zeros((1, 3), np.float32)}
    return model(nodes, {"x": [1, 3]}, {"y": [1, 3]}, **numbers)


def untyped() -> onnx.ModelProto:
    """An op of onnxruntime's own, of whose output no inference knows the type, beside a skip connection."""
    nodes = [
        helper.make_node("FusedMatMul", ["x", "w"], ["h"], name="fused", domain="com.microsoft", alpha=2.0),
        helper.make_node("Add", ["x", "h"], ["y"]),
    ]
    return model(nodes, {"x": ["N", 3]}, {"y": ["N", 3]}, w=normal(3, 3))


def quantised() -> onnx.ModelProto:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "point"], ["q"], name="quantise"),
        helper.make_node("DequantizeLinear", ["q", "scale", "point"], ["d"], name="dequantise"),
        helper.make_node("Add", ["x", "d"], ["y"]),
    ]
    numbers = {"scale": np.array(0.1, np.float32), "point": np.array(128, np.uint8)}
    return model(nodes, {"x": ["N", 3]}, {"y": ["N", 3]}, **numbers)


def sequence() -> onnx.ModelProto:
    nodes = [
        helper.make_node("SequenceConstruct", ["x", "x"], ["s"], name="construct"),
        helper.make_node("SequenceAt", ["s", "one"], ["h"], name="at"),
        helper.make_node("Add", ["x", "h"], ["y"]),
    ]
    return model(nodes, {"x": ["N", 3]}, {"y": ["N", 3]}, one=np.array(1))


def model(nodes, inputs, outputs, **weights) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


HIDDEN = {  # what makes it, its node's name, the gradient of the sum of y where normalisation dissolves the node
    "If": (captured_by_if, "choice", None),
    "Loop": (captured_by_loop, "loop", 4),
    "FusedMatMul": (untyped, "fused", None),
    "QuantizeLinear": (quantised, "quantise", None),
    "SequenceConstruct": (sequence, "construct", 2),
}


@pytest.mark.parametrize("op_type", HIDDEN)
@pytest.mark.parametrize("method", ["gradient", "lrp"])
def test_a_branch_nobody_can_follow_is_named_and_never_left_out(op_type, method, tmp_path):
    """Each stands beside a skip connection, whose relevance alone would look like an answer."""
    make, name, slope = HIDDEN[op_type]
    try:
        file = compiled(make(), tmp_path, method)
    except OnnxplainError as error:
        assert op_type in str(error) or name in str(error)
        assert "\n" not in str(error)
        return
    x = np.abs(normal(1, 3))
    found = file.run(x=x, seed=np.ones((1, 3), np.float32))
    expected = slope if method == "gradient" else found["y"]
    np.testing.assert_allclose(found["x.relevance"], np.broadcast_to(expected, (1, 3)), rtol=1e-5)


def test_nothing_to_attribute_to_names_the_node_where_it_ends(tmp_path):
    onnx.save(quantised_only(), tmp_path / "m.onnx")
    with pytest.raises(UnsupportedOp, match="quantise"):
        Explainer(tmp_path / "m.onnx", "gradient")


def quantised_only() -> onnx.ModelProto:
    proto = quantised()
    del proto.graph.node[2]
    proto.graph.node[1].output[0] = "y"
    return proto


@pytest.mark.parametrize("step", ["Floor", "Sign", "Round", "Greater"])
def test_a_derivative_of_zero_is_said_only_where_every_path_has_one(step, tmp_path):
    node = f"s = {step} (x)" if step != "Greater" else "b = Greater (x, half) s = Cast <to = 1> (b)"
    half = np.full((), 0.5, np.float32)
    alone = net(f"g (float[N, 3] x) => (float[N, 3] y) {{ {node} y = Mul (s, half) }}", half=half)
    onnx.save(alone, tmp_path / "m.onnx")
    with pytest.raises(UnsupportedModel, match=rf"every path from x to y has a derivative of zero at .*{step}"):
        Explainer(tmp_path / "m.onnx", "gradient")
    beside = net(f"g (float[N, 3] x) => (float[N, 3] y) {{ {node} y = Mul (s, x) }}", half=half)
    x = normal(2, 3)
    file = compiled(beside, tmp_path)
    found = file.run(x=x, seed=np.ones_like(x))
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(found["x.relevance"], found["y"] / x, rtol=1e-5)  # y = s x with s constant


REFUSED = {"Resize": {1, 2}}  # a region and scales that depend on x by value move the grid: refused by name


@pytest.mark.parametrize("op_type", [name for name in OPS if OPS[name].kind != "flat"])
def test_every_input_of_numbers_is_differentiated_in_a_case_or_declared_silent(op_type):
    """By ONNX's own list of inputs: a derivative that forgets one of them has no case to hide behind."""
    entry = OPS[op_type]
    schemas = [s for s in onnx.defs.get_all_schemas_with_history() if (s.name, s.domain) == (op_type, entry.domain)]
    formal = max(schemas, key=lambda schema: schema.since_version).inputs
    numbers = {i for i, one in enumerate(formal) if "tensor(float)" in one.types}
    tried = {
        i
        for case in entry.cases
        for i, (name, given) in enumerate(case.inputs.items())
        if isinstance(given, tuple) and name not in case.constant
    }
    assert numbers <= tried | set(silent(op_type)) | REFUSED.get(op_type, set())


def silent(op_type: str) -> set[int]:
    """What the registration says of the op's inputs, all of them floats."""
    values = [ir.Value(name=f"x{i}", type=ir.TensorType(ir.DataType.FLOAT)) for i in range(9)]
    node = ir.Node("", op_type, values, ir.convenience.convert_attributes(OPS[op_type].cases[0].attributes))
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    return set(silent_inputs(Node.of(node)))


def test_a_step_has_no_derivative_of_its_own():
    assert not STEPS.keys() & OPS.keys()


@pytest.mark.parametrize("method", ["gradient", "lrp"])
def test_positions_carry_no_derivative_and_do_not_block(method, tmp_path):
    """Which entries win is a step; the values that win have theirs."""
    text = """g (float[N, 5] x) => (float[N, 2] y) {
        v, i = TopK <axis = 1> (x, two)
        f = Cast <to = 1> (i)
        y = Add (v, f)
    }"""
    x = np.array([[0.1, 3.0, 0.3, 2.0, -1.0]], np.float32)
    found = compiled(net(text, two=np.array([2])), tmp_path, method).run(x=x, seed=np.ones((1, 2), np.float32))
    expected = [[0, 1, 0, 1, 0]] if method == "gradient" else [[0, found["y"][0, 0], 0, found["y"][0, 1], 0]]
    np.testing.assert_allclose(found["x.relevance"], expected, rtol=1e-6)


def test_a_constant_that_is_asked_for_has_its_derivative(tmp_path):
    """Any tensor may be asked for; of the batch, every row adds to it."""
    text = "g (float[N, 3] x) => (float[N, 3] y) { h = Add (one, one) y = Mul (x, h) }"
    x, seed = normal(2, 3), normal(2, 3, seed=1)
    found = compiled(net(text, one=np.ones(3, np.float32)), tmp_path, attribute_to="h").run(x=x, seed=seed)
    np.testing.assert_allclose(found["h.relevance"], (seed * x).sum(0), rtol=1e-5)


def test_a_node_without_a_name_is_called_by_its_output(tmp_path):
    model = quantised()
    for node in model.graph.node:
        node.name = ""
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(UnsupportedOp, match=r"q \(QuantizeLinear\)"):
        Explainer(tmp_path / "m.onnx", "gradient")
