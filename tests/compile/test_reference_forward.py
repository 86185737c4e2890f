"""The reference forward: a second pass in the same graph that rules of differences read, its weights shared."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from nets import MODELS, net, normal, relu_net

from onnxplain.compile import Propagation, Request, compile_graph, resolve
from onnxplain.compile.reference_forward import add_reference
from onnxplain.composites import Composite
from onnxplain.composites.composite import Assignment, has_type
from onnxplain.errors import UnsupportedModel, UsageError
from onnxplain.explainer import Explainer
from onnxplain.frontend.load import from_proto, load
from onnxplain.frontend.normalise import normalise
from onnxplain.frontend.passes.shapes import infer_shapes
from onnxplain.graph import streams
from onnxplain.graph.backward_builder import Backward, Facts
from onnxplain.graph.node import Node
from onnxplain.graph.outline import runtime
from onnxplain.graph.relevance import Relevance
from onnxplain.rules import RULES
from onnxplain.rules.finishes import FINISHES, Finish
from onnxplain.rules.registry import RuleEntry
from onnxplain.rules.starts import STARTS
from onnxplain.runtime import verification
from onnxplain.vjp import axis_rules, lookup

IF = """g (float[N, 3] x, bool c) => (float[N, 3] y) {
    h = Relu (x)
    y = If (c) <then_branch = t () => (float[N, 3] a) { a = Mul (h, w) },
                else_branch = e () => (float[N, 3] b) { b = Add (x, h) }>
}"""
SHAPED = """g (float[N, 2, 3] x) => (float[N, 6] y) {
    s = Shape <start = 0, end = 1> (x)
    rest = Constant <value_ints = [6]> ()
    to = Concat <axis = 0> (s, rest)
    h = Exp (w)
    f = Reshape (x, to)
    y = Mul (f, h)
}"""


def doubled(model: onnx.ModelProto, free: bool = True) -> tuple[ir.Model, dict[str, str]]:
    """A model with its reference forward and every copy among its outputs; names of tensors → of their copies."""
    graph = from_proto(model).model
    infer_shapes(graph)
    nodes = [Node.of(node) for node in graph.graph]
    inputs = [value for value in graph.graph.inputs if value.dtype == ir.DataType.FLOAT]
    op = Backward(graph.graph, Facts(streams.track(nodes, list(graph.graph.inputs), axis_rules()), free))
    outputs = list(graph.graph.outputs)
    copies = add_reference(op, inputs)
    graph.graph.outputs.extend(copies[value] for value in outputs)
    return graph, {str(value.name): str(copy.name) for value, copy in copies.items()}


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize(
    "model, more",
    [
        (relu_net(), {}),
        (net(SHAPED, w=normal(6)), {}),
        (net(IF, w=normal(3)), {"c": np.array(True)}),
        (net(IF, w=normal(3)), {"c": np.array(False)}),
    ],
    ids=["cnn", "shape arithmetic", "then", "else"],
)
def test_the_copy_answers_what_a_separate_run_on_the_reference_does(model, more, rows):
    graph, names = doubled(model)
    shape = [4, *(d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[1:])]
    x, other = normal(*shape), normal(rows, *shape[1:], seed=1)
    entry, answer = model.graph.input[0].name, model.graph.output[0].name
    both = runtime(graph).run({entry: x, names[entry]: other, **more})
    alone = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for name, feed in ((answer, x), (names[answer], other)):
        expected = alone.run([answer], {entry: feed, **more})[0]
        np.testing.assert_allclose(both[name], expected, rtol=1e-5, atol=1e-6)  # float32, one optimised, one not


def test_weights_and_what_depends_on_no_input_are_shared():
    model = net(SHAPED, w=normal(6))
    graph, names = doubled(model)
    before = {tensor.name for tensor in model.graph.initializer}
    assert set(graph.graph.initializers) == before
    assert names.keys() == {"x", "s", "to", "f", "y"}  # not rest and h, which are made of constants
    assert all(copy == f"{name}.reference" for name, copy in names.items())
    added = {node.name for node in graph.graph} - {node.name for node in from_proto(model).model.graph}
    assert len(added) == 4 and all(name.endswith(".reference") for name in added)
    assert len(ir.to_proto(graph).graph.initializer) == len(before)


def test_rows_of_the_reference_are_its_own_where_streams_are_free_and_the_batch_elsewhere():
    for free, rows in ((True, "references"), (False, "N")):
        graph, names = doubled(relu_net(), free)
        shapes = {str(value.name): value.shape for value in (*graph.graph.inputs, *graph.graph.outputs)}
        assert [str(dim) for dim in shapes[names["x"]]] == [rows, "2", "6", "6"]
        assert [str(dim) for dim in shapes[names["logits"]]] == [rows, "4"]


def test_a_model_may_not_draw_at_random_between_the_two():
    model = net("g (float[N, 3] x) => (float[N, 3] y) { r = RandomNormalLike (x) y = Add (x, r) }")
    with pytest.raises(UnsupportedModel, match=r"RandomNormalLike.*draws at random"):
        doubled(model)


def test_a_name_that_the_model_has_is_refused():
    model = relu_net()
    model.graph.node[0].output[0] = model.graph.node[1].input[0] = "x.reference"
    with pytest.raises(UnsupportedModel, match=r"'x\.reference'.*Rename it"):
        doubled(model)


# -- a rule that reads it ---------------------------------------------------------------------------------------------


def rescale():
    """DeepLIFT's rescale rule: the multiplier of an activation is (y - y') / (x - x'), its derivative where x = x'."""

    def apply(op, node, m):
        dx = op.real(node.x) - op.reference(node.x)
        dy = op.real(node.y) - op.reference(node.y)
        near = op.Less(op.Abs(dx), 1e-6)
        (derivative,) = lookup(node).rule(op, node, m)
        return [Relevance(op.Where(near, derivative.value, m.value * op.Div(dy, op.Where(near, 1.0, dx))))]

    return apply


def differences(op, rs, x):
    return rs[0] * (op.real(x) - op.reference(x))


@pytest.fixture
def recipe(monkeypatch):
    entry = RuleEntry("rescale in a test", rescale, ("activation",), "Shrikumar et al. 2017", {})
    monkeypatch.setitem(RULES._entries, entry.name, entry)
    composite = Composite("rescale", (Assignment("type:Relu", has_type("Relu"), entry()),), relevance=False)
    return Propagation("rescale", composite, STARTS["seed"], Finish("differences", differences, differences))


def compiled(path, recipe, **request):
    source = load(path)
    asked = Request(**request)
    resolved = resolve(source.model, asked)
    return compile_graph(normalise(source, resolved.protected), resolved, recipe, asked)


MLP = """g (float[N, 5] x) => (float[N, 3] y) {
    a = Gemm <transB = 1> (x, w1, b1)
    b = Relu (a)
    c = Gemm <transB = 1> (b, w2, b2)
    d = Relu (c)
    y = Gemm <transB = 1> (d, w3)
}"""


@pytest.fixture
def mlp(tmp_path):
    weights = {"w1": normal(8, 5), "b1": normal(8, seed=1), "w2": normal(6, 8, seed=2), "b2": normal(6, seed=3)}
    onnx.save(net(MLP, **weights, w3=normal(3, 6, seed=4)), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


@pytest.mark.parametrize("rows, streams, references", [(4, 4, 1), (4, 4, 4), (1, 3, 1), (1, 3, 3)])
def test_contributions_of_the_rescale_rule_are_complete(recipe, mlp, rows, streams, references):
    """Sum of the contributions = f(x) - f(x'), whatever has one row and whatever has many."""
    found = compiled(mlp, recipe, reference=True)
    assert found.streams and found.references == {"x.reference": "x"}
    assert [v.name for v in found.model.graph.inputs] == ["x", "x.reference", "y.seed"]
    x, other = normal(rows, 5, seed=5), normal(references, 5, seed=6)
    seed = np.eye(3, dtype=np.float32)[np.arange(streams) % 3]
    answer = runtime(found.model, optimise=True).run({"x": x, "x.reference": other, "y.seed": seed})
    alone = onnxruntime.InferenceSession(str(mlp), providers=["CPUExecutionProvider"])
    difference = alone.run(None, {"x": x})[0] - alone.run(None, {"x": other})[0]
    assert answer["x.relevance"].shape == (streams, 5)
    np.testing.assert_allclose(
        answer["x.relevance"].sum(1), (difference * seed).sum(1), rtol=1e-4, atol=1e-4
    )  # float32, sums of some 10 terms of size 10


def test_weights_are_stored_once(recipe, mlp):
    graph = compiled(mlp, recipe, reference=True).model.graph
    assert {n for n, v in graph.initializers.items() if v.const_value.nbytes > 8} == {"w1", "b1", "w2", "b2", "w3"}


def test_contributions_of_a_convolutional_net_are_complete(recipe, tmp_path):
    weights = {"w1": normal(3, 2, 3, 3), "b1": normal(3, seed=1), "w2": normal(4, 108, seed=2)}
    text = """g (float[N, 2, 6, 6] x) => (float[N, 4] y) {
        a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1) b = Relu (a) f = Flatten (b) y = Gemm <transB = 1> (f, w2) }"""
    onnx.save(net(text, **weights), tmp_path / "m.onnx")
    found = compiled(tmp_path / "m.onnx", recipe, reference=True)
    x, other, seed = normal(2, 2, 6, 6), normal(1, 2, 6, 6, seed=1), np.eye(4, dtype=np.float32)[:2]
    answer = runtime(found.model).run({"x": x, "x.reference": other, "y.seed": seed})
    base = runtime(found.model).run({"x": other, "x.reference": other, "y.seed": seed[:1]})["y"]
    expected = ((answer["y"] - base) * seed).sum(1)
    np.testing.assert_allclose(answer["x.relevance"].sum((1, 2, 3)), expected, rtol=1e-4, atol=1e-3)  # float32


def test_what_users_run_is_verified_with_references_too(recipe, mlp):
    found = compiled(mlp, recipe, reference=True)
    normalised = normalise(load(mlp))
    asked = verification.questions(found, [normalised.reference])
    assert all("x.reference" in question.feeds for question in asked)
    plain = lambda: runtime(found.model)  # noqa: E731
    assert verification.verify(found, asked, ["y"], lambda: runtime(found.model, optimise=True), plain) == []


def test_a_rule_that_reads_a_reference_nobody_asked_for_is_refused(recipe, mlp):
    with pytest.raises(UsageError, match=r"reads a reference.*Request\(reference=True\)"):
        compiled(mlp, recipe)


def test_a_reference_that_no_rule_reads_is_refused(mlp):
    plain = Propagation("gradient", Composite("gradient", relevance=False), STARTS["seed"], FINISHES["gradient"])
    with pytest.raises(UsageError, match="no rule of gradient reads a reference"):
        compiled(mlp, plain, reference=True)


def test_without_it_a_compiled_graph_has_none():
    graph = Explainer(MODELS / "digits_cnn/1/model.onnx", "lrp").compiled
    assert not graph.references and "references" not in graph.provenance
    assert not [node.name for node in graph.model.graph if "reference" in (node.name or "")]
