"""Every rule against its equation in slow numpy, written from the literature and not from the code.

Rules of layers with weights: on the layer's dense matrix, measured with unit vectors, unit by unit. The others: on an
op that they are for, by sums over entries or by the Jacobian from central differences.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import cache

import numpy as np
import onnx
import pytest
from layers import LAYERS, fixed, relevance
from nets import net
from support import evaluate, one_node

from onnxplain import Explainer
from onnxplain.rules import RULES, parse_rule
from onnxplain.vjp import OPS, case

EPSILON = 1e-6
DENSE: dict[str, Callable[..., np.ndarray]] = {}
"""Rule -> (x (I,), w (K, I), b (K,), r (K,)) -> relevance of x."""
OTHERS: dict[str, Callable[[], tuple[np.ndarray, np.ndarray]]] = {}
"""Rule -> what the compiled rule gives on an op of its kind, and what the equation does."""


def equation(*rules: str):
    """The equation of a layer with weights, for these rules."""

    def register(function):
        DENSE.update(dict.fromkeys(rules, function))
        return function

    return register


def equation_of_an_op(*rules: str):
    """A comparison on an op of another kind."""

    def register(function):
        OTHERS.update(dict.fromkeys(rules, function))
        return function

    return register


def pos(v):
    return np.maximum(v, 0)


def neg(v):
    return np.minimum(v, 0)


def away(z, epsilon=EPSILON):
    """z moved away from zero."""
    return z + epsilon * np.where(z >= 0, 1, -1)


def unit_by_unit(share):
    """An equation from the share of R_k = 1 that one unit gives: share(x, its weights, its bias) -> (I,)."""

    def whole(x, w, b, r):
        return sum(share(x, w[k], b[k]) * r[k] for k in range(len(r)))

    return whole


@equation("zero")
@unit_by_unit
def lrp_0(x, w, b):
    z = x @ w + b
    return np.zeros_like(x) if z == 0 else x * w / z


@equation("epsilon(epsilon=0.1)")
@unit_by_unit
def lrp_epsilon(x, w, b):
    return x * w / away(x @ w + b, 0.1)


@equation("epsilon(bias=drop)")
@unit_by_unit
def lrp_epsilon_without_bias(x, w, b):
    return x * w / away(x @ w)


@equation("epsilon(epsilon=0.1,stabiliser=unsigned)")
@unit_by_unit
def lrp_epsilon_unsigned(x, w, b):
    return x * w / (x @ w + b + 0.1)


@equation("gamma(gamma=0.3)")
@unit_by_unit
def generalised_gamma(x, w, b):
    boost = pos if x @ w + b >= 0 else neg
    contribution = x * w + 0.3 * boost(x * w)
    return contribution / away(contribution.sum() + b + 0.3 * boost(b))


@equation("gamma(gamma=0.3,form=positive)")
@unit_by_unit
def gamma_of_the_overview(x, w, b):
    raised = np.where(w > 0, 1.3 * w, w)
    return x * raised / away((x * raised).sum() + b)


@equation("alpha_beta(alpha=3,beta=2)")
@unit_by_unit
def alpha_beta(x, w, b):
    c = x * w
    return 3 * pos(c) / (pos(c).sum() + pos(b) + EPSILON) - 2 * neg(c) / away(neg(c).sum() + neg(b))


@equation("alpha_beta(alpha=3,beta=2,bias=shared)")
@unit_by_unit
def alpha_beta_with_all_of_the_bias(x, w, b):
    c = x * w
    return 3 * pos(c) / away(pos(c).sum() + b) - 2 * neg(c) / away(neg(c).sum() + b)


@equation("alpha_beta(alpha=3,beta=2,bias=drop)")
@unit_by_unit
def alpha_beta_without_bias(x, w, b):
    c = x * w
    return 3 * pos(c) / (pos(c).sum() + EPSILON) - 2 * neg(c) / away(neg(c).sum())


@equation("z_plus")
@unit_by_unit
def z_plus(x, w, b):
    c = pos(x * w)
    return c / (c.sum() + pos(b) + EPSILON)


@equation("z_plus(bias=drop)")
@unit_by_unit
def z_plus_without_bias(x, w, b):
    c = pos(x * w)
    return c / (c.sum() + EPSILON)


@equation("z_plus(form=fast)")
@unit_by_unit
def z_plus_of_positive_weights(x, w, b):
    c = x * pos(w)
    return c / away(c.sum() + b)


@equation("box(low=-9,high=7)")
@unit_by_unit
def z_box(x, w, b):
    c = x * w + 9 * pos(w) - 7 * neg(w)
    return c / (c.sum() + EPSILON)


@equation("w_square")
@unit_by_unit
def w_square(x, w, b):
    return w**2 / (sum(v**2 for v in w) + b**2 + EPSILON)


@equation("w_square(bias=drop)")
@unit_by_unit
def w_square_without_bias(x, w, b):
    return w**2 / (sum(v**2 for v in w) + EPSILON)


@equation("flat")
@unit_by_unit
def flat(x, w, b):
    seen = w != 0
    return seen / (np.count_nonzero(seen) + EPSILON)


@cache
def dense(layer_name: str, inputs: str):
    """Input, matrix, bias, relevance of the output, and the layer they are of."""
    layer, x = fixed(LAYERS[layer_name])
    x = np.abs(x) if inputs == "positive" else x
    forward = one_node(layer_name.split()[0], layer, np.float64)
    r = np.random.default_rng(1).standard_normal(forward.shape)

    def y(at):
        return evaluate(forward.proto, {"x": at.reshape(x.shape), "seed": r})["y0"].reshape(-1)

    b = y(np.zeros(x.size))
    matrix = np.stack([y(unit) - b for unit in np.eye(x.size)], 1)
    return layer, x, matrix, b, r


@pytest.mark.parametrize("layer_name", LAYERS)
@pytest.mark.parametrize("rule", DENSE)
@pytest.mark.parametrize("inputs", ["signed", "positive"])
def test_a_rule_equals_its_equation_on_the_layers_dense_matrix(rule, layer_name, inputs):
    layer, x, matrix, b, r = dense(layer_name, inputs)
    matrix = np.where(np.abs(matrix) < 1e-12, 0, matrix)  # what is left of y(unit) - y(0) where no weight is
    expected = DENSE[rule](x.reshape(-1), matrix, b, r.reshape(-1)).reshape(x.shape)
    found = relevance(rule, layer_name.split()[0], layer, {"x": x}, r, positive=inputs == "positive")
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-9)  # float64


def compiled(rule: str, op_type: str, layer, feeds, r):
    """Relevances of all inputs of one node."""
    found = evaluate(one_node(op_type, layer, np.float64, rule=parse_rule(rule)).proto, {**feeds, "seed": r})
    return np.concatenate([found[f"{name}.relevance"].reshape(-1) for name in feeds])


def differences(function, x: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """The Jacobian (outputs, inputs), central differences."""
    units = step * np.eye(x.size).reshape(-1, *x.shape)
    columns = [(function(x + unit) - function(x - unit)).reshape(-1) / (2 * step) for unit in units]
    return np.stack(columns, 1)


def drawn(*shapes):
    rng = np.random.default_rng(3)
    return [rng.standard_normal(shape) for shape in shapes]


@equation_of_an_op("guided")
def guided_backprop_at_a_relu():
    x, r = drawn((4, 6), (4, 6))
    expected = [g if g > 0 and v > 0 else 0 for g, v in zip(r.flat, x.flat, strict=True)]
    return compiled("guided", "Relu", case(x=x.shape), {"x": x}, r), np.array(expected)


@equation_of_an_op("deconvnet")
def deconvnet_at_a_relu():
    x, r = drawn((4, 6), (4, 6))
    return compiled("deconvnet", "Relu", case(x=x.shape), {"x": x}, r), np.array([g if g > 0 else 0 for g in r.flat])


@equation_of_an_op("pass")
def the_identity_at_an_activation():
    x, r = drawn((4, 6), (4, 6))
    return compiled("pass", "Tanh", case(x=x.shape), {"x": x}, r), r.reshape(-1)


def summands(rule: str, weigh):
    """A sum of three, one of them stretched: entry by entry, each its weight's part."""
    shapes = (3, 4), (4,), (3, 1)
    *values, r = drawn(*shapes, (3, 4))
    expected = [np.zeros(shape) for shape in shapes]
    for row, column in np.ndindex(3, 4):
        places = ((row, column), (column,), (row, 0))
        weights = [weigh(v[place]) for v, place in zip(values, places, strict=True)]
        for part, weight, place in zip(expected, weights, places, strict=True):
            part[place] += weight / (sum(weights) + EPSILON) * r[row, column]
    feeds = dict(zip("xab", values, strict=True))
    found = compiled(rule, "Sum", case(**{k: v.shape for k, v in feeds.items()}), feeds, r)
    return found, np.concatenate([part.reshape(-1) for part in expected])


@equation_of_an_op("add_abs")
def summands_by_magnitude():
    return summands("add_abs", abs)


@equation_of_an_op("add_positive")
def summands_by_positive_part():
    return summands("add_positive", lambda v: max(v, 0))


@equation_of_an_op("add_half")
def summands_alike():
    return summands("add_half", lambda v: 1e9)


@equation_of_an_op("add_skip")
def all_to_the_skip_connection():
    """y = x + tanh(x) is a residual block: R_x = R, so that nothing of tanh's part arrives."""
    model = net("g (float[N, 3] x) => (float[N, 3] y) { h = Tanh (x) y = Add (h, x) }")
    x = np.array([[-1.0, 2.0, 0.5]], np.float32)
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(model, f"{folder}/model.onnx")
        explainer = Explainer(f"{folder}/model.onnx", "lrp", composite="epsilon", rules=("type:Add=add_skip",))
        found = explainer.explain(x, 0).relevance
    return found.reshape(-1), np.array([x[0, 0] + np.tanh(x[0, 0]), 0, 0])


@equation_of_an_op("norm")
def an_average_by_its_matrix():
    x, r = drawn((1, 2, 4, 4), (1, 2, 2, 2))
    layer = case(x=x.shape, kernel_shape=[2, 2], strides=[2, 2])

    def average(v):
        return v.reshape(1, 2, 2, 2, 2, 2).mean((3, 5))

    jacobian, z = differences(average, x), average(x).reshape(-1)
    expected = sum(jacobian[k] * x.reshape(-1) / away(z[k]) * r.reshape(-1)[k] for k in range(z.size))
    return compiled("norm", "AveragePool", layer, {"x": x}, r), expected


@equation_of_an_op("uniform")
def halves_of_a_matrix_product():
    """R of a_ij b_jk is its part of the sum; each factor takes half of it (AttnLRP, equation 14)."""
    a, b, r = drawn((3, 4), (4, 2), (3, 2))
    o = a @ b
    to_a, to_b = np.zeros_like(a), np.zeros_like(b)
    for i, j, k in np.ndindex(3, 4, 2):
        part = a[i, j] * b[j, k] / away(o[i, k]) * r[i, k]
        to_a[i, j] += part / 2
        to_b[j, k] += part / 2
    found = compiled("uniform", "MatMul", case(x=a.shape, b=b.shape), {"x": a, "b": b}, r)
    return found, np.concatenate([to_a.reshape(-1), to_b.reshape(-1)])


@equation_of_an_op("softmax_taylor")
def taylor_of_a_softmax():
    """x_i sum_j (dy_j / dx_i) R_j / y_j, the Jacobian measured (AttnLRP, proposition 3.1)."""
    (x,), (r,) = drawn((5,)), drawn((1, 5))

    def softmax(v):
        return np.exp(v) / np.exp(v).sum()

    expected = x * (differences(softmax, x).T @ (r[0] / softmax(x)))
    return compiled("softmax_taylor", "Softmax", case(x=(1, 5)), {"x": x[None]}, r), expected


@equation_of_an_op("centre")
def layer_normalisation_with_its_spread_held():
    (x, scale, bias, r), epsilon = drawn((6,), (6,), (6,), (1, 6)), 1e-5
    spread = np.sqrt(((x - x.mean()) ** 2).mean() + epsilon)

    def held(v):
        return (v - v.mean()) / spread * scale + bias

    expected = x * (differences(held, x).T @ (r[0] / away(held(x))))
    return compiled("centre", "LayerNormalization", case(x=(1, 6), s=scale, b=bias), {"x": x[None]}, r), expected


@pytest.mark.parametrize("rule", OTHERS)
def test_a_rule_of_another_op_equals_its_equation(rule):
    found, expected = OTHERS[rule]()
    np.testing.assert_allclose(found.reshape(-1), expected, rtol=1e-6, atol=1e-8)  # central differences; float32


def test_every_rule_has_an_equation():
    """A new rule comes with one: `@equation`, or `@equation_of_an_op` where it is for no layer with weights."""
    assert {parse_rule(text).name for text in (*DENSE, *OTHERS)} == set(RULES)


def test_every_linear_op_is_tried():
    """By hand, or by a small case of its registration."""
    linear = {name for name, entry in OPS.items() if entry.kind == "linear"}
    assert linear <= {name.split()[0] for name in LAYERS}
    assert {name for name, entry in OPS.items() if entry.weights is not None} == linear
