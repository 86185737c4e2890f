"""Methods that move inner tensors: what they answer is what they answer on the model cut there, at one cost."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
from nets import counted, in_batches_of, net, normal, relu_net, repository, sample

from onnxplain import Explainer, cut
from onnxplain.compile import Request
from onnxplain.errors import InputError, NotFinite, UnsupportedModel, UsageError
from onnxplain.methods import METHODS, of_family
from onnxplain.recipes import Recipe
from onnxplain.subject import Subject

X = normal(3, 2, 6, 6)
CLOSE = {"rtol": 1e-4, "atol": 1e-5}  # float32, the same sums in other batches
MOVING = [
    name
    for name in of_family("looped", "forward-only")
    if name != "d_rise"
    and METHODS[name].background != "required"  # d_rise is for detectors
    and not (METHODS[name].layer or METHODS[name].of_trees or METHODS[name].of_tables or METHODS[name].references)
]
FEW = {name: counted(name, 60 if name in ("lime", "kernel_shap") else 3) for name in MOVING}


def few(name: str, shape: tuple[int, ...]) -> dict[str, object]:
    """Few looks; groups as large as exact values want them, and axes for what always blurs."""
    blurs = "axes" in METHODS[name].options and "baseline" not in METHODS[name].options
    more = {"axes": [len(shape) - 1]} if blurs and len(shape) != 4 else {}
    return {**FEW[name], **more, **({"groups": "inputs"} if name == "exact_shapley" else {})}


def saved(model: onnx.ModelProto, folder) -> str:
    path = folder / "m.onnx"
    onnx.save(model, path)
    return str(path)


def at(path: str, name: str, x: np.ndarray) -> np.ndarray:
    """The value of an inner tensor."""
    subject = Subject.of(path, Request(keep=(name,)))
    return subject.forward({subject.inputs[0].name: x}, [name])[name]


def residual(batch: str = "N") -> onnx.ModelProto:
    """Two convolutions around which the first one's input goes by another way, and a gate made of the input itself."""
    return net(
        f"""g (float[{batch}, 2, 6, 6] x) => (float[{batch}, 4] y) {{
            c1 = Conv <pads = [1, 1, 1, 1]> (x, w1) r1 = Relu (c1)
            c2 = Conv <pads = [1, 1, 1, 1]> (r1, w2) r2 = Tanh (c2)
            s = Add (r2, r1)
            m = GlobalAveragePool (x) k = Conv (m, w3) g = Sigmoid (k)
            p = Mul (s, g)
            q = GlobalAveragePool (p) f = Flatten (q)
            y = Gemm <transB = 1> (f, w4)
        }}""",
        w1=normal(5, 2, 3, 3, seed=1), w2=normal(5, 5, 3, 3, seed=2), w3=normal(5, 2, 1, 1, seed=3),
        w4=normal(4, 5, seed=4),
    )  # fmt: skip


@pytest.mark.parametrize("layer", ["r1", "p1", "f"])
@pytest.mark.parametrize("name", MOVING)
def test_a_layer_is_moved_as_the_input_of_the_model_cut_there_is(name, layer, tmp_path):
    path = saved(relu_net(), tmp_path)
    values = at(path, layer, X)
    cut(path, tmp_path / "tail.onnx", at=layer)
    expected = Explainer(tmp_path / "tail.onnx", name, **few(name, values.shape)).explain(values, [0, 2])
    found = Explainer(path, name, attribute_to=layer, **few(name, values.shape)).explain(X, [0, 2])
    assert list(found.relevances) == [layer] and found.relevance.shape == (6, *values.shape[1:])
    np.testing.assert_allclose(found.relevance, expected.relevance, **CLOSE)


@pytest.mark.parametrize("batch", ["N", "3"])
@pytest.mark.parametrize("layer", ["c2", "s", "k"])
@pytest.mark.parametrize("name", ["integrated_gradients", "smooth_grad", "feature_ablation", "shapley_sampling"])
def test_what_goes_around_a_layer_stays_what_it_is(name, layer, batch, tmp_path):
    """Against the model cut there, fed the layer and the input, of which the layer alone is attributed to."""
    path = saved(residual(batch), tmp_path)
    cut(path, tmp_path / "tail.onnx", at=layer)
    feeds = {layer: at(path, layer, X), "x": X}
    options = few(name, feeds[layer].shape)
    expected = Explainer(tmp_path / "tail.onnx", name, attribute_to=layer, **options).explain(feeds, [0, 2])
    found = Explainer(path, name, attribute_to=layer, **options).explain(X, [0, 2])
    np.testing.assert_allclose(found.relevance, expected.relevance, **CLOSE)
    alone = np.concatenate([
        Explainer(path, name, attribute_to=layer, **options).explain(X[n : n + 1], t).relevance
        for t in (0, 2) for n in range(3) if batch == "N"
    ] or [found.relevance])  # fmt: skip
    np.testing.assert_allclose(alone, found.relevance, **CLOSE)


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_a_layers_points_may_be_cut_anywhere(rows, tmp_path, monkeypatch):
    explainer = Explainer(saved(residual(), tmp_path), "integrated_gradients", attribute_to="c2")
    whole = explainer.explain(X, 1).relevance
    in_batches_of(rows, monkeypatch)
    np.testing.assert_allclose(explainer.explain(X, 1).relevance, whole, **CLOSE)


def test_what_is_in_front_of_a_layer_and_beside_it_runs_once(tmp_path):
    """The tail has the nodes between the layer and the score; all else is fed, as near as rows go apart."""
    explainer = Explainer(saved(residual(), tmp_path), "integrated_gradients", attribute_to="c2")
    explainer.explain(X, 1)
    (tail,) = explainer._plan._graph.tails.values()
    forward = [node.op_type for node in tail.subject.normalised.model.graph]
    assert sorted(forward) == sorted(["Tanh", "Add", "Mul", "GlobalAveragePool", "Flatten", "Gemm"])
    assert sorted(spec.name for spec in tail.subject.inputs) == ["c2", "g", "r1"]
    assert not any(node.op_type == "Conv" for node in tail.graph.compiled.model.graph)


def test_lengths_are_those_of_the_points(tmp_path):
    """A batch length that the model computes of its input is computed of as many rows as there are points."""
    text = """g (float[N, 2, 3] x) => (float[N, 3] y) {
        t = Tanh (x) n = Shape <start = 0, end = 1> (x) c = Concat <axis = 0> (n, rest) f = Reshape (t, c)
        h = MatMul (f, w) y = Sigmoid (h) }"""
    path = saved(net(text, w=normal(6, 3), rest=np.array([6])), tmp_path)
    x = normal(3, 2, 3)
    found = Explainer(path, "integrated_gradients", attribute_to="t", head="keep", steps=64).explain(x, 1)
    score = lambda t: 1 / (1 + np.exp(-t.reshape(3, 6) @ normal(6, 3)[:, 1]))  # noqa: E731
    np.testing.assert_allclose(found.relevance.sum((1, 2)), score(np.tanh(x)) - score(0 * x), rtol=1e-3)


@pytest.mark.parametrize("method", ["integrated_gradients", "guided_integrated_gradients"])
def test_a_path_may_begin_where_the_input_is_the_baseline(method, tmp_path):
    """The ways around the layer stay at the input: so it sums to F(layer at x) - F(layer at the baseline)."""
    path = saved(residual(), tmp_path)
    cut(path, tmp_path / "tail.onnx", at="c2")
    tail = Subject.of(tmp_path / "tail.onnx")
    before, after = (tail.forward({"c2": at(path, "c2", x), "x": X})["y"] for x in (np.full_like(X, 0.2), X))
    options = {"attribute_to": "c2", "baseline": 0.2, "baseline_at": "input", "steps": 128}
    found = Explainer(path, method, **options).explain(X, [0, 2])
    change = np.concatenate([(after - before)[:, t] for t in (0, 2)])
    size = np.abs(found.relevance).sum((1, 2, 3)).max()
    np.testing.assert_allclose(found.relevance.sum((1, 2, 3)), change, atol=5e-3 * size)  # 128 steps
    with pytest.raises(UsageError, match="the inputs move themselves"):
        Explainer(path, method, baseline_at="input").explain(X, 0)


def test_a_relevance_base_at_a_layer_does_not_take_it_for_positive(tmp_path):
    """A Relu's output is; what a method makes of it need not be: z+ has terms for its negative part then."""
    path, rule = saved(relu_net(), tmp_path), Recipe("lrp", {"composite": "epsilon_alpha2_beta1"})
    cut(path, tmp_path / "tail.onnx", at="p1")
    values = at(path, "p1", X)
    options = {"base": rule, "baseline": -2.0, "steps": 4}
    expected = Explainer(tmp_path / "tail.onnx", "integrated_gradients", **options).explain(values, 1).relevance
    found = Explainer(path, "integrated_gradients", attribute_to="p1", **options).explain(X, 1).relevance
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


def test_rules_stand_where_they_stand_in_the_whole_model(tmp_path):
    """The first layer with weights behind a cut is not the model's first: a composite's first rule is not its."""
    path, rule = saved(relu_net(), tmp_path), "lrp-epsilon_plus_flat"
    found = Explainer(path, "smooth_grad", base=rule, attribute_to="p1", noise=0.0, samples=1).explain(X, 1)
    expected = Explainer(path, "lrp", composite="epsilon_plus_flat", attribute_to="p1").explain(X, 1)
    np.testing.assert_allclose(found.relevance, expected.relevance, **CLOSE)


@pytest.mark.parametrize("name", ["digits_cnn", "digits_vit", "digits_gru", "mobilenet_v2"])
def test_layers_of_real_models_are_complete(name):
    """Where everything passes one tensor: the sum is the score less that of the layer at zero."""
    path, x = repository(name), sample(name)
    layer = {
        "digits_cnn": None, "digits_vit": "last tokens", "digits_gru": "last states", "mobilenet_v2": None,
    }[name]  # fmt: skip
    graph = Subject.of(path).normalised.model.graph
    if layer is None:
        layer = next(iter(Explainer(path, "hires_cam").explain(x, 0).relevances))
    else:
        layer = graph[-1].inputs[0].name
    found = Explainer(path, "integrated_gradients", attribute_to=layer, steps=64).explain(x, "predicted")
    assert not [note for note in found.notes if "does not sum" in note]
    ablated = Explainer(path, "feature_ablation", attribute_to=layer, groups="inputs").explain(x, "predicted")
    falls = ablated.relevance.reshape(len(x), -1)
    size = np.abs(found.relevance).reshape(len(x), -1).sum(1).max()
    np.testing.assert_allclose(found.relevance.reshape(len(x), -1).sum(1), falls[:, 0], atol=0.02 * size)  # kinks


TIMED = "g (float[N, 5, 4] x) => (float[N, 3] y) { t = Transpose <perm = [1, 0, 2]> (x) e = Tanh (t) b = Transpose <perm = [1, 0, 2]> (e) s = ReduceSum <keepdims = 0> (b, ones) y = MatMul (s, w) }"  # noqa: E501


def test_a_layer_with_time_in_front_moves_as_one_thing(tmp_path):
    path, x = saved(net(TIMED, w=normal(4, 3), ones=np.array([1])), tmp_path), normal(5, 5, 4)
    explainer = Explainer(path, "integrated_gradients", attribute_to="e")
    found = explainer.explain(x[:1], 1).relevance
    expected = (np.tanh(x[:1]) * normal(4, 3)[:, 1]).transpose(1, 0, 2)
    np.testing.assert_allclose(found.reshape(expected.shape), expected, **CLOSE)
    with pytest.raises(InputError, match=r"axis 0 of e is not known to count samples, of which there are 5"):
        explainer.explain(x, 1)


@pytest.mark.parametrize(
    "attributed, method, error, said",
    [
        (["c1", "c2"], "smooth_grad", UsageError, "c2 is computed from it, and both would move"),
        (["c1", "x"], "smooth_grad", UsageError, "c1 is computed of the input x"),
        (["y"], "feature_ablation", UsageError, "y: it is what is explained"),
        (["c1"], "tree_shap", UnsupportedModel, "is about the columns of the inputs, and c1 is no input"),
    ],
)
def test_what_cannot_move_is_one_line(attributed, method, error, said, tmp_path):
    with pytest.raises(error, match=re.escape(said)):
        Explainer(saved(residual(), tmp_path), method, attribute_to=attributed).explain(X, 0)


def test_a_layer_that_is_no_number_or_not_on_the_way_is_refused(tmp_path):
    text = "g (float[N, 4] x) => (float[N, 3] y, float[N, 4] z) { z = Tanh (x) i = ArgMax <axis = 1> (x) e = Gather (w, i) y = Squeeze (e, one) }"  # noqa: E501
    path = saved(net(text, w=normal(4, 3), one=np.array([1])), tmp_path)
    for layer, said in (("i", "it is int64, and a method moves float tensors"), ("z", "y does not depend on it")):
        with pytest.raises(UsageError, match=said):
            Explainer(path, "feature_ablation", attribute_to=layer, explain="y")


def test_a_layer_beyond_its_type_is_an_error(tmp_path):
    with pytest.raises(NotFinite, match="a point that the method makes of c2"):
        Explainer(saved(residual(), tmp_path), "integrated_gradients", attribute_to="c2", baseline=1e39).explain(X, 0)


@pytest.mark.parametrize("batch", ["N", "3"])
def test_rows_of_a_background_are_the_layers_values_there(batch, tmp_path):
    """Of the model cut at the layer the background is fed as the layer's values, beside the sample's own input."""
    path, background = saved(relu_net(batch=batch), tmp_path), normal(5 if batch == "N" else 3, 2, 6, 6, seed=7)
    options = {"baseline": "background", "steps": 9}
    found = Explainer(path, "integrated_gradients", attribute_to="p1", background=background, **options).explain(X, 1)
    rows = np.concatenate([at(saved(relu_net(), tmp_path), "p1", row[None]) for row in background])
    cut(tmp_path / "m.onnx", tmp_path / "tail.onnx", at="p1")
    values = at(tmp_path / "m.onnx", "p1", X)
    tail = Explainer(tmp_path / "tail.onnx", "integrated_gradients", background=rows, **options)
    np.testing.assert_allclose(found.relevance, tail.explain(values, 1).relevance, **CLOSE)
    path = saved(relu_net(batch=batch), tmp_path)
    with pytest.raises(UsageError, match="its rows are inputs"):
        Explainer(
            path, "integrated_gradients", attribute_to="p1", background=background, baseline="background",
            baseline_at="input",
        ).explain(X, 1)  # fmt: skip
