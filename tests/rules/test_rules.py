"""Rules against numbers from the peers, and against their own equations on the dense matrix of every layer type."""

from __future__ import annotations

import itertools
import tempfile

import numpy as np
import onnx
import pytest
from layers import LAYERS, relevance
from nets import net
from support import evaluate, one_node, sample

from onnxplain import Explainer
from onnxplain.errors import OnnxplainError, UnsupportedOp, UsageError
from onnxplain.rules import RULES, parse_rule
from onnxplain.vjp import case

X = np.array([[1.0, -2.0, 0.5, 3.0]])
W = np.array([[1.0, -1.0, 2.0, 0.0], [-2.0, 0.5, 1.0, 1.0], [0.0, 1.0, -1.0, -0.5]])
B = np.array([0.5, -1.0, 0.25])
R = np.array([[2.0, 1.0, -1.0]])

# What zennit 0.5.1 (Z), innvestigate 2.1.2 (I), captum 0.9 (C), LXT (X) and the CLRP code (CL) give on this layer.
GOLDEN = {
    "epsilon": [4.444436, 2.355551, -0.688887, -6.399987],  # Z, C, I
    "epsilon(bias=drop)": [-3.499992, -1.499996, 1.374998, 5.624988],
    "epsilon(epsilon=0.1)": [3.768, 2.017, -0.528, -5.390],
    "epsilon(epsilon=0.1,stabiliser=unsigned)": [5.435, 2.822, -0.952, -7.911],  # X
    "z_plus": [0.444444, 0.888889, 0.587302, 0.857143],  # Z
    "alpha_beta(alpha=1,beta=0,bias=drop)": [0.5, 1.0, 0.642857, 0.857143],  # I
    "alpha_beta(alpha=1,beta=0,bias=shared)": [0.444444, 0.888889, 0.644444, 1.2],  # I
    "z_plus(form=fast,bias=drop)": [1.0, -1.4, 1.2, 1.2],  # I fast, excitation backprop, CL
    "z_plus(form=fast)": [0.8, -1.809524, 1.133333, 2.0],  # C
    "alpha_beta": [0.388889, 2.027777, 1.299603, 2.089285],  # Z
    "alpha_beta(bias=drop)": [0.333333, 2.166667, 1.410714, 2.089286],  # I
    "gamma(form=positive)": [-15.5, -9.788235, 5.382353, 29.647058],  # C
    "gamma": [2.11111, 1.195906, -0.020468, -2.394736],  # Z
    "box(low=-3,high=3)": [0.785714, 0.375, 0.410714, 0.428571],
    "w_square": [0.871724, -0.07795, 0.985499, 0.029823],  # Z
    "w_square(bias=drop)": [0.973333, -0.071111, 1.048889, 0.048889],  # I
    "flat": [0.5, 0.5, 0.5, 0.5],
}


@pytest.mark.parametrize("rule", GOLDEN)
def test_a_dense_layer_gives_the_peers_numbers(rule):
    layer = case(x=(1, 4), w=W, b=B, transB=1)
    found = relevance(rule, "Gemm", layer, {"x": X}, R)[0]
    # six printed decimals in the table, three for epsilon 0.1; stabilisers differ by 1e-9 … 1e-6 over |z| >= 0.2
    assert found == pytest.approx(GOLDEN[rule], abs=6e-4 if "0.1" in rule else 2e-5, rel=2e-5)


def words():
    """(rule, option, word, other options) for every word of every option with words, beside every other such word."""
    for name, entry in RULES.items():
        for option, choices in entry.choices.items():
            others = [[(o, w) for w in ws] for o, ws in entry.choices.items() if o != option]
            for rest in itertools.product(*others):
                for word in choices[1:]:
                    yield pytest.param(name, option, choices[0], word, dict(rest), id=f"{name}-{option}={word}-{rest}")


@pytest.mark.parametrize(("name", "option", "usual", "word", "rest"), words())
def test_every_word_of_every_option_acts(name, option, usual, word, rest):
    """An option that is accepted changes something, whatever the other options say."""
    if option == "of":
        return  # whose bounds they are: tests/test_reexports.py has normalisation inside and outside
    layer = case(x=(1, 4), w=W, b=B, transB=1)
    found = []
    for choice in (usual, word):
        options = {**rest, option: choice, **({"low": -3, "high": 3} if name == "box" else {})}
        text = f"{name}({','.join(f'{o}={w}' for o, w in options.items())})"
        found.append(relevance(text, "Gemm", layer, {"x": X}, R)[0])
    assert not np.allclose(*found, rtol=1e-7, atol=0)


@pytest.mark.parametrize("layer_name", LAYERS)
@pytest.mark.parametrize("rule", ["epsilon(epsilon=0,bias=drop)", "box(low=-9,high=9)", "flat", "w_square(bias=drop)"])
def test_relevance_is_conserved_without_bias(rule, layer_name):
    layer, op_type = LAYERS[layer_name], layer_name.split()[0]
    feeds = sample(layer, np.random.default_rng(0), np.float64)
    fixed = case(x=layer.inputs["x"], **{k: v for k, v in feeds.items() if k not in ("x", "b")}, **layer.attributes)
    built = one_node(op_type, fixed, np.float64)
    r = np.random.default_rng(1).standard_normal(built.shape)
    found = relevance(rule, op_type, fixed, {"x": feeds["x"]}, r)
    assert found.sum() == pytest.approx(r.sum(), abs=1e-4 * np.abs(r).sum())  # epsilon 1e-6 over denominators >= 0.01


@pytest.mark.parametrize("layer_name", LAYERS)
@pytest.mark.parametrize("rule", [r for r in GOLDEN if r not in ("flat",)])
def test_knowing_the_signs_changes_the_cost_and_not_the_relevance(rule, layer_name):
    """The short ways for inputs >= 0 (fewer convolutions, both halves stacked in one) against the long one."""
    layer, op_type = LAYERS[layer_name], layer_name.split()[0]
    feeds = sample(layer, np.random.default_rng(0), np.float64)
    fixed = case(x=layer.inputs["x"], **{k: v for k, v in feeds.items() if k != "x"}, **layer.attributes)
    built = [one_node(op_type, fixed, np.float64, rule=parse_rule(rule), positive=known) for known in (False, True)]
    r = np.random.default_rng(1).standard_normal(built[0].shape)
    found = [evaluate(b.proto, {"x": np.abs(feeds["x"]), "seed": r})["x.relevance"] for b in built]
    np.testing.assert_allclose(found[1], found[0], rtol=1e-9, atol=1e-9)  # float64, other order of summation


@pytest.mark.parametrize("name", RULES)
def test_every_rule_says_what_it_is_and_who_says_so(name):
    entry = RULES[name]
    assert entry.cite and entry.make.__doc__


@pytest.mark.parametrize(
    "name", [n for n, e in RULES.items() if "linear" in e.kinds and n not in ("pass", "norm", "uniform")]
)
def test_every_linear_rule_runs_on_every_linear_op_and_is_linear_in_relevance(name):
    text = f"{name}(low=-4,high=4)" if name == "box" else name
    for layer_name, layer in LAYERS.items():
        op_type = layer_name.split()[0]
        feeds = sample(layer, np.random.default_rng(0), np.float64)
        fixed = case(x=layer.inputs["x"], **{k: v for k, v in feeds.items() if k != "x"}, **layer.attributes)
        built = one_node(op_type, fixed, np.float64, rule=parse_rule(text))
        rng = np.random.default_rng(1)
        one, two = rng.standard_normal(built.shape), rng.standard_normal(built.shape)
        parts = [
            evaluate(built.proto, {"x": feeds["x"], "seed": s})["x.relevance"] for s in (one, two, 2 * one - 3 * two)
        ]
        np.testing.assert_allclose(parts[2], 2 * parts[0] - 3 * parts[1], rtol=1e-9, atol=1e-9)  # float64


@pytest.mark.parametrize("rule", ["add_abs", "add_positive", "add_half", "norm"])
def test_sums_conserve_relevance(rule):
    addition = case(x=(2, 3, 4), b=(3, 1))
    feeds = {k: np.abs(v) for k, v in sample(addition, np.random.default_rng(0), np.float64).items()}
    built = one_node("Add", addition, np.float64, rule=parse_rule(rule))
    r = np.random.default_rng(1).standard_normal(built.shape)
    found = evaluate(built.proto, {**feeds, "seed": r})
    total = found["x.relevance"].sum() + found["b.relevance"].sum()
    assert total == pytest.approx(r.sum(), abs=1e-5 * np.abs(r).sum())  # stabiliser 1e-6 over sums >= 0.1


def test_add_abs_is_bounded_where_norm_explodes():
    addition = case(x=(1, 1), b=(1, 1))
    feeds = {"x": np.array([[-3.0]]), "b": np.array([[3.0]])}
    seed = np.ones((1, 1))
    found = {
        rule: abs(
            evaluate(one_node("Add", addition, np.float64, rule=parse_rule(rule)).proto, {**feeds, "seed": seed})[
                "x.relevance"
            ]
        ).max()
        for rule in ("add_abs", "norm")
    }
    assert found["add_abs"] <= 1 < 1e5 < found["norm"]


def test_options_are_checked():
    for bad in (
        "alpha_beta(alpha=2,beta=2)",
        "gamma(gamma=-1)",
        "box",
        "epsilon(bias=maybe)",
        "epsilon(eps=1)",
        "nosuch",
        "flat(",
        "epsilon(0.1)",
    ):
        with pytest.raises(OnnxplainError) as caught:
            parse_rule(bad)
        assert isinstance(caught.value, UsageError) and "\n" not in str(caught.value)
    assert str(parse_rule("alpha_beta(alpha=1, beta=0)")) == "alpha_beta(alpha=1,beta=0,epsilon=1e-06,bias=split)"


def test_turning_the_sign_of_a_tensor_does_not_turn_its_relevance():
    model = net("g (float[N, 3] x) => (float[N, 2] y) { z = MatMul (x, w) y = Neg (z) }", w=np.ones((3, 2), np.float32))
    explanation = explained(model, [[1.0, 2.0, 3.0]])
    assert explanation.relevance.sum() == pytest.approx(float(explanation.scores[0, 0]), rel=1e-5)


def explained(model, x, rules=()):
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(model, f"{folder}/model.onnx")
        explainer = Explainer(f"{folder}/model.onnx", "lrp", composite="epsilon", rules=rules)
        return explainer.explain(np.array(x, np.float32), 0)


SCATTER = 'g (float[2, 3] x) => (float[2, 3] y) { h = Relu (x) y = ScatterElements <reduction = "add"> (h, at, h) }'
EXP = "g (float[N, 3] x) => (float[N, 2] y) { e = Exp (x) y = MatMul (e, w) }"


def test_a_scatter_that_adds_has_no_rule_of_its_own():
    with pytest.raises(UnsupportedOp, match="ScatterElements"):
        explained(net(SCATTER, at=np.zeros((2, 3), np.int64)), np.ones((2, 3)))


def test_an_op_without_a_rule_can_be_given_one_and_a_rule_that_does_not_fit_is_an_error():
    model = net(EXP, w=np.ones((3, 2), np.float32))
    with pytest.raises(UnsupportedOp, match="type:Exp"):
        explained(model, [[1, 2, 3]])
    given = explained(model, [[1, 2, 3]], rules=("type:Exp=pass",))
    np.testing.assert_allclose(given.relevance, [np.exp([1, 2, 3])], rtol=1e-5)
    for rule in ("type:Exp=flat", "type:MatMul=add_abs", "first=add_half", "name:e=gamma"):
        with pytest.raises(UnsupportedOp, match="is for"):
            explained(model, [[1, 2, 3]], rules=(rule,))
