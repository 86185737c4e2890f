"""Laws of normalisation: the answers stay, names asked for stay, doing it twice changes nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from onnxplain.cpu_session import CpuSession
from onnxplain.errors import ConversionChanged, UnknownName, UnsupportedModel
from onnxplain.frontend import normalise as module
from onnxplain.frontend.bisection import apply_verified
from onnxplain.frontend.compare import mismatch
from onnxplain.frontend.load import from_proto, load
from onnxplain.frontend.normalise import normalise
from onnxplain.frontend.passes import affine
from onnxplain.frontend.verify import reference, second
from onnxplain.graph.outline import runtime

MODELS = sorted(Path(__file__).parents[2].glob("models/*/*/model.onnx"))


def model(text: str, **weights: np.ndarray) -> onnx.ModelProto:
    proto = parser.parse_model(text)
    for name, array in weights.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    return proto


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def graph(body: str, inputs: str, outputs: str, opset: int = 18, ir_version: int = 8) -> str:
    return f'<ir_version: {ir_version}, opset_import: ["" : {opset}]> g ({inputs}) => ({outputs}) {{ {body} }}'


def ops(result) -> dict[str, int]:
    return dict(Counter(node.op_type for node in result.model.graph))


def batch_norm(channels: int, seed: int = 5) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    gamma = rng.standard_normal(channels).astype(np.float32)  # half of them negative
    return {
        "gamma": gamma,
        "beta": weights(channels, seed=seed + 1),
        "mean": weights(channels, seed=seed + 2),
        "var": rng.uniform(0.1, 2, channels).astype(np.float32),
    }


def same_answers(proto: onnx.ModelProto, *feeds: dict[str, np.ndarray], keep=()):
    """Normalise and compare with plain onnxruntime on inputs the verification has not seen."""
    result = normalise(from_proto(proto), keep)
    onnx.checker.check_model(ir.to_proto(result.model))
    before, after = CpuSession(proto.SerializeToString()), runtime(result.model)
    for feed in feeds:
        assert mismatch(before.run(feed), after.run(feed)) is None
    return result


IMAGE = {"x": weights(3, 4, 9, 7, seed=11)}
CONV = "c = Conv <pads = [1, 1, 1, 1]> (x, w, b)"
BN = "BatchNormalization <epsilon = 0.01> (c, gamma, beta, mean, var)"


@pytest.mark.parametrize(
    ("layer", "sizes"),
    [
        ("c = Conv <pads = [1, 1, 1, 1]> (x, w)", {"w": (6, 4, 3, 3)}),
        (CONV, {"w": (6, 4, 3, 3), "b": (6,)}),
        ("c = Conv <group = 2> (x, w, b)", {"w": (6, 2, 3, 3), "b": (6,)}),
        ("c = ConvTranspose <strides = [2, 2]> (x, w, b)", {"w": (4, 6, 3, 3), "b": (6,)}),
        ("c = ConvTranspose <group = 2> (x, w)", {"w": (4, 3, 3, 3)}),
    ],
)
def test_batch_normalisation_folds_into_the_convolution_before_it(layer, sizes):
    given = {name: weights(*shape, seed=i) for i, (name, shape) in enumerate(sizes.items())} | batch_norm(6)
    text = graph(f"{layer} n = {BN} y = Relu (n)", "float[N, 4, H, W] x", "float[N, 6, P, Q] y")
    result = same_answers(model(text, **given), IMAGE)
    assert set(ops(result)) == {layer.split("= ")[1].split(" ")[0].split("<")[0].strip(), "Relu"}


@pytest.mark.parametrize("trans", [0, 1])
def test_batch_normalisation_folds_into_gemm_with_alpha_and_beta(trans):
    shape = (6, 4) if trans else (4, 6)
    body = f"c = Gemm <alpha = 0.5, beta = 2.0, transB = {trans}> (x, w, b) y = {BN}"
    given = {"w": weights(*shape), "b": weights(6, seed=1)} | batch_norm(6)
    result = same_answers(model(graph(body, "float[N, 4] x", "float[N, 6] y"), **given), {"x": weights(5, 4, seed=9)})
    assert ops(result) == {"Gemm": 1}


def test_scale_and_shift_written_as_arithmetic_fold_too():
    body = f"{CONV} s = Sub (c, mean) d = Div (s, var) m = Mul (gamma, d) y = Add (m, beta)"
    given = {k: v.reshape(6, 1, 1) for k, v in batch_norm(6).items()} | {
        "w": weights(6, 4, 3, 3),
        "b": weights(6, seed=1),
    }
    result = same_answers(model(graph(body, "float[N, 4, H, W] x", "float[N, 6, P, Q] y"), **given), IMAGE)
    assert ops(result) == {"Conv": 1}


def test_a_transpose_lets_channels_last_arithmetic_pass():
    body = f"{CONV} t = Transpose <perm = [0, 2, 3, 1]> (c) m = Mul (t, gamma) y = Add (m, beta)"
    given = batch_norm(6) | {"w": weights(6, 4, 3, 3), "b": weights(6, seed=1)}
    del given["mean"], given["var"]
    result = same_answers(model(graph(body, "float[N, 4, H, W] x", "float[N, P, Q, 6] y"), **given), IMAGE)
    assert ops(result) == {"Conv": 1, "Transpose": 1}


def test_arithmetic_along_another_axis_stays():
    body = f"{CONV} y = Mul (c, rows)"
    given = {"w": weights(6, 4, 3, 3), "b": weights(6), "rows": weights(9, 1)}
    result = same_answers(model(graph(body, "float[N, 4, 9, W] x", "float[N, 6, 9, Q] y"), **given), IMAGE)
    assert ops(result) == {"Conv": 1, "Mul": 1}


def test_batch_normalisation_before_the_convolution_stays():
    body = "n = BatchNormalization (x, gamma, beta, mean, var) y = Conv (n, w)"
    given = batch_norm(4) | {"w": weights(6, 4, 3, 3)}
    result = same_answers(model(graph(body, "float[N, 4, H, W] x", "float[N, 6, P, Q] y"), **given), IMAGE)
    assert ops(result) == {"BatchNormalization": 1, "Conv": 1}


def test_a_tensor_that_is_read_twice_is_not_folded():
    body = f"{CONV} n = {BN} y = Add (n, c)"
    given = batch_norm(6) | {"w": weights(6, 4, 3, 3), "b": weights(6)}
    result = same_answers(model(graph(body, "float[N, 4, H, W] x", "float[N, 6, P, Q] y"), **given), IMAGE)
    assert ops(result)["BatchNormalization"] == 1


def test_weights_shared_by_two_layers_are_scaled_for_one_only():
    body = f"{CONV} n = {BN} d = Conv <pads = [1, 1, 1, 1]> (x, w) y = Add (n, d)"
    given = batch_norm(6) | {"w": weights(6, 4, 3, 3), "b": weights(6)}
    result = same_answers(model(graph(body, "float[N, 4, H, W] x", "float[N, 6, P, Q] y"), **given), IMAGE)
    assert ops(result) == {"Conv": 2, "Add": 1}


def test_a_kept_tensor_survives_and_the_fold_it_prevents_is_noted():
    body = f"{CONV} n = {BN} y = Relu (n)"
    given = batch_norm(6) | {"w": weights(6, 4, 3, 3), "b": weights(6)}
    proto = model(graph(body, "float[N, 4, H, W] x", "float[N, 6, P, Q] y"), **given)
    result = same_answers(proto, IMAGE, keep=["c"])
    assert ops(result) == {"Conv": 1, "BatchNormalization": 1, "Relu": 1}
    assert any("c is kept" in note for note in result.notes)
    assert "c" in {value.name for node in result.model.graph for value in node.outputs}
    assert [value.name for value in result.model.graph.outputs] == ["y"]


def test_an_identity_that_is_kept_keeps_its_name():
    proto = model(graph("i = Identity (x) r = Relu (i) j = Identity (r) y = Neg (j)", "float[N, 3] x", "float[N, 3] y"))
    result = same_answers(proto, {"x": weights(2, 3)}, keep=["j"])
    assert "j" in {value.name for node in result.model.graph for value in node.outputs}


def test_a_name_that_does_not_exist_comes_with_near_ones():
    proto = model(graph("hidden = Relu (x) y = Neg (hidden)", "float[N, 3] x", "float[N, 3] y"))
    with pytest.raises(UnknownName, match="hidden"):
        normalise(from_proto(proto), ["hiden"])


def branches() -> onnx.ModelProto:
    """A condition on the input's rank, as torch writes it, so that it folds; with an inner tensor."""
    arm = lambda op, name: helper.make_graph(  # noqa: E731
        [helper.make_node(op, ["x"], [f"{name}_inner"]), helper.make_node("Neg", [f"{name}_inner"], [f"{name}_out"])],
        name,
        [],
        [helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None)],
    )
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "one"], ["c"]),
        helper.make_node("Equal", ["c", "three"], ["is_three"]),
        helper.make_node("If", ["is_three"], ["i"], then_branch=arm("Relu", "then"), else_branch=arm("Abs", "else")),
        helper.make_node("Identity", ["i"], ["y"]),
    ]
    io = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 3]) for n in "xy"]
    constants = [numpy_helper.from_array(np.int64(v), n) for n, v in (("one", 1), ("three", 3))]
    body = helper.make_graph(nodes, "g", io[:1], io[1:], constants)
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def test_a_condition_that_is_known_leaves_one_branch():
    assert ops(same_answers(branches(), {"x": weights(4, 3)})) == {"Relu": 1, "Neg": 1}


def test_a_tensor_inside_a_branch_cannot_be_kept():
    with pytest.raises(UnsupportedModel, match="nearest that can is 'i'"):
        normalise(from_proto(branches()), ["then_inner"])


def test_functions_are_inlined():
    text = """<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
    g (float[N, 3] x) => (float[N, 3] y) { a = local.twice (x)  y = Relu (a) }
    <domain: "local", opset_import: ["" : 17]> twice (v) => (w) { w = Add (v, v) }"""
    result = same_answers(parser.parse_model(text), {"x": weights(4, 3)})
    assert ops(result) == {"Add": 1, "Relu": 1} and not result.model.functions


SCALES = np.float32([1, 1, 2, 2.5])


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize(("opset", "op"), [(9, "Upsample"), (10, "Resize")])
def test_old_resizing_keeps_its_grid(opset, op, mode):
    body = f'y = {op} <mode = "{mode}"> (x, scales)'
    proto = model(graph(body, "float[N, 4, 6, 8] x", "float[N, 4, 12, 20] y", opset, 4), scales=SCALES)
    result = same_answers(proto, {"x": weights(2, 4, 6, 8)})
    assert result.model.opset_imports[""] == 18


@pytest.mark.parametrize(
    ("opset", "body"),
    [
        (7, "d = Dropout <ratio = 0.5> (x) y = Relu (d)"),
        (9, "y = Slice <axes = [1], starts = [1], ends = [3]> (x)"),
        (9, "c = Clip <min = 0.0, max = 6.0> (x) y = Softmax <axis = 1> (c)"),
        (11, "s = ReduceSum <axes = [1], keepdims = 1> (x) y = Div (x, s)"),
        (11, "u = Unsqueeze <axes = [1]> (x) y = Squeeze <axes = [1]> (u)"),
        (12, "y = Hardmax (x)"),
        (17, "y = ReduceL2 <axes = [1]> (x)"),
    ],
)
def test_older_opsets_are_raised(opset, body):
    proto = model(graph(body, "float[N, 5] x", "float[N, M] y", opset, 4))
    result = same_answers(proto, {"x": np.abs(weights(3, 5)) + 0.1})
    assert result.model.opset_imports[""] == 18


def test_weights_and_bias_become_one_gemm():
    proto = model(
        graph("m = MatMul (x, w) y = Add (b, m)", "float[N, 4] x", "float[N, 6] y"), w=weights(4, 6), b=weights(6)
    )
    assert ops(same_answers(proto, {"x": weights(3, 4, seed=2)})) == {"Gemm": 1}


def test_a_scaled_matmul_of_rank_three_is_one_product_and_one_bias():
    body = "m = MatMul (x, w) a = Add (m, b) s = Mul (a, c) y = Sub (s, b)"
    given = {"w": weights(4, 6), "b": weights(6, seed=1), "c": np.float32(0.25)}
    result = same_answers(model(graph(body, "float[N, T, 4] x", "float[N, T, 6] y"), **given), {"x": weights(3, 2, 4)})
    assert ops(result) == {"MatMul": 1, "Add": 1}


def test_weights_made_by_a_node_are_scaled_by_a_node():
    shape = helper.make_node("ConstantOfShape", ["shape"], ["w"], value=numpy_helper.from_array(np.float32([0.5])))
    proto = model(
        graph(f"{CONV} y = {BN}", "float[N, 40, H, W] x", "float[N, 40, P, Q] y"),
        shape=np.int64([40, 40, 3, 3]),
        b=weights(40),
        **batch_norm(40),
    )
    proto.graph.node.insert(0, shape)
    result = same_answers(proto, {"x": weights(1, 40, 5, 5)})
    assert ops(result) == {"ConstantOfShape": 1, "Mul": 1, "Conv": 1}


def test_a_free_axis_behind_a_reshape_gets_its_symbol():
    proto = model(
        graph("f = Reshape (x, target) y = Gemm (f, w)", "float[N, 16, 5, 5] x", "float[M, 3] y"),
        target=np.int64([-1, 400]),
        w=weights(400, 3),
    )
    result = same_answers(proto, {"x": weights(2, 16, 5, 5)})
    (y,) = result.model.graph.outputs
    assert [dim if isinstance(dim, int) else dim.value for dim in y.shape] == ["N", 3]


def test_every_axis_has_a_number_or_a_symbol_and_every_node_a_name():
    proto = model(graph("n = NonZero (x) y = Cast <to = 1> (n)", "float[A, B] x", "float[2, M] y"))
    result = same_answers(proto, {"x": weights(3, 4)})
    for node in result.model.graph:
        assert node.name
        for value in node.outputs:
            assert all(isinstance(dim, int) or dim.value for dim in value.shape)


def wrong_step(model, keep, may, changes, notes):
    next(node for node in model.graph if node.op_type == "Relu").op_type = "Abs"
    return model


def test_a_step_that_changes_the_answer_is_undone_and_named(monkeypatch):
    monkeypatch.setitem(module.STEPS, "join bias", wrong_step)
    proto = model(graph("y = Relu (x)", "float[N, 3] x", "float[N, 3] y"))
    result = same_answers(proto, {"x": weights(4, 3)})
    assert ops(result) == {"Relu": 1}
    (note,) = [note for note in result.notes if "'join bias'" in note]
    assert "differs by" in note


def test_a_step_that_breaks_is_undone_and_named(monkeypatch):
    def broken(model, keep, may, changes, notes):
        raise KeyError("an axis")

    monkeypatch.setitem(module.STEPS, "fold affine chains", broken)
    body = f"{CONV} n = {BN} m = MatMul (n, v) y = Relu (m)"
    given = batch_norm(6) | {"w": weights(6, 4, 3, 3), "b": weights(6), "v": weights(7, 2)}
    result = same_answers(model(graph(body, "float[N, 4, H, 7] x", "float[N, 6, P, 2] y"), **given), IMAGE)
    assert ops(result)["BatchNormalization"] == 1
    assert any("'fold affine chains'" in note and "an axis" in note for note in result.notes)


def test_a_mandatory_step_that_changes_the_answer_is_refused_by_name(monkeypatch):
    monkeypatch.setitem(module.STEPS, "raise the opset", wrong_step)
    proto = model(graph("y = Relu (x)", "float[N, 3] x", "float[N, 3] y"))
    with pytest.raises(ConversionChanged, match="'raise the opset'"):
        normalise(from_proto(proto))


def test_of_many_folds_only_the_one_that_changes_the_answer_is_undone(monkeypatch):
    """Two Convolutions with BatchNormalization; the second fold goes wrong."""
    scaled = affine._scaled

    def wrong(node, weight, scale, names):
        return scaled(node, weight, scale * (2 if weight.name == "v" else 1), names)

    monkeypatch.setattr(affine, "_scaled", wrong)
    body = f"{CONV} n = {BN} r = Relu (n) d = Conv (r, v) y = {BN.replace('(c,', '(d,')}"
    given = batch_norm(6) | {"w": weights(6, 4, 3, 3), "b": weights(6), "v": weights(6, 6, 1, 1)}
    result = same_answers(model(graph(body, "float[N, 4, H, W] x", "float[N, 6, P, Q] y"), **given), IMAGE)
    assert ops(result) == {"Conv": 2, "Relu": 1, "BatchNormalization": 1}
    (note,) = result.notes
    assert "y (BatchNormalization) into d (Conv)" in note


def test_a_model_that_never_answers_twice_alike_is_only_brought_into_a_form_that_can_be_walked():
    body = "i = Identity (x) m = MatMul (i, w) y = Add (m, b)"
    source = from_proto(model(graph(body, "float[N, 4] x", "float[N, 6] y", 13), w=weights(4, 6), b=weights(6)))
    expected = reference(source)
    other = replace(expected, outputs={"y": expected.outputs["y"] + 1})
    result, changes, notes = apply_verified(source.model.clone(), module.STEPS, [], other)
    assert result.opset_imports[""] == 18 and changes == ["raised from opset 13 to 18"]
    assert [node.op_type for node in result.graph] == ["Identity", "MatMul", "Add"]
    assert any("twice alike" in note for note in notes)


def test_random_numbers_do_not_refuse_a_model():
    """onnxruntime draws by the index of a node, which every removal in front of it changes."""
    body = "i = Identity (x) r = RandomNormalLike (i) a = Add (i, r) m = MatMul (a, w) y = Add (m, b)"
    normalise(from_proto(model(graph(body, "float[N, 4] x", "float[N, 6] y"), w=weights(4, 6), b=weights(6))))


@pytest.mark.parametrize("shape", [(), (1,), (0,), (1, 1), (3, 2)])
def test_an_initializer_has_the_shape_of_its_array(shape):
    result = from_proto(model(graph("y = Relu (x)", "float[N, 3] x", "float[N, 3] y"))).model
    value = affine.initializer(affine.Names(result.graph), "new", np.ones(shape[::-1]).T, ir.DataType.FLOAT)
    assert value.const_value.numpy().shape == shape == tuple(value.const_value.shape) == tuple(value.shape)


def test_a_known_scalar_of_shape_arithmetic_stays_a_scalar():
    """Lengths computed as Keras and timm write them: Gather(Shape(x), 2) with a scalar index."""
    body = (
        "s = Shape (x) h = Gather (s, two) e = Equal (h, none) l = Where (e, none, h) r = Range (none, l, step) "
        "f = Cast <to = 1> (r) y = Add (x, f)"
    )
    given = {"two": np.int64(2), "none": np.int64(0), "step": np.int64(1)}
    result = same_answers(model(graph(body, "float[N, 2, 5] x", "float[N, 2, 5] y"), **given), {"x": weights(3, 2, 5)})
    assert not result.notes and ops(result) == {"Add": 1}


def test_a_model_that_onnxruntime_refuses_says_why():
    proto = model(graph("y = Conv (x, w)", "float[N, 3, 8, 8] x", "float[N, 4, 6, 6] y"), w=weights(4, 5, 3, 3))
    with pytest.raises(UnsupportedModel) as caught:
        normalise(from_proto(proto))
    assert "\n" not in str(caught.value) and "onnxruntime" in str(caught.value)


def test_external_weights_that_no_fold_touches_stay_in_their_file(tmp_path):
    body = f"{CONV} r = Relu (c) c2 = Conv (r, v) y = BatchNormalization (c2, gamma, beta, mean, var)"
    given = batch_norm(6) | {"w": weights(16, 4, 3, 3), "b": weights(16), "v": weights(6, 16, 3, 3)}
    proto = model(graph(body, "float[N, 4, H, W] x", "float[N, 6, P, Q] y", opset=14), **given)
    path = tmp_path / "m.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="m.data", size_threshold=64)
    result = normalise(load(path))
    kinds = {name: type(v.const_value).__name__ for name, v in result.model.graph.initializers.items()}
    assert kinds["w"] == "ExternalTensor" and kinds["v"] != "ExternalTensor"
    assert mismatch(CpuSession(path).run(IMAGE), runtime(result.model).run(IMAGE)) is None


def again(result):
    return normalise(from_proto(ir.to_proto(result.model)))


def test_normalising_twice_changes_nothing():
    body = f"{CONV} n = {BN} r = Relu (n) g = GlobalAveragePool (r) f = Flatten (g) m = MatMul (f, v) y = Add (m, c2)"
    given = batch_norm(6) | {"w": weights(6, 4, 3, 3), "b": weights(6), "v": weights(6, 3), "c2": weights(3)}
    result = same_answers(model(graph(body, "float[N, 4, H, W] x", "float[N, 3] y", opset=12), **given), IMAGE)
    second = again(result)
    assert not second.changes
    assert [str(node) for node in second.model.graph] == [str(node) for node in result.model.graph]


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.parts[-3])
def test_the_models_of_the_repository_normalise_and_stay_normal(path):
    result = normalise(load(path))
    assert all(value.shape is not None for node in result.model.graph for value in node.outputs)
    assert not again(result).changes


def test_the_source_is_left_alone():
    proto = model(
        graph(f"{CONV} y = {BN}", "float[N, 4, H, W] x", "float[N, 6, P, Q] y"),
        w=weights(6, 4, 3, 3),
        b=weights(6),
        **batch_norm(6),
    )
    source = from_proto(proto)
    before = ir.to_proto(source.model).SerializeToString(deterministic=True)
    normalise(source, ["c"])
    assert ir.to_proto(source.model).SerializeToString(deterministic=True) == before


def test_an_op_of_onnxruntime_in_the_standard_domain_cannot_be_raised():
    body = "y = SimplifiedLayerNormalization (x, w)"
    proto = model(graph(body, "float[N, 3] x", "float[N, 3] y", opset=17), w=weights(3))
    with pytest.raises(UnsupportedModel, match="SimplifiedLayerNormalization"):
        normalise(from_proto(proto))


def test_shapes_computed_in_the_graph_are_followed():
    """Heads split as transformers write it: [N, L, 8] -> [N, L, 2, 4], lengths from Shape, Gather and Concat."""
    body = (
        "s = Shape (x) n = Gather (s, zero) l = Gather (s, one) nu = Unsqueeze (n, first) lu = Unsqueeze (l, first) "
        "t = Concat <axis = 0> (nu, lu, two, four) h = Reshape (x, t) y = Transpose <perm = [0, 2, 1, 3]> (h)"
    )
    numbers = {
        "zero": np.int64(0),
        "one": np.int64(1),
        "first": np.int64([0]),
        "two": np.int64([2]),
        "four": np.int64([4]),
    }
    proto = model(graph(body, "float[N, L, 8] x", "float[A, B, C, D] y"), **numbers)
    result = same_answers(proto, {"x": weights(3, 5, 8)}, {"x": weights(1, 2, 8)})
    (y,) = result.model.graph.outputs
    assert [dim if isinstance(dim, int) else dim.value for dim in y.shape] == ["N", 2, "L", 4]
    assert ops(result) == {"Reshape": 1, "Transpose": 1}


def test_minus_one_is_no_length():
    """Paddle declares a free batch as the number -1, and a fold would believe it."""
    proto = model(graph("r = Relu (x) s = Shape (r) y = Cast <to = 1> (s)", "float[N, 3] x", "float[2] y"))
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    same_answers(proto, {"x": weights(4, 3)}, {"x": weights(1, 3)})


def test_the_model_answers_about_other_rows_too():
    """What the compiled file is verified on a second time."""
    proto = model(
        graph("m = MatMul (x, w) a = Add (m, z) y = Softmax (a)", "float[N, 4] x, float[N, 6] z", "float[N, 6] y"),
        w=weights(4, 6),
    )
    source = from_proto(proto)
    first = normalise(source).reference
    other = second(source, first)
    assert first.feeds["x"].shape == (2, 4) and other.feeds["x"].shape == (3, 4) and other.feeds["z"].shape == (3, 6)
    assert other.outputs.keys() == first.outputs.keys() == {"y", "a"}  # "a" is before the softmax
    np.testing.assert_allclose(other.outputs["a"][:2], first.outputs["a"], rtol=1e-6)


@pytest.mark.parametrize(("batch", "target"), [("2", "[2, 3]"), ("N", "[2, 3]")])
def test_there_is_no_other_batch_where_it_is_a_number(batch, target):
    proto = model(graph("y = Add (x, z)", f"float[{batch}, 3] x", "float[2, 3] y"), z=weights(2, 3))
    source = from_proto(proto)
    other = second(source, normalise(source).reference)
    assert other is None or other.feeds["x"].shape == (1, 3)  # one row broadcasts
