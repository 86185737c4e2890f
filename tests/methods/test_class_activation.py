"""Class activation maps: closed forms, the identities of pooled linear heads, which layer is found, what is refused."""

from __future__ import annotations

import io

import numpy as np
import onnx
import pytest
from nets import compiled, net, normal, one_hot, relu_net, repository, sample
from PIL import Image

from onnxplain import Explainer
from onnxplain.errors import UnsupportedModel, UsageError
from onnxplain.methods import METHODS, OnePass
from onnxplain.recipes import Recipe, recipe_names
from onnxplain.rules.finishes import FINISHES
from onnxplain.subject import Subject

AT_A_LAYER = [name for name, entry in METHODS.items() if isinstance(entry, OnePass) and entry.maps]
MAPS = [name for name in AT_A_LAYER if not FINISHES[METHODS[name].form().finish].whole]
X = normal(3, 2, 6, 6)
ANY_HEAD = [name for name in MAPS if name != "cam"]
FORMS = [(name, form) for name in ANY_HEAD for form in METHODS[name].forms]
CLOSE = {"rtol": 1e-4, "atol": 1e-6}  # float32 sums of up to some hundred terms


def saved(model: onnx.ModelProto, folder) -> str:
    path = folder / "m.onnx"
    onnx.save(model, path)
    return str(path)


def pooled(head: str = "p = GlobalAveragePool (r) f = Flatten (p)", size: str = "6, 6", **weights) -> onnx.ModelProto:
    """Conv - Relu - global pool - Gemm: a net that CAM is defined for."""
    return net(
        f"""g (float[N, 2, {size}] x) => (float[N, 4] y) {{
            c = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
            r = Relu (c)
            {head}
            y = Gemm <transB = 1> (f, w2, b2)
        }}""",
        w1=normal(5, 2, 3, 3, seed=1), b1=normal(5, seed=2), w2=normal(4, 5, seed=3), b2=normal(4, seed=4), **weights,
    )  # fmt: skip


HEADS = {  # a pooled linear head, and what of a weight arrives at the map
    "global pool": ("p = GlobalAveragePool (r) f = Flatten (p)", 1.0),
    "mean": ("f = ReduceMean <keepdims = 0> (r, space)", 1.0),
    "whole window": ("p = AveragePool <kernel_shape = [6, 6]> (r) f = Reshape (p, shape)", 1.0),
    "scaled": ("p = GlobalAveragePool (r) s = Mul (p, half) f = Flatten (s)", 0.5),
}


def by_hand(name: str, form: str, g: np.ndarray, a: np.ndarray) -> np.ndarray:
    """The equations of the papers, one channel and one position after the other; g, a (C, H, W) in float64."""
    channels, height, width = a.shape
    cam = np.zeros((height, width))
    places = [(i, j) for i in range(height) for j in range(width)]
    for c in range(channels):
        if name == "layer_cam":
            weight = np.maximum(g[c], 0)
        elif name == "hires_cam":
            weight = g[c]
        elif name == "grad_cam":
            weight = sum(g[c][p] for p in places) / len(places)
        elif name == "x_grad_cam":
            total = a[c].sum()
            weight = sum(a[c][p] / total * g[c][p] for p in places) if total else 0.0
        else:
            alpha = np.zeros((height, width))
            for p in places:
                below = 2 * g[c][p] ** 2 + a[c].sum() * g[c][p] ** 3
                alpha[p] = g[c][p] ** 2 / below if below else 0.0
            if form == "code":
                whole = sum(alpha[p] for p in places if g[c][p] > 0)
                alpha = alpha / (whole or 1.0)
            weight = sum(alpha[p] * max(g[c][p], 0.0) for p in places)
        cam = cam + weight * a[c]
    return cam if name == "hires_cam" else np.maximum(cam, 0)


def activation(path: str, name: str, x: np.ndarray = X) -> np.ndarray:
    return Explainer(path, "gradient", keep=name).explain(x, 0).kept[name].astype(float)


@pytest.mark.parametrize("name, form", FORMS)
def test_every_map_is_its_papers_equation(name, form, tmp_path):
    """Above the last feature map of this net all is linear, so the gradient is a row of the head's weights."""
    path = saved(relu_net(), tmp_path)
    options = {"form": form} if form else {}
    found = Explainer(path, name, **options).explain(X, [1, 3])
    a, w = activation(path, "r2"), normal(4, 45, seed=5).astype(float).reshape(4, 5, 3, 3)
    expected = np.stack([by_hand(name, form, w[k], a[n])[None] for k in (1, 3) for n in range(3)])
    assert list(found.relevances) == ["r2"]
    np.testing.assert_allclose(found.relevance, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", AT_A_LAYER)
def test_a_flag_of_the_method_says_what_its_finish_does(name):
    entry = METHODS[name]
    assert all(FINISHES[form.finish].maps for form in entry.forms.values()) and not entry.per_unit
    for other in METHODS.values():
        if isinstance(other, OnePass) and not other.maps:
            assert not any(FINISHES[form.finish].maps for form in other.forms.values())


def test_on_a_pooled_linear_head_the_map_sums_to_the_score_less_its_bias(tmp_path):
    """CAM_k = sum_c w_kc A_c has the mean y_k - b_k; HiResCAM is CAM / (H W), so its sum is that."""
    found = Explainer(saved(pooled(), tmp_path), "hires_cam").explain(X, [0, 2])
    expected = np.concatenate([found.scores[:, k] - normal(4, seed=4)[k] for k in (0, 2)])
    np.testing.assert_allclose(found.relevance.sum((1, 2, 3)), expected, **CLOSE)


@pytest.mark.parametrize("head", HEADS)
def test_the_mean_of_cam_is_the_score_less_its_bias(head, tmp_path):
    constants = {"space": np.array([2, 3]), "half": np.array(0.5, np.float32), "shape": np.array([-1, 5])}
    nodes, share = HEADS[head]
    path = saved(pooled(nodes, **{name: a for name, a in constants.items() if name in nodes}), tmp_path)
    found = Explainer(path, "cam").explain(X, [0, 2])
    expected = np.concatenate([found.scores[:, k] - normal(4, seed=4)[k] for k in (0, 2)])
    np.testing.assert_allclose(found.relevance.mean((1, 2, 3)), expected, **CLOSE)
    a, w = activation(path, "r"), normal(4, 5, seed=3).astype(float)
    cam = np.concatenate([np.einsum("c,nchw->nhw", share * w[k], a) for k in (0, 2)])[:, None]
    np.testing.assert_allclose(found.relevance, cam, rtol=1e-4, atol=1e-5 * np.abs(cam).max())


@pytest.mark.parametrize(
    "nodes, said",
    [
        ("m = MaxPool <kernel_shape = [6, 5]> (r) f = Flatten (m)", "MaxPool_2 .* is no pool over all of it"),
        ("p = GlobalAveragePool (r) t = Tanh (p) f = Flatten (t)", "Tanh_3 .* is not linear"),
        ("q = AveragePool <kernel_shape = [3, 5]> (r) m = ReduceMax (q, s) f = Flatten (m)", "ReduceMax|AveragePool"),
        ("f = ReduceMean <keepdims = 0> (r, rows)", "ReduceMean_2 .* is no pool over all of it"),
    ],
)
def test_cam_of_another_head_is_refused_by_the_node(nodes, said, tmp_path):
    constants = {"s": np.array([2, 3]), "rows": np.array([1, 2])}  # of 6 rows, 5 columns and 5 channels
    model = pooled(nodes, size="6, 5", **{name: a for name, a in constants.items() if f", {name})" in nodes})
    with pytest.raises(UnsupportedModel, match=said + r".*CAM is for a head that is linear.*grad_cam"):
        Explainer(saved(model, tmp_path), "cam")


def test_on_a_pooled_linear_head_grad_cam_is_cam_over_the_number_of_positions(tmp_path):
    path = saved(pooled(), tmp_path)
    a, w = activation(path, "r"), normal(4, 5, seed=3).astype(float)
    cam = np.concatenate([np.einsum("c,nchw->nhw", w[k], a) for k in (0, 2)])[:, None]
    for name in ("grad_cam", "x_grad_cam", "hires_cam"):
        expected = cam / 36 if name == "hires_cam" else np.maximum(cam / 36, 0)
        np.testing.assert_allclose(Explainer(path, name).explain(X, [0, 2]).relevance, expected, **CLOSE)


def test_small_gradients_lose_no_digits_in_grad_cam_plus_plus(tmp_path):
    """g^2 of a gradient of 1e-30 is 0 in float32; the paper's alpha tends to 1/2 there."""
    path = saved(relu_net(), tmp_path)
    seed = 1e-30 * one_hot((3, 4), 1, 1, 1)
    found = Explainer(path, "grad_cam_plus_plus").run(X, seed)["r2.relevance"]
    a, w = activation(path, "r2"), normal(4, 45, seed=5).astype(float).reshape(4, 5, 3, 3)[1]
    weights = 0.5e-30 * np.maximum(w, 0).sum((1, 2))
    np.testing.assert_allclose(found[:, 0], np.einsum("c,nchw->nhw", weights, a), rtol=1e-4)


# -- streams, sizes, the written file --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ANY_HEAD)
def test_targets_at_once_equal_targets_apart_and_rows_equal_rows_alone(name, tmp_path):
    explainer = Explainer(saved(relu_net(), tmp_path), name)
    whole = explainer.explain(X, [0, 1, 3]).relevance
    apart = [explainer.explain(X[n : n + 1], k).relevance for k in (0, 1, 3) for n in range(3)]
    assert whole.shape == (9, 1, 3, 3) and explainer.compiled.streams
    np.testing.assert_allclose(whole, np.concatenate(apart), **CLOSE)
    together = explainer.run(X[:1], one_hot((4, 4), 0, 1, 2, 3))["r2.relevance"]  # one row, four streams
    np.testing.assert_allclose(together[[0, 1, 3]], whole[[0, 3, 6]], **CLOSE)


@pytest.mark.parametrize("name", MAPS)
def test_any_size_of_picture_goes_through_one_graph(name, tmp_path):
    explainer = Explainer(saved(pooled(size="H, W"), tmp_path), name)
    for height, width in ((6, 6), (9, 4)):
        assert explainer.explain(normal(2, 2, height, width), 1).relevance.shape == (2, 1, height, width)
    assert any("attributing to r [N, 5, " in note for note in explainer.notes)


@pytest.mark.parametrize("name, form", FORMS)
def test_the_written_file_gives_the_same_in_plain_onnxruntime(name, form, tmp_path):
    options = {"form": form} if form else {}
    file = compiled(relu_net(), tmp_path, name, **options)
    found = file.run(x=X, seed=one_hot((3, 4), 1, 3, 0))
    np.testing.assert_allclose(found["r2.relevance"], file.explainer.run(X, one_hot((3, 4), 1, 3, 0))["r2.relevance"])
    assert file.about["maps"] == {"r2": {"channels": 1}} and file.about["relevances"] == {"r2.relevance": "r2"}
    assert set(file.about["rules"]) == {"Flatten_5", "Gemm_6"}  # nothing below the layer is gone through


def test_a_model_in_half_precision_gets_its_map_in_single(tmp_path):
    model = net(
        """g (float16[N, 2, 6, 6] x) => (float16[N, 4] y) {
            c = Conv <pads = [1, 1, 1, 1]> (x, w1) r = Relu (c) p = GlobalAveragePool (r) f = Flatten (p)
            y = MatMul (f, w2)
        }""",
        w1=normal(5, 2, 3, 3, seed=1).astype(np.float16), w2=normal(5, 4, seed=3).astype(np.float16),
    )  # fmt: skip
    found = Explainer(saved(model, tmp_path), "hires_cam").explain(X.astype(np.float16), 1)
    assert found.relevance.dtype == np.float32
    np.testing.assert_allclose(found.relevance.sum((1, 2, 3)), found.scores[:, 1], rtol=1e-2, atol=1e-2)  # 11 bits


# -- which layer -----------------------------------------------------------------------------------------------------

LAYERS = {
    "the tensor in front of a pool": ("p = GlobalAveragePool (r) f = Flatten (p)", "r", (5, 6, 6)),
    "of a mean over axes": ("f = ReduceMean <keepdims = 0> (r, space)", "r", (5, 6, 6)),
    "what pools leave": (
        "m = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r) f = ReduceMax <keepdims = 0> (m, space)",
        "m", (5, 3, 3)),
    "behind a transposition": (
        "t = Transpose <perm = [0, 2, 3, 1]> (r) f = ReduceMean <keepdims = 0> (t, front)", "t", (6, 6, 5)),
    "behind a gate of channels": (
        "q = GlobalAveragePool (r) s = Sigmoid (q) m = Mul (r, s) p = GlobalAveragePool (m) f = Flatten (p)",
        "m", (5, 6, 6)),
    "behind a normalisation of groups": (
        "h = Reshape (r, groups) i = InstanceNormalization (h, one, zero) k = Reshape (i, back) "
        "p = ReduceMean <keepdims = 0> (k, space) f = Identity (p)", "k", (5, 6, 6)),
    "the trunk of two scales": (
        "m = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r) a = ReduceMean <keepdims = 0> (m, space) "
        "b = ReduceMax <keepdims = 0> (r, space) f = Add (a, b)", "r", (5, 6, 6)),
}  # fmt: skip


@pytest.mark.parametrize("case", LAYERS)
def test_the_layer_is_the_last_map_that_everything_passes(case, tmp_path):
    head, layer, shape = LAYERS[case]
    constants = {
        "space": np.array([2, 3]), "front": np.array([1, 2]), "groups": np.array([-1, 1, 180]),
        "back": np.array([-1, 5, 6, 6]), "one": np.ones(1, np.float32), "zero": np.zeros(1, np.float32),
    }  # fmt: skip
    constants = {name: array for name, array in constants.items() if name in head}
    found = Explainer(saved(pooled(head, **constants), tmp_path), "grad_cam").explain(X, 0)
    assert list(found.relevances) == [layer]
    space = [length for length in shape if length != 5]
    assert sorted(found.relevance.shape) == sorted((3, 1, *space)) and found.map.shape == (3, *space)
    assert any(f"attributing to {layer} [" in note for note in found.notes)


def test_a_signal_of_one_axis_has_a_map_along_it(tmp_path):
    model = net(
        """g (float[N, 2, 12] x) => (float[N, 4] y) {
            c = Conv <pads = [1, 1]> (x, w1) r = Relu (c) f = ReduceMean <keepdims = 0> (r, axis) y = MatMul (f, w2)
        }""",
        w1=normal(5, 2, 3, seed=1), w2=normal(5, 4, seed=3), axis=np.array([2]),
    )  # fmt: skip
    found = Explainer(saved(model, tmp_path), "hires_cam").explain(normal(3, 2, 12), 1)
    assert found.relevance.shape == (3, 1, 12)
    np.testing.assert_allclose(found.relevance.sum((1, 2)), found.scores[:, 1], **CLOSE)


def test_of_a_transformer_the_tokens_of_the_last_attention_get_the_map():
    """Those that it reads, normalised: in front of the LayerNormalization g · a would be 0 for every picture patch."""
    found = Explainer(repository("digits_vit"), "hires_cam").explain(sample("digits_vit"), [0, 1])
    ((name, relevance),) = found.relevances.items()
    assert name == "layer_norm_4" and relevance.shape == (6, 50, 1)
    assert np.abs(relevance[:, 1:]).max() > 0.1 * np.abs(relevance).max()
    assert any(f"attributing to {name} [N, 50, 48], the last attention's tokens" in note for note in found.notes)


@pytest.mark.parametrize("name", ["iris_mlp", "bc_logreg", "digits_gru"])
def test_a_model_without_feature_maps_is_refused_by_name(name):
    with pytest.raises(UnsupportedModel, match=r"no feature map \(N, C, H, W\) lies between the inputs and .*gradient"):
        Explainer(repository(name), "grad_cam")


def test_what_is_a_map_itself_asks_for_a_layer(tmp_path):
    path = saved(pooled(), tmp_path)
    with pytest.raises(UnsupportedModel, match=r"c \[N, 5, 6, 6\] is a map itself.*Name one by --attribute-to"):
        Explainer(path, "grad_cam", explain="c")


def test_two_towers_ask_for_a_layer(tmp_path):
    model = net(
        """g (float[N, 2, 6, 6] a, float[N, 2, 6, 6] b) => (float[N, 4] y) {
            c = Conv (a, w1) r = Relu (c) p = GlobalAveragePool (r)
            d = Conv (b, w1) s = Relu (d) q = GlobalAveragePool (s)
            t = Add (p, q) f = Flatten (t) y = MatMul (f, w2)
        }""",
        w1=normal(5, 2, 3, 3, seed=1), w2=normal(5, 4, seed=3),
    )  # fmt: skip
    path, feeds = saved(model, tmp_path), {"a": X, "b": X[::-1].copy()}
    with pytest.raises(UnsupportedModel, match=r"no feature map lies on every path.*--attribute-to, such as .*r"):
        Explainer(path, "grad_cam")
    found = Explainer(path, "hires_cam", attribute_to=["r", "s"]).explain(feeds, 1)
    total = sum(relevance.sum((1, 2, 3)) for relevance in found.relevances.values())
    np.testing.assert_allclose(total, found.scores[:, 1], **CLOSE)


def test_a_named_layer_is_the_one(tmp_path):
    path = saved(relu_net(), tmp_path)
    for layer, side in (("r1", 6), ("p1", 3), ("x", 6)):
        found = Explainer(path, "grad_cam", attribute_to=layer).explain(X, [0, 1])
        assert list(found.relevances) == [layer] and found.relevance.shape == (6, 1, side, side)
        assert not any("attributing to" in note for note in found.notes)


REFUSED = {
    "f": r"--attribute-to f: .*\(N, C, H, W\) or \(N, T, D\), and it is float \[N, 45\]",
    "logits": r"--attribute-to logits: .*and it is float \[N, 4\]",
    "side": "logits does not depend on side",
}


@pytest.mark.parametrize("layer", REFUSED)
def test_a_layer_that_no_map_can_be_made_of_is_refused_by_name(layer, tmp_path):
    model = relu_net()
    model.graph.node.append(onnx.helper.make_node("Relu", ["c1"], ["side"], name="side"))
    model.graph.output.append(onnx.helper.make_tensor_value_info("side", onnx.TensorProto.FLOAT, ["N", 3, 6, 6]))
    with pytest.raises(UsageError, match=REFUSED[layer]):
        Explainer(saved(model, tmp_path), "grad_cam", attribute_to=layer)


# -- guided Grad-CAM --------------------------------------------------------------------------------------------------


def bilinear(small: np.ndarray, height: int, width: int) -> np.ndarray:
    """(…, h, w) at half-pixel centres, edges held: one axis as a matrix, then the other."""

    def matrix(large: int, of: int) -> np.ndarray:
        centres = np.clip((np.arange(large) + 0.5) * of / large - 0.5, 0, of - 1)
        return np.maximum(1 - np.abs(centres[:, None] - np.arange(of)), 0)

    return np.einsum("yi,...ij,xj->...yx", matrix(height, small.shape[-2]), small, matrix(width, small.shape[-1]))


@pytest.mark.parametrize("size", ["6, 6", "H, W"])
def test_guided_grad_cam_is_guided_backprop_times_the_enlarged_grad_cam(size, tmp_path):
    pool = "m = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r) p = GlobalAveragePool (m) f = Flatten (p)"
    path = saved(pooled(pool, size=size), tmp_path)
    guided, small, found = (
        Explainer(path, method).explain(X, [0, 2]) for method in ("guided_backprop", "grad_cam", "guided_grad_cam")
    )
    assert list(small.relevances) == ["m"] and list(found.relevances) == ["x"]
    expected = guided.relevance * bilinear(small.relevance, 6, 6)
    np.testing.assert_allclose(found.relevance, expected, **CLOSE)
    assert any(note.startswith("weighed by the map of m [N, 5, ") for note in found.notes)


def test_guided_grad_cam_without_a_layer_below_what_is_attributed_is_refused(tmp_path):
    path = saved(pooled(), tmp_path)
    with pytest.raises(UsageError, match=r"r, whose map weighs the relevance, does not lie between f and what"):
        Explainer(path, "guided_grad_cam", attribute_to="f")
    with pytest.raises(UnsupportedModel, match=r"no feature map \(N, C, H, W\) lies between"):
        Explainer(repository("iris_mlp"), "guided_grad_cam")
    with pytest.raises(UnsupportedModel, match=r"a map .* is laid over pictures \(N, C, H, W\). Take grad_cam"):
        Explainer(repository("digits_vit"), "guided_grad_cam")


# -- beside other methods --------------------------------------------------------------------------------------------


def test_other_methods_of_the_same_subject_keep_the_inputs(tmp_path):
    subject = Subject.of(saved(relu_net(), tmp_path))
    shapes = {m: Explainer(subject, m).explain(X, 0).relevance.shape for m in ("gradient", "grad_cam", "lrp")}
    assert shapes == {"gradient": (3, 2, 6, 6), "grad_cam": (3, 1, 3, 3), "lrp": (3, 2, 6, 6)}


@pytest.mark.parametrize("base", MAPS)
def test_a_looped_method_takes_no_map_for_its_base(base):
    with pytest.raises(UsageError, match=f"needs a base that attributes to them; {base} attributes to a feature map"):
        Recipe("smooth_grad", base=base)
    assert base in recipe_names() and not any(name.endswith(f"-{base}") for name in recipe_names())


def test_a_map_is_drawn_over_the_input(tmp_path):
    found = Explainer(repository("digits_cnn"), "grad_cam").explain(sample("digits_cnn"), 1)
    assert found.map.shape == (3, 3, 3) and found.relevance.min() >= 0
    panel = found.panels()[0]
    assert panel.kind == "image" and panel.photo is not None and not panel.signed
    assert Image.open(io.BytesIO(found._repr_png_())).width > 0
