"""CUT: the tail of a model fed the head's value is the whole, its gradients too; what cannot be cut is said."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from nets import MODELS, net, normal, relu_net

import onnxplain
from onnxplain import Explainer, cut
from onnxplain.compile import save as saving
from onnxplain.compile.cut import cut_graph, typed
from onnxplain.errors import ConversionChanged, InputError, UnknownName, UnsupportedModel, UsageError
from onnxplain.frontend.load import load
from onnxplain.frontend.verify import reference
from onnxplain.graph.outline import runtime

MOBILENET = MODELS / "mobilenet_v2/1/model.onnx"


def run(path, **feeds):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))


def ports(path):
    graph = onnx.load(path, load_external_data=False).graph
    return [v.name for v in graph.input], [v.name for v in graph.output]


@pytest.fixture
def write(tmp_path):
    def write(model, name="m.onnx", **options):
        onnx.save_model(model, tmp_path / name, **options)
        return tmp_path / name

    return write


# -- every layer of a real network ------------------------------------------------------------------------------------


@functools.cache
def mobilenet():
    source = load(MOBILENET)
    names = [str(n.outputs[0].name) for n in source.model.graph if n.op_type != "Constant"][:-1]
    return source, names, reference(source, names, shapes={"input": (1, 3, 224, 224)})


def layers():
    return mobilenet()[1]


def test_the_head_and_the_tail_of_mobilenet_at_every_layer_are_the_whole():
    """About 100 cuts: the tail, fed what the whole has there, answers what the whole does; the head gives just that.

    Inside a residual block the input stays an input: the block adds to what does not pass through the layer.
    """
    source, names, whole = mobilenet()
    assert len(names) > 90
    model, alone = typed(source, names, [], whole), 0
    for name in names:
        tail, head = model.clone(), model.clone()
        notes = cut_graph(tail, [name])
        cut_graph(head, [], [name])
        inputs = [str(value.name) for value in tail.graph.inputs]
        assert inputs == [name, *(["input"] if notes else [])] and str(tail.graph.inputs[0].shape[0]) == "N"
        assert [v.name for v in head.graph.inputs] == ["input"] and [v.name for v in head.graph.outputs] == [name]
        alone += not notes
        fed = {**whole.feeds, **whole.outputs}
        found = runtime(tail).run({entry: fed[entry] for entry in inputs})["logits"]
        np.testing.assert_array_equal(found, whole.outputs["logits"])  # the same kernels on the same numbers
        given = {**tail.graph.initializers, **head.graph.initializers}
        assert given.keys() == source.model.graph.initializers.keys()
        if name in names[::10]:
            np.testing.assert_array_equal(runtime(head).run(whole.feeds)[name], whole.outputs[name])
    assert alone > 40


@pytest.mark.parametrize("layer", range(4))
@pytest.mark.parametrize("method", ["gradient", "lrp"])
def test_a_relevance_at_a_layer_of_mobilenet_is_the_tails_relevance_of_its_input(layer, method, tmp_path):
    _, names, whole = mobilenet()
    relus = [name for name in names if "Clip" in name or "Add" in name]
    name = relus[layer * (len(relus) - 1) // 3]
    composite = {"composite": "epsilon"} if method == "lrp" else {}  # without a rule for the first layer, another there
    part = cut(MOBILENET, tmp_path / "tail.onnx", at=name, shapes={"input": (1, 3, 224, 224)})
    tail = Explainer(part.path, method, **composite)
    full = Explainer(MOBILENET, method, attribute_to=name, keep=name, **composite)
    seed = np.zeros((1, 1000), np.float32)
    seed[0, 7] = 1
    expected = full.run(whole.feeds, seed)
    found = tail.run({v: {**whole.feeds, **expected}[v] for v in part.inputs}, seed)[f"{name}.relevance"]
    expected = expected[f"{name}.relevance"]
    # float32; the two are optimised differently, and LRP divides by sums that nearly cancel
    assert np.linalg.norm(found - expected) <= 1e-3 * np.linalg.norm(expected)


# -- what a part is ---------------------------------------------------------------------------------------------------


def test_head_then_tail_is_the_whole_and_both_are_valid(write, tmp_path):
    path = write(relu_net())
    head, tail = cut(path, tmp_path / "h.onnx", to="r1"), cut(path, tmp_path / "t.onnx", at="r1")
    assert (head.inputs, head.outputs, tail.inputs, tail.outputs) == (("x",), ("r1",), ("r1",), ("logits",))
    for part in (head, tail):
        onnx.checker.check_model(part.path, full_check=True)
    x = normal(3, 2, 6, 6)
    inner = run(head.path, x=x)["r1"]
    np.testing.assert_allclose(run(tail.path, r1=inner)["logits"], run(path, x=x)["logits"], rtol=1e-5, atol=1e-5)
    weights = [{t.name for t in onnx.load(part.path).graph.initializer} for part in (head, tail)]
    assert weights == [{"w1", "b1"}, {"w2", "b2", "w3", "b3"}]
    entry = onnx.load(tail.path).graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in entry] == ["N", 3, 6, 6]


def test_a_middle_has_both_ends(write, tmp_path):
    part = cut(write(relu_net()), tmp_path / "p.onnx", at="r1", to=["c2", "r2"])
    assert ports(part.path) == (["r1"], ["c2", "r2"])


def test_an_input_that_is_needed_by_another_way_stays_and_is_said(write, tmp_path):
    model = net("g (float[N, 3] x) => (float[N, 3] y) { a = Relu (x) b = Exp (a) y = Add (b, x) }")
    path = write(model)
    part = cut(path, tmp_path / "t.onnx", at="a")
    assert part.inputs == ("a", "x") and any("x stays an input: Add_2 (Add)" in note for note in part.notes)
    x = normal(2, 3)
    np.testing.assert_allclose(run(part.path, a=np.maximum(x, 0), x=x)["y"], run(path, x=x)["y"], rtol=1e-6)


def test_several_tensors_are_cut_at_once(write, tmp_path):
    model = net("""g (float[N, 4] x) => (float[N, 2] y, float[N, 2] z) {
        a, b = Split <axis = 1, num_outputs = 2> (x) c = Relu (a) d = Exp (b) y = Add (c, d) z = Mul (a, d) }""")
    path = write(model)
    part = cut(path, tmp_path / "t.onnx", at=["d", "a"])
    assert part.inputs == ("d", "a") and part.outputs == ("y", "z")
    part = cut(path, tmp_path / "t.onnx", at="a")  # the node that made it lives on, for b
    assert part.inputs == ("a", "x")
    x = normal(2, 4)
    whole, found = run(path, x=x), run(part.path, x=x, a=normal(2, 2))
    assert not np.allclose(found["y"], whole["y"])
    np.testing.assert_allclose(run(part.path, x=x, a=x[:, :2])["z"], whole["z"], rtol=1e-6)


def test_an_output_that_is_cut_is_passed_through(write, tmp_path):
    model = net("g (float[N, 3] x) => (float[N, 3] a, float[N, 3] y) { a = Relu (x) y = Exp (a) }")
    part = cut(write(model), tmp_path / "t.onnx", at="a")
    assert part.inputs == ("a",) and part.outputs == ("a", "y")
    a = normal(2, 3)
    np.testing.assert_array_equal(run(part.path, a=a)["a"], a)


def test_tensors_that_bodies_read_are_cut_too_and_weights_of_bodies_stay(write, tmp_path):
    model = net(
        """g (float[N, 3] x, bool c) => (float[N, 3] y) {
            h = Relu (x) k = Exp (h)
            y = If (c) <then_branch = t () => (float[N, 3] a) { a = Mul (k, w) },
                        else_branch = e () => (float[N, 3] b) { b = Add (h, k) }>
        }""",
        w=normal(3),
    )
    path = write(model)
    part = cut(path, tmp_path / "t.onnx", at=["k", "h"])
    assert part.inputs == ("k", "h", "c")
    x = normal(2, 3)
    h = np.maximum(x, 0)
    for c in (True, False):
        found = run(part.path, k=np.exp(h), h=h, c=np.array(c))["y"]
        np.testing.assert_allclose(found, run(path, x=x, c=np.array(c))["y"], rtol=1e-6)
    head = cut(path, tmp_path / "h.onnx", to="k")  # the If goes, with what it reads
    assert ports(head.path) == (["x"], ["k"]) and not onnx.load(head.path).graph.initializer


FUNCTIONS = """<ir_version: 8, opset_import: ["" : 17, "local" : 1], producer_name: "us", metadata_props: ["a": "b"]>
g (float[N, 3] x) => (float[N, 3] y) { a = local.twice (x) b = Relu (a) y = local.plus (b) }
<domain: "local", opset_import: ["" : 17, "local" : 1]> twice (v) => (u) { u = Add (v, v) }
<domain: "local", opset_import: ["" : 17, "local" : 1]> plus (v) => (u) { w = local.once (v) u = Add (w, v) }
<domain: "local", opset_import: ["" : 17, "local" : 1]> once (v) => (u) { u = Exp (v) }
"""


def test_the_file_is_cut_as_written(write, tmp_path):
    """Opset, functions that are called, metadata: as they were; what nobody calls is gone."""
    path = write(onnx.parser.parse_model(FUNCTIONS))
    tail, head = cut(path, tmp_path / "t.onnx", at="b"), cut(path, tmp_path / "h.onnx", to="b")
    models = [onnx.load(part.path) for part in (tail, head)]
    assert [sorted(f.name for f in model.functions) for model in models] == [["once", "plus"], ["twice"]]
    for model in models:
        onnx.checker.check_model(model)
        assert {o.domain: o.version for o in model.opset_import} == {"": 17, "local": 1}
        assert model.ir_version == 8 and model.producer_name == "us" and model.metadata_props[0].value == "b"
    model = cut(path, tmp_path / "n.onnx", at="a", to="b").path
    assert [o.domain for o in onnx.load(model).opset_import] == [""]  # nobody calls a function in between


def test_an_old_model_keeps_its_opset_and_weights_are_no_inputs(write, tmp_path):
    model = net("g (float[N, 3] x, float[3] w) => (float[N, 3] y) { a = Relu (x) y = Mul (a, w) }", 9, 3, w=normal(3))
    part = cut(write(model), tmp_path / "t.onnx", at="a")
    assert part.inputs == ("a",) and any("being weights: w" in note for note in part.notes)
    found = onnx.load(part.path)
    assert found.opset_import[0].version == 9 and found.ir_version >= 4
    onnx.checker.check_model(found)


def test_shapes_that_nobody_knows_are_left_open_but_for_their_rank(write, tmp_path):
    model = net(
        "g (float[N, K] x) => (float y) { n = NonZero (x) f = Cast <to = 1> (n) y = ReduceSum <keepdims=0> (f) }"
    )
    part = cut(write(model), tmp_path / "t.onnx", at="f")
    shape = onnx.load(part.path).graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in shape] == [2, ""] or len(shape) == 2
    assert run(part.path, f=normal(2, 5))["y"].shape == ()


def test_integers_are_cut_as_well(write, tmp_path):
    model = net(
        "g (float[N, 3] x) => (float[N, 2] y) { i = ArgMax <axis=1, keepdims=0> (x) y = Gather (w, i) }", w=normal(3, 2)
    )
    part = cut(write(model), tmp_path / "t.onnx", at="i")
    assert run(part.path, i=np.array([2]))["y"].shape == (1, 2)


def test_a_tail_of_a_compiled_graph_has_no_provenance(write, tmp_path):
    Explainer(write(relu_net()), "gradient").save(tmp_path / "g.onnx")
    part = cut(tmp_path / "g.onnx", tmp_path / "t.onnx", to="r1")
    assert any("provenance" in note for note in part.notes)
    assert not onnx.load(part.path).metadata_props


def test_what_draws_at_random_is_run_and_not_compared(write, tmp_path):
    model = net("g (float[N, 3] x) => (float[N, 3] y) { a = Relu (x) r = RandomNormalLike (a) y = Add (a, r) }")
    part = cut(write(model), tmp_path / "t.onnx", at="a")
    assert any("not compared" in note and "draws at random" in note for note in part.notes)
    assert cut(write(model), tmp_path / "t.onnx", at="r").inputs == ("r", "x")


def wide():
    text = "g (float[N, 64] x) => (float[N, 64] y) { a = MatMul (x, w) b = Relu (a) y = MatMul (b, v) }"
    return net(text, w=normal(64, 64), v=normal(64, 64, seed=1))


def test_external_weights_stay_beside_the_part_and_are_copied_once_elsewhere(write, tmp_path):
    path = write(wide(), save_as_external_data=True, location="w.data", size_threshold=0)
    beside = cut(path, tmp_path / "t.onnx", at="b")
    assert not (tmp_path / "t.onnx.data").exists() and run(beside.path, b=normal(1, 64))
    (tmp_path / "other").mkdir()
    cut(path, tmp_path / "other/t.onnx", at="b")
    sizes = {p.name: p.stat().st_size for p in (tmp_path / "other").iterdir()}
    assert sizes.keys() == {"t.onnx", "t.onnx.data"} and 4 * 64 * 64 <= sizes["t.onnx.data"] < 5 * 64 * 64  # v only


def test_a_model_above_the_limit_of_one_file_is_cut(write, tmp_path, monkeypatch):
    path = write(wide())
    monkeypatch.setattr(saving, "INLINE_LIMIT", 1000)
    part = cut(path, tmp_path / "t.onnx", at="b")
    assert (tmp_path / "t.onnx.data").stat().st_size > 1000 and run(part.path, b=normal(1, 64))


# -- what cannot be cut -----------------------------------------------------------------------------------------------

SIDES = """g (float[N, 3] x, bool c) => (float[N, 3] y) {
    k = Constant <value_floats = [1.0, 2.0, 3.0]> ()
    l = Exp (k) a = Relu (x) unused = Neg (a) s = SequenceConstruct (a, x) at = SequenceAt (s, zero)
    b = Mul (at, l) d = Add (b, w)
    y = If (c) <then_branch = t () => (float[N, 3] p) { p = Exp (d) },
                else_branch = e () => (float[N, 3] q) { q = Neg (d) }>
}"""


@pytest.mark.parametrize(
    "ends, error, says",
    [
        ({}, UsageError, "nothing to cut"),
        ({"at": "aa"}, UnknownName, r"no tensor named 'aa'. Did you mean .*a"),
        ({"at": "w"}, UsageError, "--at w: it is a constant.*such as a,"),
        ({"at": "k"}, UsageError, "--at k: it is a constant"),
        ({"to": "l"}, UsageError, "--to l: it is a constant"),
        ({"at": "x"}, UsageError, "--at x: it is an input of the model already"),
        ({"to": "x"}, UsageError, "--to x: it is an input"),
        ({"at": "unused"}, UsageError, "--at unused: y does not depend on it"),
        ({"at": ["a", "d"]}, UsageError, "--at a: every way from it to y leads through d"),
        ({"at": ["a", "a"]}, UsageError, "--at a: named twice"),
        ({"at": "a", "to": "a"}, UsageError, "nothing lies between a tensor and itself"),
        ({"at": "b", "to": "a"}, UsageError, "--at b: a does not depend on it"),
        ({"at": "s"}, UnsupportedModel, "--at s: it is a sequence"),
        ({"to": "s"}, UnsupportedModel, "s: it is a sequence"),
        ({"at": "p"}, UsageError, r"--at p: it lies inside .*\(If\). The nearest is y"),
        ({"at": "y"}, UsageError, "nothing lies between y and"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_cut_is_one_line(ends, error, says, write, tmp_path):
    path = write(net(SIDES, w=normal(3), zero=np.array(0)))
    with pytest.raises(error, match=says) as raised:
        cut(path, tmp_path / "t.onnx", **ends)
    assert "\n" not in str(raised.value) and not (tmp_path / "t.onnx").exists()


def test_the_model_itself_is_not_overwritten(write):
    path = write(relu_net())
    with pytest.raises(InputError, match="it is a model that is read"):
        cut(path, path, at="r1")


def test_a_part_that_answers_otherwise_is_not_written(write, tmp_path, monkeypatch):
    def wrong(model, at, to):
        notes = cut_graph(model, at, to)
        weight = model.graph.initializers["w3"]
        weight.const_value = ir.tensor(weight.const_value.numpy() * 1.1, name="w3")
        return notes

    monkeypatch.setattr("onnxplain.compile.cut.cut_graph", wrong)
    with pytest.raises(ConversionChanged, match="answers differently"):
        cut(write(relu_net()), tmp_path / "t.onnx", at="r1")
    assert not (tmp_path / "t.onnx").exists()


def test_it_is_public():
    assert {"cut", "chain"} <= set(onnxplain.__all__)


@pytest.mark.parametrize("op, attributes", [("Bernoulli", ""), ("Multinomial", "<sample_size = 3>")])
def test_draws_from_constants_are_no_constants(op, attributes, write, tmp_path):
    text = f"g (float[2, 3] x) => (float[2, 3] y) {{ r = {op} {attributes} (w) f = Cast <to = 1> (r) y = Mul (x, f) }}"
    path = write(net(text, w=np.full((2, 3), 0.5, np.float32)))
    assert cut(path, tmp_path / "t.onnx", at="f").inputs == ("f", "x")
