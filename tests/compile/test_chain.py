"""CHAIN: what two models answer in turn, one model answers, and its gradient is the product of both."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from nets import MODELS, net, normal

from onnxplain import Explainer, chain, cut
from onnxplain.compile import save as saving
from onnxplain.errors import ConversionChanged, InputError, UnknownName, UnsupportedModel, UsageError

LATENT, CLASSES = 8, 4


def generator(opset=11, ir=6, batch="M", dtype="float"):
    """(M, 8) latent to pictures (M, 2, 6, 6): Gemm, Relu, ConvTranspose, Tanh."""
    return net(
        f"""g ({dtype}[{batch}, 8] z) => ({dtype}[{batch}, 2, 6, 6] image) {{
            h = Gemm <transB = 1> (z, w1, b1)
            r = Relu (h)
            s = Reshape (r, to)
            t = ConvTranspose <strides = [2, 2]> (s, w2)
            image = Tanh (t)
        }}""",
        opset,
        ir,
        w1=normal(36, LATENT, seed=1),
        b1=normal(36, seed=2),
        to=np.array([-1, 4, 3, 3]),
        w2=normal(4, 2, 2, 2, seed=3),
    )


def classifier(opset=18, batch="N", entry="picture", ir=8):
    """Pictures (N, 2, 6, 6) to 4 logits: Conv, Relu, Gemm."""
    return net(
        f"""c (float[{batch}, 2, 6, 6] {entry}) => (float[{batch}, 4] logits) {{
            h = Conv <pads = [1, 1, 1, 1]> ({entry}, w1, b1)
            r = Relu (h)
            f = Flatten (r)
            logits = Gemm <transB = 1> (f, w2)
        }}""",
        opset,
        ir,
        w1=normal(3, 2, 3, 3, seed=4),
        b1=normal(3, seed=5),
        w2=normal(CLASSES, 108, seed=6),
    )


def run(path, **feeds):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))


def shape(value):
    return [d.dim_param or d.dim_value or "?" for d in value.type.tensor_type.shape.dim]


@pytest.fixture
def write(tmp_path):
    def write(model, name, **options):
        onnx.save_model(model, tmp_path / name, **options)
        return tmp_path / name

    return write


@pytest.fixture
def join(write, tmp_path):
    """Chain two models; returns what was written and its protobuf, checked."""

    def join(first, second, **options):
        paths = write(first, "first.onnx"), write(second, "second.onnx")
        found = chain(*paths, tmp_path / "whole.onnx", **options)
        model = onnx.load(found.path)
        onnx.checker.check_model(model, full_check=True)
        return found, model

    return join


# -- values and gradients ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opsets", [(11, 18), (18, 11), (18, 18), (13, 21), (11, 13)])
def test_the_whole_answers_what_the_two_do_in_turn(opsets, join, write):
    found, model = join(generator(opsets[0]), classifier(opsets[1], ir=10))
    assert (found.inputs, found.outputs) == (("z",), ("logits",))
    version = opsets[0] if opsets[0] == opsets[1] else max(*opsets, 18)
    assert [o.version for o in model.opset_import if o.domain == ""] == [version]
    assert sum("raised" in note for note in found.notes) == sum(opset != version for opset in opsets)
    z = normal(3, LATENT)
    image = run(write(generator(), "g.onnx"), z=z)["image"]
    expected = run(write(classifier(), "c.onnx"), picture=image)["logits"]
    np.testing.assert_allclose(run(found.path, z=z)["logits"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("opsets", [(11, 18), (18, 11)])
def test_the_vector_jacobian_product_through_both_is_the_product_of_both(opsets, join, write):
    """The classifier's gradient at the picture, fed as seed to the generator, is the whole's gradient."""
    found, _ = join(generator(opsets[0]), classifier(opsets[1]))
    z, seed = normal(3, LATENT, seed=8), normal(3, CLASSES, seed=9)
    first, second = (Explainer(write(m, f"{n}.onnx"), "gradient") for n, m in (("g", generator()), ("c", classifier())))
    image = run(first.subject.source.path, z=z)["image"]
    middle = second.run(image, seed)["picture.relevance"]
    expected = first.run(z, middle)["z.relevance"]
    given = Explainer(found.path, "gradient").run(z, seed)["z.relevance"]
    np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())  # float32, 4 layers


def test_the_gradient_is_the_central_difference(join):
    found, _ = join(generator(), classifier())
    z, seed = normal(1, LATENT, seed=8), normal(1, CLASSES, seed=9)
    gradient = Explainer(found.path, "gradient").run(z, seed)["z.relevance"]
    eps, direction = 1e-3, normal(1, LATENT, seed=10)
    up, down = (float((run(found.path, z=z + s * eps * direction)["logits"] * seed).sum()) for s in (1, -1))
    # float32: a difference of values near 10 by 2e-3 has an error of some 1e-3
    np.testing.assert_allclose((gradient * direction).sum(), (up - down) / (2 * eps), rtol=1e-2, atol=1e-2)


def test_the_pieces_of_a_cut_are_chained_again(tmp_path):
    path = MODELS / "digits_cnn/1/model.onnx"
    head, tail = (cut(path, tmp_path / f"{end}.onnx", **{end: "/Relu_output_0"}) for end in ("to", "at"))
    whole = chain(head.path, tail.path, tmp_path / "whole.onnx")
    x = normal(2, 1, 28, 28)
    (name,) = whole.inputs
    assert whole.inputs == head.inputs and whole.outputs == tail.outputs
    assert not [note for note in whole.notes if "named" in note]
    np.testing.assert_allclose(
        run(whole.path, **{name: x})["logits"], run(path, **{name: x})["logits"], rtol=1e-5, atol=1e-5
    )
    weights = [{t.name for t in onnx.load(p).graph.initializer} for p in (path, whole.path)]
    assert weights[0] == weights[1]


# -- ports and names --------------------------------------------------------------------------------------------------


def test_open_lengths_take_the_number_or_the_name_they_meet(join):
    _, model = join(generator(batch="M"), classifier(batch="N"))
    assert shape(model.graph.input[0]) == ["M", 8] and shape(model.graph.output[0]) == ["M", 4]
    _, model = join(generator(batch="M"), classifier(batch="1"))
    assert shape(model.graph.input[0]) == [1, 8] and shape(model.graph.output[0]) == [1, 4]
    _, model = join(net(TWO), net(ONE.replace("L, 3", "3, L")), connect={"y": "p"})
    assert shape(model.graph.input[0]) == [3, 3]
    _, model = join(generator(batch="?"), classifier(batch="N"))
    assert shape(model.graph.input[0]) == ["N", 8] and shape(model.graph.output[0]) == ["N", 4]


def test_symbols_that_mean_other_lengths_stay_apart(join):
    first = net("a (float[N, 3] x, float[K, 3] u) => (float[N, 3] y, float[K, 3] v) { y = Relu (x) v = Exp (u) }")
    second = net("b (float[L, 3] y, float[K, 3] w) => (float[L, 3] p, float[K, 3] q) { p = Neg (y) q = Exp (w) }")
    _, model = join(first, second, connect={"y": "y"}, keep="v")
    assert {v.name: shape(v)[0] for v in (*model.graph.input, *model.graph.output)} == {
        "x": "N", "u": "K", "w": "K_2", "p": "N", "q": "K_2", "v": "K",
    }  # fmt: skip


def test_what_is_called_alike_is_connected_else_the_two_that_fit(join):
    pair = net("a (float[N, 3] x) => (float[N, 3] y, float[N, 2] v) { y = Relu (x) v = MatMul (x, w) }", w=normal(3, 2))
    found, _ = join(pair, net("b (float[N, 3] y) => (float[N, 3] p) { p = Neg (y) }"))
    assert found.notes[0] == "y feeds y"
    found, _ = join(pair, net("b (float[N, 2] z) => (float[N, 2] p) { p = Neg (z) }"))
    assert found.notes[0] == "v feeds z"


def test_an_output_feeds_several_inputs_and_others_stay(join):
    first = net("a (float[N, 3] x) => (float[N, 3] y, float[N, 3] v) { y = Relu (x) v = Exp (x) }")
    second = net("b (float[N, 3] p, float[N, 3] q, float[N, 3] r) => (float[N, 3] s) { o = Mul (p, q) s = Add (o, r) }")
    found, model = join(first, second, connect={"y": ["p", "q"]}, keep=["y"])
    assert (found.inputs, found.outputs) == (("x", "r"), ("s", "y"))
    assert "Exp" not in {n.op_type for n in model.graph.node}  # v is nobody's
    x, r = normal(2, 3), normal(2, 3, seed=1)
    np.testing.assert_allclose(run(found.path, x=x, r=r)["s"], np.maximum(x, 0) ** 2 + r, rtol=1e-6)


def test_an_input_that_no_output_needs_is_gone_and_said(join):
    first = net("a (float[N, 3] x, float[N, 3] u) => (float[N, 3] y, float[N, 3] v) { y = Relu (x) v = Exp (u) }")
    found, _ = join(first, net("b (float[N, 3] y) => (float[N, 3] p) { p = Neg (y) }"))
    assert found.inputs == ("x",) and "u is no longer an input: no output needs it" in found.notes


def test_ports_of_the_whole_keep_their_names_if_they_can(join, write, tmp_path):
    """input → output twice: the inner tensor gives way; of two ports the second model's does, and it is said."""
    first = net("a (float[N, 3] input) => (float[N, 3] output) { h = Relu (input) output = Mul (h, w) }", w=normal(3))
    second = net(
        "b (float[N, 3] input) => (float[N, 3] output) { h = Exp (input) output = Mul (h, w) }", w=normal(3, seed=1)
    )
    found, model = join(first, second)
    assert (found.inputs, found.outputs) == (("input",), ("output",)) and not any("named" in n for n in found.notes)
    made = [name for node in model.graph.node for name in node.output]
    assert made == ["h", "first/output", "second/h", "output"]
    assert {t.name for t in model.graph.initializer} == {"w", "second/w"}
    assert len({n.name for n in model.graph.node}) == 4
    found, _ = join(first, second, keep="output")
    assert found.outputs == ("second/output", "output")
    assert any("output of the second model is named second/output" in note for note in found.notes)
    x = normal(2, 3)
    h = np.maximum(x, 0) * normal(3)
    np.testing.assert_allclose(run(found.path, input=x)["second/output"], np.exp(h) * normal(3, seed=1), rtol=1e-5)


def test_names_inside_bodies_are_kept_apart(join):
    text = """g (float[N, 3] x, bool c) => (float[N, 3] x2) {{
        k = Relu (x)
        x2 = If (c) <then_branch = t () => (float[N, 3] a) {{ {0} = Exp (k) a = Mul ({0}, w) }},
                     else_branch = e () => (float[N, 3] b) {{ b = Add (x, k) }}>
    }}"""
    first, second = net(text.format("h"), w=normal(3)), net(text.format("x2b"), w=normal(3, seed=1))
    found, _ = join(first, second, connect={"x2": "x"})
    assert found.inputs == ("x", "c", "second/c")
    x, off = normal(2, 3), np.array(False)
    once = x + np.maximum(x, 0)
    answer = run(found.path, x=x, c=off, **{"second/c": off})
    np.testing.assert_allclose(answer["x2"], once + np.maximum(once, 0), rtol=1e-6)


LOCAL = """<ir_version: 8, opset_import: ["" : 18, "own" : 1], metadata_props: ["k": "{0}"]>
g (float[N, 3] {1}) => (float[N, 3] {2}) {{ {2} = own.f ({1}) }}
<domain: "own", opset_import: ["" : 18, "own" : 1]> f (v) => (u) {{ w = own.g (v) u = {0} (w, w) }}
<domain: "own", opset_import: ["" : 18]> g (v) => (u) {{ u = Exp (v) }}
"""


def local(op, entry, result):
    return onnx.parser.parse_model(LOCAL.format(op, entry, result))


def test_local_functions_are_shared_where_they_are_the_same_and_renamed_where_not(join):
    found, model = join(local("Add", "x", "y"), local("Add", "y", "z"))
    assert sorted(f.name for f in model.functions) == ["f", "g"]
    x = normal(2, 3) / 4
    np.testing.assert_allclose(run(found.path, x=x)["z"], 2 * np.exp(2 * np.exp(x)), rtol=1e-5)
    found, model = join(local("Add", "x", "y"), local("Mul", "y", "z"))
    assert sorted(f.name for f in model.functions) == ["f", "f_2", "g"]
    assert any("renamed: own.f_2" in note for note in found.notes)
    np.testing.assert_allclose(run(found.path, x=x)["z"], np.exp(2 * np.exp(x)) ** 2, rtol=1e-5)
    assert {p.key: p.value for p in model.metadata_props} == {"k": "Add", "second/k": "Mul"}


def test_a_function_that_calls_another_one_is_another(join):
    text = LOCAL.replace("{0} (w, w)", "Add (w, w)").replace("Exp (v)", "{0} (v)")
    first, second = (onnx.parser.parse_model(text.format(*names)) for names in (("Exp", "x", "y"), ("Neg", "y", "z")))
    found, model = join(first, second)
    assert sorted(f.name for f in model.functions) == ["f", "f_2", "g", "g_2"]
    x = normal(2, 3)
    np.testing.assert_allclose(run(found.path, x=x)["z"], -4 * np.exp(x), rtol=1e-5)


def test_functions_of_a_model_that_is_raised_are_inlined(join):
    old = onnx.parser.parse_model(LOCAL.format("Add", "x", "y").replace('"" : 18', '"" : 13'))
    found, _ = join(old, local("Mul", "y", "z"))
    assert any("opset 13 to 18 and its functions inlined" in note for note in found.notes)
    x = normal(2, 3) / 4
    np.testing.assert_allclose(run(found.path, x=x)["z"], np.exp(2 * np.exp(x)) ** 2, rtol=1e-5)


# -- weights ----------------------------------------------------------------------------------------------------------


def test_external_weights_of_both_stay_beside_the_whole(write, tmp_path):
    wide = "g (float[N, 64] {0}) => (float[N, 64] {1}) {{ {1} = MatMul ({0}, {2}) }}"
    first = write(
        net(wide.format("x", "y", "w"), w=normal(64, 64)),
        "a.onnx",
        save_as_external_data=True,
        location="a.data",
        size_threshold=0,
    )
    second = write(
        net(wide.format("y", "z", "w"), w=normal(64, 64, seed=1)),
        "b.onnx",
        save_as_external_data=True,
        location="b.data",
        size_threshold=0,
    )
    chain(first, second, tmp_path / "whole.onnx")
    assert not (tmp_path / "whole.onnx.data").exists() and (tmp_path / "whole.onnx").stat().st_size < 2000
    (tmp_path / "other").mkdir()
    found = chain(first, second, tmp_path / "other/whole.onnx")
    assert (tmp_path / "other/whole.onnx.data").stat().st_size == 2 * 4 * 64 * 64
    x = normal(1, 64)
    expected = x @ normal(64, 64) @ normal(64, 64, seed=1)
    np.testing.assert_allclose(run(found.path, x=x)["z"], expected, rtol=1e-3, atol=1e-3)


def test_models_above_the_limit_of_one_file_are_chained(join, tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "INLINE_LIMIT", 1000)
    join(generator(), classifier())
    assert (tmp_path / "whole.onnx.data").stat().st_size > 1000


# -- what does not fit ------------------------------------------------------------------------------------------------

TWO = "a (float[N, 3] x) => (float[N, 3] y, float[N, 3] v) { y = Relu (x) v = Exp (x) }"
ONE = "b (float[L, 3] p) => (float[L, 3] q) { q = Neg (p) }"


@pytest.mark.parametrize(
    "first, second, options, error, says",
    [
        (TWO, ONE, {}, UsageError,
         r"not clear \(fitting: y=p, v=p\).*y float\[N, 3\].*p float\[L, 3\].*--connect OUT=IN"),
        (TWO, ONE, {"connect": {"yy": "p"}}, UnknownName, "no output of the first model named 'yy'"),
        (TWO, ONE, {"connect": {"y": "x"}}, UnknownName, "no input of the second model named 'x'"),
        (TWO, ONE, {"connect": {"y": "p", "v": "p"}}, UsageError, "p of the second model is fed twice, by y and v"),
        (TWO, ONE, {"connect": {}}, UsageError, "nothing is connected"),
        (TWO, ONE, {"connect": {"y": "p"}, "keep": "w"}, UnknownName, "no output of the first model named 'w'"),
        (TWO, ONE, {"connect": {"y": "p"}, "keep": ["v", "v"]}, UsageError, "--keep v: named twice"),
        (TWO, ONE.replace("3", "4"), {"connect": {"y": "p"}}, UnsupportedModel,
         r"y float\[N, 3\].*p float\[L, 4\].*axis 1 is 3 in the one and 4 in the other"),
        (TWO, ONE.replace("float", "double"), {"connect": {"y": "p"}}, UnsupportedModel,
         r"y float.*p double.*types differ"),
        (TWO, ONE.replace("L, 3", "L, 1, 3"), {"connect": {"y": "p"}}, UnsupportedModel, "2 and 3 axes"),
    ],
    ids=range(10),
)  # fmt: skip
def test_what_does_not_fit_is_one_line(first, second, options, error, says, write, tmp_path):
    paths = write(net(first), "a.onnx"), write(net(second), "b.onnx")
    with pytest.raises(error, match=says) as raised:
        chain(*paths, tmp_path / "w.onnx", **options)
    assert "\n" not in str(raised.value) and not (tmp_path / "w.onnx").exists()


def test_lengths_that_two_connections_need_differently_are_refused(write, tmp_path):
    second = net("b (float[1, 3] p, float[2, 3] r) => (float[2, 3] q) { q = Add (p, r) }")
    with pytest.raises(UnsupportedModel, match=r"v float\[N, 3\].*r float\[2, 3\].*axis 0 is 1 in the one and 2"):
        chain(write(net(TWO), "a.onnx"), write(second, "b.onnx"), tmp_path / "w.onnx", connect={"y": "p", "v": "r"})


def test_a_sequence_is_not_fed(write, tmp_path):
    first = net("a (float[N, 3] x) => (seq(float[N, 3]) y) { y = SequenceConstruct (x) }")
    with pytest.raises(UnsupportedModel, match="y is not known to be a tensor"):
        chain(write(first, "a.onnx"), write(net(ONE), "b.onnx"), tmp_path / "w.onnx")


def scaler(version, entry, result, op="Scaler"):
    attributes = {"Scaler": {"offset": [0.0], "scale": [2.0]}, "Normalizer": {"norm": "L2"}}[op]
    node = onnx.helper.make_node(op, [entry], [result], domain="ai.onnx.ml", **attributes)
    ports = [[onnx.helper.make_tensor_value_info(n, 1, ["N", 3])] for n in (entry, result)]
    opsets = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("ai.onnx.ml", version)]
    return onnx.helper.make_model(onnx.helper.make_graph([node], "g", *ports), opset_imports=opsets, ir_version=8)


def test_domains_come_to_one_version_where_the_ops_mean_the_same_and_are_refused_by_name_elsewhere(join, monkeypatch):
    found, model = join(scaler(1, "x", "y"), scaler(3, "y", "z"))
    assert {o.domain: o.version for o in model.opset_import}["ai.onnx.ml"] == 3
    x = normal(2, 3)
    np.testing.assert_allclose(run(found.path, x=x)["z"], 4 * x, rtol=1e-6)
    schema = onnx.defs.get_schema

    class Other:
        def __init__(self, version):
            self.since_version = version

    changed = lambda op, version, domain: Other(version) if domain == "ai.onnx.ml" else schema(op, version, domain)  # noqa: E731
    monkeypatch.setattr("onnxplain.compile.reconcile.onnx.defs.get_schema", changed)
    with pytest.raises(UnsupportedModel, match=r"version 1 of the domain ai.onnx.ml, the second version 3.*Scaler"):
        join(scaler(1, "x", "y"), scaler(3, "y", "z"))


def test_neither_model_is_overwritten(write):
    first, second = write(generator(), "a.onnx"), write(classifier(), "b.onnx")
    for path in (first, second):
        with pytest.raises(InputError, match="it is a model that is read"):
            chain(first, second, path)


def test_a_whole_that_answers_otherwise_is_not_written(join, tmp_path, monkeypatch):
    def wrong(model, to):
        from onnxplain.frontend.passes.opset import raise_opset

        raised = raise_opset(model, to)
        next(node for node in raised.graph if node.op_type == "Relu").op_type = "Abs"
        return raised

    monkeypatch.setattr("onnxplain.compile.reconcile.raise_opset", wrong)
    with pytest.raises(ConversionChanged, match="answers differently"):
        join(generator(11), classifier(18))
    assert not (tmp_path / "whole.onnx").exists()
