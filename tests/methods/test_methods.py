"""Every method on every model, and what each method means, checked by formulas and by each other."""

from __future__ import annotations

import functools
import io

import numpy as np
import onnx
import pytest
from nets import NAMES, compiled, net, normal, one_hot, relu_net, repository, sample, widened
from PIL import Image
from support import evaluate, run

from onnxplain import Explainer
from onnxplain.composites import COMPOSITES
from onnxplain.errors import InputError, UnsupportedOp, UsageError
from onnxplain.methods import METHODS, of_family
from onnxplain.subject import Subject

ONE_PASS = [  # test_class_activation.py has those that need a feature map
    name for name in of_family("one-pass") if not METHODS[name].maps and not METHODS[name].weighed
]
RELEVANCE = [name for name in ONE_PASS if METHODS[name].relevance]
DIFFERENCE = [name for name in ONE_PASS if METHODS[name].reference]
WITHOUT_RULES = ("digits_gru", "bc_logreg")  # GRU and LinearClassifier have derivatives only
X, SEED = normal(3, 2, 6, 6), one_hot((3, 4), 1, 3, 0)


@functools.cache
def subject(name: str) -> Subject:
    return Subject.of(repository(name))


@functools.cache
def explanation(name: str, method: str):
    return Explainer(subject(name), method).explain(sample(name), [0, 1])


def relevance(model, folder, method="lrp", x=X, seed=SEED, **options):
    return compiled(model, folder, method, **options).run(x=x, seed=seed)["x.relevance"]


@pytest.mark.parametrize("method", ONE_PASS)
@pytest.mark.parametrize("name", NAMES)
def test_every_method_explains_every_model(name, method):
    if (name in WITHOUT_RULES and method in RELEVANCE) or (name == "digits_gru" and method in DIFFERENCE):
        with pytest.raises(UnsupportedOp, match=r"no (relevance )?rule for .*(GRU|LinearClassifier).*method"):
            explanation(name, method)
        return
    found, x = explanation(name, method).relevance, sample(name)
    assert found.shape == (2 * len(x), *x.shape[1:]) and found.dtype == np.float32
    assert np.isfinite(found).all() and found.any()
    assert METHODS[method].signed or found.min() >= 0


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_family_is_made_of_one_gradient(name):
    g, x = explanation(name, "gradient").relevance, np.concatenate([sample(name)] * 2)
    close = {"rtol": 1e-4, "atol": 1e-5 * float(np.abs(g).max() * max(1, np.abs(x).max()))}
    np.testing.assert_allclose(explanation(name, "gradient_x_input").relevance, g * x, **close)
    np.testing.assert_allclose(explanation(name, "saliency").relevance, np.abs(g), **close)
    np.testing.assert_allclose(
        explanation(name, "sensitivity").relevance, g**2, rtol=1e-3, atol=1e-5 * float(g.max() ** 2)
    )


def test_the_gradient_is_the_central_difference(tmp_path):
    proto = widened(compiled(relu_net(), tmp_path).proto)
    x, seed, step = X.astype(float), SEED.astype(float), 1e-6
    found = evaluate(proto, {"x": x, "logits.seed": seed})["x.relevance"]
    rng = np.random.default_rng(0)
    for _ in range(5):
        d = rng.standard_normal(x.shape)
        up, down = (evaluate(proto, {"x": x + s * step * d, "logits.seed": seed})["logits"] for s in (1, -1))
        np.testing.assert_allclose((found * d).sum(), ((up - down) * seed).sum() / (2 * step), rtol=1e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_lrp_of_a_relu_net_tends_to_gradient_times_input(bias, tmp_path):
    """R = a dy/da at every layer: with z (bias included) in the denominator it follows from one layer to the next."""
    rules = ["type:Conv=epsilon(epsilon=1e-12)", "type:Gemm=epsilon(epsilon=1e-12)"]
    feeds = {"x": X.astype(float), "logits.seed": SEED.astype(float)}
    lrp = evaluate(widened(compiled(relu_net(bias), tmp_path, "lrp", rules=rules).proto), feeds)
    gradient = evaluate(widened(compiled(relu_net(bias), tmp_path, "gradient_x_input").proto), feeds)
    expected = gradient["x.relevance"]
    np.testing.assert_allclose(lrp["x.relevance"], expected, rtol=1e-6, atol=1e-9 * np.abs(expected).max())


def test_lrp_without_bias_is_conserved(tmp_path):
    file = compiled(relu_net(bias=False), tmp_path, "lrp", composite="epsilon")
    found = file.run(x=X, seed=SEED)
    np.testing.assert_allclose(found["x.relevance"].sum((1, 2, 3)), (found["logits"] * SEED).sum(1), rtol=1e-4)


def dense() -> onnx.ModelProto:
    text = "g (float[N, 6] x) => (float[N, 4] y) { h = MatMul (x, w) r = Relu (h) y = MatMul (r, v) }"
    return net(text, w=normal(6, 5), v=normal(5, 4, seed=1))


def test_deconvnet_and_guided_backprop_differ_in_what_a_relu_stops(tmp_path):
    model, x, seed = dense(), normal(3, 6, seed=2), normal(3, 4, seed=3)
    w, v = normal(6, 5), normal(5, 4, seed=1)
    g, on = seed @ v.T, x @ w > 0
    for method, kept in (("gradient", on), ("guided_backprop", on & (g > 0)), ("deconvnet", g > 0)):
        np.testing.assert_allclose(relevance(model, tmp_path, method, x, seed), (g * kept) @ w.T, rtol=1e-4, atol=1e-5)


def test_clrp1_is_lrp_of_the_target_minus_its_score_spread_over_the_others(tmp_path):
    y = compiled(relu_net(), tmp_path).run(x=X, seed=SEED)["logits"]
    start = SEED * np.abs(y) - (1 - SEED) * (SEED * np.abs(y)).sum(1, keepdims=True) / 3
    lrp = relevance(relu_net(), tmp_path, seed=start / y, composite="clrp")
    np.testing.assert_allclose(relevance(relu_net(), tmp_path, "clrp1"), np.maximum(lrp, 0), rtol=1e-3, atol=1e-5)


def test_clrp2_is_lrp_minus_lrp_of_the_model_with_negated_last_weights(tmp_path):
    opposite = relu_net()
    last = next(t for t in opposite.graph.initializer if t.name == "w3")
    last.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(last), "w3"))
    y = compiled(relu_net(), tmp_path).run(x=X, seed=SEED)["logits"]
    against = compiled(opposite, tmp_path).run(x=X, seed=SEED)["logits"]
    up = relevance(relu_net(), tmp_path, seed=SEED * np.sign(y), composite="clrp")
    down = relevance(opposite, tmp_path, seed=SEED * np.abs(y) / against, composite="clrp")
    found = relevance(relu_net(), tmp_path, "clrp2")
    np.testing.assert_allclose(found, np.maximum(up - down, 0), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", ["clrp1", "clrp2"])
def test_the_form_of_the_code_is_scaled_to_its_maximum(method, tmp_path):
    found = relevance(relu_net(), tmp_path, method, form="code")
    np.testing.assert_allclose(found.max((1, 2, 3)), 1, rtol=1e-6)
    assert found.min() == 0 and not np.allclose(found, relevance(relu_net(), tmp_path, method))


def test_the_form_of_clrp2s_code(tmp_path):
    """max(0, R / ΣR - R' / ΣR') / max, both from |y|, R' with the last weights negated."""
    opposite = relu_net()
    last = next(t for t in opposite.graph.initializer if t.name == "w3")
    last.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(last), "w3"))
    y = compiled(relu_net(), tmp_path).run(x=X, seed=SEED)["logits"]
    against = compiled(opposite, tmp_path).run(x=X, seed=SEED)["logits"]
    up = relevance(relu_net(), tmp_path, seed=SEED * np.sign(y), composite="clrp")
    down = relevance(opposite, tmp_path, seed=SEED * np.abs(y) / against, composite="clrp")
    up, down = (r / r.sum((1, 2, 3), keepdims=True) for r in (up, down))
    expected = np.maximum(up - down, 0)
    expected /= expected.max((1, 2, 3), keepdims=True)
    np.testing.assert_allclose(relevance(relu_net(), tmp_path, "clrp2", form="code"), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", ["clrp1", "clrp2"])
def test_known_bounds_put_the_box_rule_first(method, tmp_path):
    bounds = ([-3.0, -3.0], [3.0, 3.0])
    boxed = compiled(relu_net(), tmp_path, method, bounds=bounds)
    assert boxed.about["rules"]["Conv_0"].startswith("box(") and not boxed.explainer.notes
    rules = compiled(relu_net(), tmp_path, method, rules=["first=box(low=-3,high=3)"])
    np.testing.assert_allclose(
        boxed.run(x=X, seed=SEED)["x.relevance"], rules.run(x=X, seed=SEED)["x.relevance"], rtol=1e-5
    )
    unknown = compiled(relu_net(), tmp_path, method)
    assert (
        unknown.about["rules"]["Conv_0"].startswith("z_plus") and "bounds are not known" in unknown.explainer.notes[-1]
    )


@pytest.mark.parametrize("method", ONE_PASS)
def test_a_row_is_explained_alike_in_any_batch(method, tmp_path):
    file = compiled(relu_net(), tmp_path, method)
    whole = file.run(x=X, seed=SEED)["x.relevance"]
    for row in range(3):
        alone = file.run(x=X[row : row + 1], seed=SEED[row : row + 1])["x.relevance"]
        np.testing.assert_allclose(whole[row], alone[0], rtol=1e-4, atol=1e-5)


# -- Explainer and Explanation ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    labels = [f"digit {i}" for i in range(10)]
    return Explainer(repository("digits_cnn"), "lrp", ledger=True, keep="/Relu_output_0", labels=labels)


@pytest.fixture(scope="module")
def explained(digits):
    return digits.explain(sample("digits_cnn"), ["predicted", "digit 3"])


def test_an_explanation_holds_what_was_asked(digits, explained):
    x = sample("digits_cnn")
    assert explained.relevance.shape == (6, 1, 28, 28) and explained.map.shape == (6, 28, 28)
    assert explained.scores.shape == (3, 10) and explained.ledger.shape[::2] == (6, 6)
    assert explained.target == "predicted, digit 3" and explained.samples == len(x)
    assert explained.kept["/Relu_output_0"].shape[0] == 3 and list(explained.outputs) == ["logits"]
    assert "predicted" not in explained.predicted(0) and explained.predicted(0).startswith("digit ")
    assert set(explained.where(0)) == {"input", "bias", "stabiliser", "padding", "rule"}
    assert sum(explained.where(0).values()) == pytest.approx(explained.scores[0].max(), rel=1e-3)


def test_the_map_takes_the_maximum_of_saliency_and_the_sum_of_relevance():
    x = normal(1, 3, 224, 224)
    for method, reduce in (("saliency", np.max), ("gradient_x_input", np.sum)):
        found = Explainer(subject("mobilenet_v2"), method).explain(x, 285)
        np.testing.assert_allclose(found.map, reduce(found.relevance, axis=1), rtol=1e-5, atol=1e-8)


def test_an_explanation_is_drawn_and_saved(explained, tmp_path):
    assert isinstance(explained.plot(), Image.Image)
    assert Image.open(io.BytesIO(explained._repr_png_())).size == explained.plot().size
    archive = np.load(explained.save(tmp_path / "e.npz"))
    assert archive["input.relevance"].dtype == np.float32
    np.testing.assert_array_equal(archive["input.relevance"], explained.relevance)
    assert archive["targets"].tolist() == ["predicted", "digit 3"] and archive["ledger"].dtype == np.float64


def test_arrays_are_saved_under_the_tensors_names(tmp_path):
    explainer = Explainer(repository("digits_cnn"), "gradient", attribute_to="/Relu_output_0")
    archive = np.load(explainer.explain(sample("digits_cnn"), 3).save(tmp_path / "e.npz"))
    assert "/Relu_output_0.relevance" in archive.files


def test_one_target_a_row_is_its_own_prediction(digits, explained):
    scores, whole = explained.scores, explained.relevance[:3]
    for row, x in enumerate(sample("digits_cnn")):
        alone = digits.explain(x[None], int(scores[row].argmax())).relevance
        np.testing.assert_allclose(whole[row], alone[0], rtol=1e-2, atol=1e-3)


def test_what_an_explainer_refuses(digits, tmp_path):
    with pytest.raises(UsageError):
        digits.explain(sample("digits_cnn"), 10)
    with pytest.raises(UsageError):
        digits.explain(sample("digits_cnn"), "digit 12")
    with pytest.raises(InputError):
        digits.explain(np.zeros((1, 1, 27, 28), np.float32))
    with pytest.raises(InputError):
        digits.explain(np.full((1, 1, 28, 28), np.nan, np.float32))
    with pytest.raises(InputError, match="2 input rows"):
        digits.run(sample("digits_cnn")[:2], np.zeros((3, 10), np.float32))
    with pytest.raises(InputError):
        digits.run(sample("digits_cnn"), np.zeros((3, 9), np.float32))
    with pytest.raises(UsageError, match="takes no composite"):
        Explainer(subject("digits_cnn"), "gradient", composite="epsilon")


def test_a_saved_graph_gives_what_the_explainer_gives(digits, explained, tmp_path):
    digits.save(tmp_path / "d.onnx")
    import onnxruntime

    session = onnxruntime.InferenceSession(str(tmp_path / "d.onnx"))
    x, seed = sample("digits_cnn"), np.eye(10, dtype=np.float32)[explained.scores.argmax(1)]
    (found,) = session.run(["input.relevance"], {"input": x, "logits.seed": seed})
    np.testing.assert_allclose(found, explained.relevance[:3], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("composite", ["epsilon", "epsilon_plus", "epsilon_alpha2_beta1", "epsilon_gamma_box"])
@pytest.mark.parametrize("tensor", ["c2", "r2", "p1", "c1"])
def test_explaining_an_inner_tensor_equals_explaining_the_model_cut_off_there(composite, tensor, tmp_path):
    """What follows the explained tensor (a Relu that would be off, say) must not matter."""
    model = relu_net()
    whole = compiled(model, tmp_path, "lrp", composite=composite, explain=tensor)
    cut = onnx.utils.Extractor(onnx.shape_inference.infer_shapes(model)).extract_model(["x"], [tensor])
    alone = compiled(cut, tmp_path, "lrp", composite=composite)
    x = normal(1, 2, 6, 6, seed=3)
    seed = normal(*forward(cut, x).shape, seed=4)
    found = [run(file.proto, {"x": x, f"{tensor}.seed": seed})["x.relevance"] for file in (whole, alone)]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4, atol=1e-5 * np.abs(found[1]).max())  # float32


def forward(model, x):
    return run(model, {"x": x})[model.graph.output[0].name]


AFTER = {
    "nothing": "s = Identity (r1)",
    "Sigmoid": "s = Sigmoid (r1)",
    "BatchNormalization": "s = BatchNormalization (r1, gain, shift, centre, spread)",
    "Clip": "s = Clip (r1, high, top)",
    "Add": "s = Add (r1, half)",
    "Softplus": "s = Softplus (r1)",
}


@pytest.mark.parametrize("composite", ["epsilon", "epsilon_plus", "epsilon_alpha2_beta1"])
@pytest.mark.parametrize("between", AFTER)
def test_a_relu_by_another_name_gives_the_same_relevance(composite, between, tmp_path):
    """LeakyRelu with slope 0 is a Relu that no short way knows: the Relu's output as denominator, signs, stacking."""
    found = []
    for relu in ("Relu", "LeakyRelu <alpha = 0.0>"):
        model = net(
            f"""g (float[N, 2, 6, 6] x) => (float[N, 4] y) {{
                c1 = Conv (x, w1, b1) r1 = {relu} (c1) {AFTER[between]}
                c2 = Conv (s, w2, b2) r2 = {relu} (c2) f = Flatten (r2) y = Gemm <transB = 1> (f, w3, b3)
            }}""",
            w1=normal(3, 2, 3, 3, seed=1),
            b1=normal(3, seed=2),
            w2=normal(5, 3, 3, 3, seed=3),
            b2=normal(5, seed=4),
            w3=normal(4, 20, seed=5),
            b3=normal(4, seed=6),
            gain=normal(3, seed=7),
            shift=normal(3, seed=8),
            centre=normal(3, seed=9),
            spread=np.ones(3, np.float32),
            half=np.float32(0.5).reshape(()),
            high=np.float32(0.2).reshape(()),
            top=np.float32(2.0).reshape(()),
        )
        file = compiled(model, tmp_path, "lrp", composite=composite)
        found.append(run(file.proto, {"x": X, "y.seed": SEED})["x.relevance"])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-3, atol=1e-4 * np.abs(found[1]).max())  # float32, 1 / z


@pytest.mark.parametrize("name", COMPOSITES)
def test_a_composite_says_what_it_takes_where_the_bounds_are_unknown(name):
    entry, bounds = COMPOSITES[name], ([-3.0], [3.0])
    wants = entry.make(None).text() != entry.make(bounds).text()
    assert bool(entry.without_bounds) == wants
    if wants:
        assert entry.make(bounds).assignments[0].rule.name == "box"
        assert entry.make(None).assignments[0].rule.name == entry.without_bounds.split()[0]


@pytest.mark.parametrize("method", RELEVANCE)
@pytest.mark.parametrize("name", [name for name, entry in COMPOSITES.items() if entry.without_bounds])
def test_a_default_that_was_not_possible_is_said_by_every_composite_that_wanted_it(name, method, tmp_path):
    def notes(rules=(), **options):
        rules = [*rules, "last=z_plus"] if method == "clrp1" else rules  # clrp1 refuses epsilon at the logits
        found = compiled(relu_net(), tmp_path, method, composite=name, rules=rules, **options).explainer.notes
        return [note for note in found if "bounds are not known" in note]

    (note,) = notes()
    assert note.startswith(f"composite {name}: ") and COMPOSITES[name].without_bounds in note
    assert notes(rules=["type:Gemm=gamma"]) == [note], "a rule for another place does not say where the first is"
    assert not notes(rules=["first=flat"]) and not notes(bounds=([-3.0], [3.0]))


@pytest.mark.parametrize("name", METHODS)
def test_every_option_says_what_it_means(name):
    for option in METHODS[name].options.values():
        assert option.doc.endswith("."), option
