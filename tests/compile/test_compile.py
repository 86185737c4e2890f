"""The contract of a compiled graph, checked from outside: what goes in and out, under which names, types and shapes."""

from __future__ import annotations

import hashlib

import numpy as np
import onnx
import pytest
from nets import NAMES, compiled, folded_heads, headed, net, normal, one_hot, plain, relu_net, repository, sample

from onnxplain import Explainer
from onnxplain.errors import UnknownName, UnsupportedModel, UsageError


def describe(value: onnx.ValueInfoProto) -> tuple:
    tensor = value.type.tensor_type
    return value.name, tensor.elem_type, [d.dim_param or d.dim_value for d in tensor.shape.dim]


@pytest.fixture(scope="module", params=NAMES)
def explained(request, tmp_path_factory):
    """A repository model and its compiled gradient."""
    path = repository(request.param)
    return request.param, onnx.load(path), compiled(path, tmp_path_factory.mktemp(request.param))


def test_own_inputs_and_outputs_come_first_and_unchanged(explained):
    _, source, file = explained
    own, seeds = file.proto.graph.input[: len(source.graph.input)], file.inputs[len(source.graph.input) :]
    assert [describe(v) for v in own] == [describe(v) for v in source.graph.input]
    assert seeds == [f"{name}.seed" for name in file.explainer.explained]
    own, added = file.proto.graph.output[: len(source.graph.output)], file.outputs[len(source.graph.output) :]
    assert [describe(v)[:2] for v in own] == [describe(v)[:2] for v in source.graph.output]
    assert [describe(v)[2] for v in own] == [describe(v)[2] for v in source.graph.output]
    assert added == [f"{v.name}.relevance" for v in source.graph.input]


def test_the_forward_values_are_the_models_own(explained):
    name, _, file = explained
    x, key = sample(name), file.inputs[0]
    expected = plain(repository(name), {key: x})
    scores = Explainer(repository(name), "gradient").subject.forward({key: x})[file.explainer.explained[0]]
    found = file.run(**{key: x}, seed=np.zeros(scores.shape, np.float32))
    for output, value in expected.items():
        np.testing.assert_allclose(found[output], value, rtol=1e-4, atol=1e-4)


def test_a_seed_of_the_explained_shape_gives_relevance_of_the_tensors_shape(explained):
    name, _, file = explained
    key, y = file.inputs[0], file.explainer.explained[0]
    x = sample(name)
    shape = file.explainer.subject.forward({key: x}, [y])[y].shape
    found = file.run(**{key: x}, seed=normal(*shape))[f"{key}.relevance"]
    assert found.shape == x.shape and found.dtype == np.float32 and np.isfinite(found).all() and found.any()


def test_provenance_says_what_the_graph_was_made_from(explained):
    name, _, file = explained
    about = file.about
    assert about["sha256"] == hashlib.sha256(repository(name).read_bytes()).hexdigest()
    assert about["version"] and about["method"] == "gradient" and about["recipe"]["composite"] == "none"
    assert about["seeds"] == {f"{y}.seed": y for y in file.explainer.explained}
    assert about["relevances"] == {f"{x}.relevance": x for x in file.inputs[:1]}
    assert set(about["stream_axis"]) == set(about["relevances"]) and set(about["rules"].values()) == {"vjp"}


def test_two_recipes_differ_in_provenance_and_the_same_one_does_not(tmp_path):
    model = relu_net()
    one, again = compiled(model, tmp_path, "lrp"), compiled(model, tmp_path, "lrp")
    other = compiled(model, tmp_path, "lrp", rules=["type:Gemm=gamma"])
    assert one.about == again.about != other.about


def test_opset_and_ir_version_are_what_onnxruntime_takes(tmp_path):
    for opset, ir, expected in ((9, 4, 18), (13, 7, 18), (18, 8, 18), (21, 10, 21), (23, 11, 23)):
        model = net("g (float[N, 3] x) => (float[N, 3] y) { y = Relu (x) }", opset, ir)
        file = compiled(model, tmp_path)
        assert {o.domain: o.version for o in file.proto.opset_import} == {"": expected}
        assert 8 <= file.proto.ir_version <= 13
        file.run(x=normal(2, 3), seed=normal(2, 3))


# -- which tensor is explained ---------------------------------------------------------------------------------------

HEADS = {
    "Softmax": "y = Softmax (z)",
    "LogSoftmax": "y = LogSoftmax (z)",
    "Sigmoid": "y = Sigmoid (z)",
    "Identity": "s = Softmax (z) y = Identity (s)",
    "Squeeze": "s = Unsqueeze (z, zero) t = Softmax (s) y = Squeeze (t, zero)",
    "Flatten": "s = Sigmoid (z) y = Flatten (s)",
    "Reshape": "s = Softmax (z) y = Reshape (s, shape)",
    "Transpose": "s = Softmax (z) t = Transpose (s) y = Transpose (t)",
    "Cast": "s = Softmax (z) t = Cast <to = 11> (s) y = Cast <to = 1> (t)",
}


@pytest.mark.parametrize("head", HEADS)
def test_a_final_softmax_is_cut_aloud_and_kept_on_demand(head, tmp_path):
    model, x, seed = headed(HEADS[head]), normal(2, 3), normal(2, 4, seed=1)
    cut = compiled(model, tmp_path)
    name = cut.explainer.explained[0]
    assert name == ("s" if head == "Squeeze" else "z") and any(
        "below the final" in note for note in cut.explainer.notes
    )
    seed_z = seed[None] if head == "Squeeze" else seed
    if head == "Squeeze":  # (1, N, 4): axis 0 is not the batch
        assert describe(cut.proto.graph.input[-1])[2][0] == 1
    w = onnx.numpy_helper.to_array(model.graph.initializer[0])
    np.testing.assert_allclose(cut.run(x=x, seed=seed_z)["x.relevance"], seed @ w.T, rtol=1e-5)
    keep = compiled(model, tmp_path, head="keep")
    assert keep.explainer.explained == ("y",) and not np.allclose(keep.run(x=x, seed=seed)["x.relevance"], seed @ w.T)


def test_an_inner_softmax_is_no_head(tmp_path):
    file = compiled(headed("s = Softmax (z) y = Relu (s)"), tmp_path)
    assert file.explainer.explained == ("y",)


def test_the_first_float_output_is_explained(tmp_path):
    model = net(
        "g (float[N, 3] x) => (int64[N, 1] label, float[N, 3] y, float[N, 3] z)"
        "{ label = ArgMax <axis = 1> (x) y = Tanh (x) z = Exp (x) }"
    )
    file = compiled(model, tmp_path)
    assert file.explainer.explained == ("y",) and file.outputs == ["label", "y", "z", "x.relevance"]


def test_a_star_explains_every_float_output(tmp_path):
    model = net(
        "g (float[N, 3] x) => (int64[N, 1] label, float[N, 3] y, float[N, 3] z)"
        "{ label = ArgMax <axis = 1> (x) y = Softmax (x) z = Exp (x) }"
    )
    file = compiled(model, tmp_path, explain="*")
    assert file.inputs == ["x", "y.seed", "z.seed"]
    x, seed = normal(2, 3), normal(2, 3, seed=1)
    both = file.run(**{"x": x, "y.seed": np.zeros_like(seed), "z.seed": seed})
    np.testing.assert_allclose(both["x.relevance"], seed * np.exp(x), rtol=1e-6)


def test_relevances_of_several_explained_tensors_add_up(tmp_path):
    model, x = relu_net(), normal(2, 2, 6, 6)
    file = compiled(model, tmp_path, "lrp", explain=["r1", "logits"])
    assert file.inputs == ["x", "r1.seed", "logits.seed"]
    seeds = {"r1.seed": normal(2, 3, 6, 6), "logits.seed": normal(2, 4)}
    zero = {name: np.zeros_like(seed) for name, seed in seeds.items()}
    both = file.run(x=x, **seeds)["x.relevance"]
    apart = sum(file.run(x=x, **{**zero, name: seeds[name]})["x.relevance"] for name in seeds)
    np.testing.assert_allclose(both, apart, rtol=1e-4, atol=1e-4)


def test_relevance_of_an_inner_tensor_and_kept_ones(tmp_path):
    model, x = relu_net(), normal(2, 2, 6, 6)
    file = compiled(model, tmp_path, attribute_to=["p1", "r2"], keep=["r1", "c2"])
    assert file.outputs == ["logits", "p1.relevance", "r2.relevance", "r1", "c2"]
    found = file.run(x=x, seed=one_hot((2, 4), 1, 3))
    w3 = onnx.numpy_helper.to_array(model.graph.initializer[4])
    np.testing.assert_allclose(found["r2.relevance"].reshape(2, -1), w3[[1, 3]], rtol=1e-6)
    assert found["p1.relevance"].shape == (2, 3, 3, 3) and found["r1"].min() == 0 and found["c2"].shape == (2, 5, 3, 3)


def test_the_input_beside_an_inner_tensor(tmp_path):
    file = compiled(relu_net(), tmp_path, attribute_to=["x", "logits"])
    seed = normal(2, 4)
    found = file.run(x=normal(2, 2, 6, 6), seed=seed)
    np.testing.assert_array_equal(found["logits.relevance"], seed)
    assert found["x.relevance"].shape == (2, 2, 6, 6)


def test_names_are_verbatim(tmp_path):
    model = net("g (float[N, 3] x) => (float[N, 3] y) { h = Exp (x) y = Tanh (h) }")
    names = {"x": "images/in:0", "h": "/block.1/Exp_output_0", "y": "head:0"}
    for value in (*model.graph.input, *model.graph.output):
        value.name = names[value.name]
    for node in model.graph.node:
        node.input[:], node.output[:] = [names[n] for n in node.input], [names[n] for n in node.output]
    file = compiled(model, tmp_path, attribute_to=[names["h"], names["x"]], keep=names["h"])
    assert file.inputs == ["images/in:0", "head:0.seed"]
    assert file.outputs == [
        "head:0",
        "/block.1/Exp_output_0.relevance",
        "images/in:0.relevance",
        "/block.1/Exp_output_0",
    ]
    x = normal(1, 3)
    file.run(**{"images/in:0": x, "head:0.seed": x})


def test_names_of_tensors_that_are_not_there_are_refused_with_near_ones(tmp_path):
    onnx.save(relu_net(), tmp_path / "m.onnx")
    for option in ({"explain": "logit"}, {"attribute_to": "logit"}, {"keep": "logit"}):
        with pytest.raises(UnknownName, match="logits"):
            Explainer(tmp_path / "m.onnx", "gradient", **option)


def test_what_the_explained_tensor_does_not_depend_on_cannot_be_attributed_to(tmp_path):
    onnx.save(relu_net(), tmp_path / "m.onnx")
    with pytest.raises(UsageError, match="does not depend on logits"):
        Explainer(tmp_path / "m.onnx", "gradient", explain="r1", attribute_to="logits")


def test_weights_listed_as_inputs_are_not_asked_of_the_user(tmp_path):
    model = net("g (float[N, 3] x, float[3, 4] w) => (float[N, 4] y) { y = MatMul (x, w) }", w=normal(3, 4))
    model.ir_version = 3
    file = compiled(model, tmp_path)
    assert file.outputs == ["y", "x.relevance"]
    assert {v.name for v in file.session.get_inputs()} == {"x", "y.seed"}
    file.run(x=normal(2, 3), seed=normal(2, 4))


# -- types and ranks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["gradient", "lrp", "clrp1", "clrp2"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_tensor_without_classes_is_explained(method, rank, tmp_path):
    model = net(
        "g (float[N, 3] x) => (float y) { h = MatMul (x, w) y = ReduceSum <keepdims = 0> (h) }"
        if rank == 0
        else "g (float[N, 3] x) => (float[N] y) { h = MatMul (x, w) y = ReduceSum <keepdims = 0> (h, one) }",
        w=normal(3, 4),
        one=np.array([1]),
    )
    if method == "clrp1":
        onnx.save(model, tmp_path / "m.onnx")
        with pytest.raises(UnsupportedModel, match="contrasts a class with the others"):
            Explainer(tmp_path / "m.onnx", method)
        return
    file = compiled(model, tmp_path, method)
    x, seed = normal(2, 3), np.float32(2) if rank == 0 else normal(2)
    assert describe(file.proto.graph.input[1])[2] == ([] if rank == 0 else ["streams"])
    found = file.run(x=x, seed=np.asarray(seed))["x.relevance"]
    assert found.shape == (2, 3)
    if method == "gradient":
        w = onnx.numpy_helper.to_array(model.graph.initializer[0])
        np.testing.assert_allclose(found, np.broadcast_to(w.sum(1), (2, 3)) * np.reshape(seed, (-1, 1)), rtol=1e-5)


@pytest.mark.parametrize("method", ["gradient", "saliency", "lrp", "clrp2"])
def test_relevance_over_a_float16_model_is_float32(method, tmp_path):
    model = net(
        "g (float16[N, 6] x) => (float16[N, 4] y) { h = MatMul (x, w) r = Relu (h) y = MatMul (r, v) }",
        w=normal(6, 5).astype(np.float16),
        v=normal(5, 4).astype(np.float16),
    )
    file = compiled(model, tmp_path, method)
    assert [describe(v)[1] for v in file.proto.graph.input] == [10, 1]
    found = file.run(x=normal(2, 6).astype(np.float16), seed=normal(2, 4))
    assert found["y"].dtype == np.float16 and found["x.relevance"].dtype == np.float32


@pytest.mark.parametrize("method", ["gradient", "lrp", "clrp1"])
def test_seed_and_relevance_of_a_float64_model_are_float64(method, tmp_path):
    model = net("g (double[N, 3] x) => (double[N, 4] y) { y = MatMul (x, w) }", w=normal(3, 4, dtype=np.float64))
    file = compiled(model, tmp_path, method)
    assert [describe(v)[1] for v in file.proto.graph.input] == [11, 11]
    assert file.run(x=normal(2, 3, dtype=float), seed=normal(2, 4, dtype=float))["x.relevance"].dtype == np.float64


# -- seeds by index --------------------------------------------------------------------------------------------------


def test_a_target_index_is_a_one_hot_seed(tmp_path):
    model, x = relu_net(), normal(3, 2, 6, 6)
    by_seed = compiled(model, tmp_path, "lrp").run(x=x, seed=one_hot((3, 4), 2, 0, 3))["x.relevance"]
    file = compiled(model, tmp_path, "lrp", seed="index")
    assert describe(file.proto.graph.input[-1]) == ("logits.target", onnx.TensorProto.INT64, ["streams"])
    np.testing.assert_array_equal(file.run(x=x, target=np.array([2, 0, 3]))["x.relevance"], by_seed)


def test_a_target_of_higher_rank_has_one_index_an_axis(tmp_path):
    model = net("g (float[N, 3, H, 5] x) => (float[N, 3, H, 5] y) { y = Exp (x) }")
    file, x = compiled(model, tmp_path, seed="index"), normal(1, 3, 4, 5)
    assert describe(file.proto.graph.input[-1])[2] == ["streams", 3]
    found = file.run(x=x, target=np.array([[2, 3, 1], [0, 0, 4]]))["x.relevance"]
    assert np.argwhere(found).tolist() == [[0, 2, 3, 1], [1, 0, 0, 4]]


@pytest.mark.parametrize("method", ["gradient", "saliency", "lrp", "clrp1", "clrp2"])
@pytest.mark.parametrize("index", [-1, 4, 2**40])
def test_an_index_out_of_range_makes_every_relevance_of_its_stream_nan(method, index, tmp_path):
    file = compiled(relu_net(), tmp_path, method, seed="index", attribute_to=["x", "r1"])
    found = file.run(x=normal(1, 2, 6, 6), target=np.array([1, index]))
    for name in ("x.relevance", "r1.relevance"):
        assert np.isfinite(found[name][0]).all() and np.isnan(found[name][1]).all()


def test_an_index_out_of_range_makes_everything_nan_where_streams_are_not_free(tmp_path):
    file = compiled(folded_heads(), tmp_path, seed="index", attribute_to=["x", "h"])
    found = file.run(x=normal(2, 3, 4), target=np.array([[0, 1], [3, 0]]))
    assert np.isnan(found["x.relevance"]).all() and np.isnan(found["h.relevance"]).all()
