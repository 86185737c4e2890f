"""What the one-node laws do not reach: recurrent ops with a free batch axis, absent outputs, last states, layout 1."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from support import evaluate, run

from onnxplain.graph import streams
from onnxplain.graph.backward_builder import Backward, Facts
from onnxplain.graph.node import Node
from onnxplain.graph.relevance import Relevance
from onnxplain.graph.walk import backward
from onnxplain.vjp import axis_rules, lookup, silent_inputs

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
STEPS, FEATURES, HIDDEN = 4, 3, 5


def model(op_type, output, dtype, batch=2, free=False, layout=0, direction="bidirectional", open_length=False, **given):
    """x (batch, time, features) -> recurrent op, its output `output` alone present -> its derivative."""
    rng = np.random.default_rng(0)
    d = 2 if direction == "bidirectional" else 1
    float_type = ir.DataType.from_numpy(np.dtype(dtype))
    shapes = [
        (d, GATES[op_type] * HIDDEN, FEATURES),
        (d, GATES[op_type] * HIDDEN, HIDDEN),
        (d, 2 * GATES[op_type] * HIDDEN),
    ]
    kind = ir.TensorType(float_type)
    weights = []
    for name, shape in zip("wrb", shapes, strict=True):
        tensor = ir.tensor(rng.uniform(-1, 1, shape).astype(dtype), name=name)
        weights.append(ir.Value(name=name, const_value=tensor, shape=ir.Shape(shape), type=kind))
    x = ir.Value(name="x", shape=ir.Shape([batch, "time" if open_length else STEPS, FEATURES]), type=kind)
    nodes, source = [], x
    if not layout:
        nodes.append(ir.node("Transpose", [x], {"perm": [1, 0, 2]}, name="turn"))
        source = nodes[0].outputs[0]
        source.name = "turned"
    attributes = {"hidden_size": HIDDEN, "direction": direction, "layout": layout, **given}
    recurrent = ir.node(op_type, [source, *weights], attributes, num_outputs=output + 1, name="recurrent")
    for i, value in enumerate(recurrent.outputs):
        value.name = "y" if i == output else ""
    nodes.append(recurrent)
    graph = ir.Graph([x], [], nodes=nodes, initializers=weights, opset_imports={"": 18}, name="test")
    first = Backward(graph, Facts())
    for node in nodes:
        first.infer(node)
    views = [Node.of(node) for node in nodes]
    axes = streams.track(views, [x], axis_rules()) if free else {}
    op = Backward(graph, Facts(axes, free, (), set(weights)))
    y = recurrent.outputs[output]
    seed = ir.Value(name="seed", shape=ir.Shape(op.stream_shape(y)), type=kind)
    graph.inputs.append(seed)
    active = {x, *(value for node in nodes for value in node.outputs)}
    with op.arithmetic():

        def passes(node, index):
            return index not in silent_inputs(node) and not op.is_constant(node.inputs[index])

        start = {y: Relevance(seed)}
        found = backward(op, views[::-1], start, active, lambda n: lookup(n).rule, lookup, passes)
        relevance = found[x].value
    relevance.name = "relevance"
    graph.outputs.extend([y, relevance])
    return ir.to_proto(ir.Model(graph, ir_version=8)), axes.get(y)


OUTPUTS = [(op_type, output) for op_type, gates in GATES.items() for output in range(3 if gates == 4 else 2)]


@pytest.mark.parametrize(("op_type", "output"), OUTPUTS)
@pytest.mark.parametrize("layout", [0, 1])
def test_every_output_has_its_derivative(op_type, output, layout):
    built, _ = model(op_type, output, np.float64, layout=layout)
    rng = np.random.default_rng(1)
    x, direction = rng.standard_normal((2, 2, STEPS, FEATURES))
    shape = tuple(d.dim_value for d in built.graph.input[1].type.tensor_type.shape.dim)
    seed = rng.standard_normal(shape)
    eps = 1e-6
    up, down = (evaluate(built, {"x": x + sign * eps * direction, "seed": seed})["y"] for sign in (1, -1))
    found = evaluate(built, {"x": x, "seed": seed})["relevance"]
    expected = float((seed * (up - down)).sum() / (2 * eps))
    assert float((found * direction).sum()) == pytest.approx(expected, rel=1e-6, abs=1e-8)  # float64, eps 1e-6


@pytest.mark.parametrize("open_length", [False, True])
@pytest.mark.parametrize(("op_type", "output"), OUTPUTS)
def test_ten_seeds_over_one_sequence_equal_ten_runs(op_type, output, open_length):
    built, axis = model(op_type, output, np.float32, batch=1, free=True, open_length=open_length)
    assert axis == (2 if output == 0 else 1)
    rng = np.random.default_rng(1)
    x = rng.standard_normal((1, STEPS, FEATURES)).astype(np.float32)
    shape = (STEPS, 2, 10, HIDDEN) if output == 0 else (2, 10, HIDDEN)
    seeds = rng.standard_normal(shape).astype(np.float32)
    together = run(built, {"x": x, "seed": seeds})["relevance"]
    singles = [run(built, {"x": x, "seed": np.take(seeds, [k], axis)})["relevance"] for k in range(10)]
    assert together.shape == (10, STEPS, FEATURES)
    np.testing.assert_allclose(together, np.concatenate(singles), rtol=1e-5, atol=1e-6)  # float32, other order of sums


@pytest.mark.parametrize("options", [{}, {"direction": "reverse"}, {"linear_before_reset": 1}, {"input_forget": 1}])
@pytest.mark.parametrize("op_type", GATES)
def test_onnxruntime_agrees_with_the_equations(op_type, options):
    allowed = {"linear_before_reset": "GRU", "input_forget": "LSTM"}
    if any(allowed.get(name, op_type) != op_type for name in options):
        pytest.skip("not an attribute of this op")
    built, _ = model(op_type, 0, np.float32, **options)
    rng = np.random.default_rng(1)
    shape = tuple(d.dim_value for d in built.graph.input[1].type.tensor_type.shape.dim)
    feeds = {"x": rng.standard_normal((2, STEPS, FEATURES)), "seed": rng.standard_normal(shape)}
    feeds = {name: array.astype(np.float32) for name, array in feeds.items()}
    ours, theirs = evaluate(built, feeds), run(built, feeds)
    for name in ("y", "relevance"):
        np.testing.assert_allclose(theirs[name], ours[name], rtol=1e-4, atol=1e-5)  # float32 through four steps
