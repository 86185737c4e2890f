"""What derivatives do where there is none: kinks, ties, zeros. As torch, value by value; and over float16 forwards."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from support import evaluate, run

from onnxplain.errors import UnsupportedOp
from onnxplain.graph.backward_builder import Backward, Facts
from onnxplain.graph.node import Node
from onnxplain.graph.relevance import Relevance
from onnxplain.graph.walk import backward
from onnxplain.vjp import lookup, silent_inputs


def gradient(op_type, x, *constants, execute=evaluate, dtype=np.float64, opset=18, outputs=1, g=1.0, **attributes):
    """Gradient of sum(g y) at x, with the other inputs fixed."""
    x = np.asarray(x, dtype=dtype)
    value = ir.Value(name="x", shape=ir.Shape(x.shape), type=ir.TensorType(ir.DataType.from_numpy(x.dtype)))
    fixed = []
    for i, array in enumerate(constants):
        array = np.asarray(array)
        array = array.astype(dtype) if array.dtype.kind == "f" else array
        name = f"c{i}"
        kind = ir.TensorType(ir.DataType.from_numpy(array.dtype))
        tensor = ir.tensor(array, name=name)
        fixed.append(ir.Value(name=name, shape=ir.Shape(array.shape), type=kind, const_value=tensor))
    converted = ir.convenience.convert_attributes(attributes)
    node = ir.Node("", op_type, [value, *fixed], converted, num_outputs=outputs, name="node")
    node.outputs[0].name = "y"
    graph = ir.Graph([value], [], nodes=[node], opset_imports={"": opset}, name="test", initializers=fixed)
    op = Backward(graph, Facts(constants=set(fixed)))
    op.infer(node)
    y = node.outputs[0]
    precision = ir.DataType.DOUBLE if dtype is np.float64 else ir.DataType.FLOAT
    with op.arithmetic():
        start = op.constant(np.broadcast_to(g, tuple(y.shape)), precision)
        found = backward(
            op,
            [Node.of(node, opset)],
            {y: Relevance(start)},
            {value},
            lambda n: lookup(n).rule,
            lookup,
            lambda n, i: i not in silent_inputs(n),
        )
        result = op.Identity(found[value].value)
    result.name = "gradient"
    graph.outputs.append(result)
    proto: onnx.ModelProto = ir.to_proto(ir.Model(graph, ir_version=10))
    return execute(proto, {"x": x})["gradient"]


@pytest.mark.parametrize(
    ("op_type", "x", "constants", "attributes", "expected"),
    [
        ("Relu", [0.0, 1.0], [], {}, [0, 1]),
        ("Abs", [0.0, -1.0], [], {}, [0, -1]),
        ("LeakyRelu", [0.0], [], {"alpha": 0.5}, [0.5]),
        ("Clip", [0.0, 6.0, -1.0, 7.0, 3.0], [np.array(0.0), np.array(6.0)], {}, [0, 0, 0, 0, 1]),
        ("HardSigmoid", [-2.5, 2.5, 0.0], [], {}, [0, 0, 0.2]),
        ("HardSwish", [-3.0, 3.0, 0.0], [], {}, [0, 1, 0.5]),
        ("Max", [0.0, -1.0], [np.array(0.0)], {}, [1, 0]),
        ("Pow", [0.0, 2.0], [np.array(2.0)], {}, [0, 4]),
        ("Pow", [0.0, 2.0], [np.array([1.0, 0.0])], {}, [1, 0]),
        ("ReduceMax", [[1.0, 2.0, 2.0]], [np.array([1])], {}, [[0, 0.5, 0.5]]),
        ("ReduceMin", [[1.0, 1.0, 2.0]], [np.array([1])], {"keepdims": 0}, [[0.5, 0.5, 0]]),
        ("ReduceL1", [[0.0, -2.0]], [np.array([1])], {}, [[0, -1]]),
        ("ReduceL2", [[0.0, 0.0], [3.0, 4.0]], [np.array([1])], {}, [[0, 0], [0.6, 0.8]]),
        ("ReduceProd", [[2.0, 3.0, 4.0]], [np.array([1])], {}, [[12, 8, 6]]),
        ("ReduceProd", [[2.0, 0.0, 4.0]], [np.array([1])], {}, [[0, 8, 0]]),
        ("ReduceProd", [[0.0, 3.0, 0.0]], [np.array([1])], {}, [[0, 0, 0]]),
        ("LpNormalization", [[0.0, 0.0]], [], {}, [[0, 0]]),
    ],
)
def test_kinks_ties_and_zeros(op_type, x, constants, attributes, expected):
    np.testing.assert_allclose(gradient(op_type, x, *constants, **attributes), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("op_type", "constants", "attributes"),
    [
        ("Sigmoid", [], {}),
        ("Relu", [], {}),
        ("Clip", [np.array(-0.5), np.array(0.5)], {}),
        ("Elu", [], {}),
        ("HardSwish", [], {}),
        ("Mul", [np.array([2.0, 3.0, 4.0])], {}),
        ("Div", [np.array([2.0, 3.0, 4.0])], {}),
        ("Pow", [np.array([2.0])], {}),
        ("Max", [np.array([0.0])], {}),
        ("Softmax", [], {}),
        ("ReduceMax", [np.array([0])], {}),
        ("ReduceMean", [np.array([1])], {"keepdims": 0}),
        ("LayerNormalization", [np.array([1.0, 2.0, 3.0])], {}),
        ("Cast", [], {"to": int(ir.DataType.FLOAT)}),
    ],
)
def test_gradients_over_float16_are_float32(op_type, constants, attributes):
    x = [[0.3, -0.7, 1.2], [-0.2, 0.1, 0.9]]
    g = np.array([0.5, -1.0] if attributes.get("keepdims") == 0 else [[0.5, 1.5, -1.0]])
    half = gradient(op_type, x, *constants, execute=run, dtype=np.float16, g=g, **attributes)
    assert half.dtype == np.float32
    single = gradient(op_type, x, *constants, execute=run, dtype=np.float32, g=g, **attributes)
    np.testing.assert_allclose(half, single, atol=5e-3)  # float16: 5e-4 relative, a few times


@pytest.mark.parametrize(
    ("op_type", "constants", "attributes"),
    [
        ("Dropout", [np.array(0.5), np.array(True)], {}),
        ("BatchNormalization", [np.ones(2)] * 4, {"training_mode": 1, "outputs": 3}),
    ],
)
def test_training_mode_is_refused(op_type, constants, attributes):
    with pytest.raises(UnsupportedOp, match="inference"):
        gradient(op_type, [[1.0, 2.0], [3.0, 4.0]], *constants, **attributes)
