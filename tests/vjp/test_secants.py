"""Summation to delta: multiplier times difference, over all inputs of an op, is the difference of its output."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from support import evaluate, one_node, precision, registered_cases, run, sample

from onnxplain.errors import UnsupportedOp
from onnxplain.graph.node import Node
from onnxplain.rules.difference import DIFFERENCE_RULES
from onnxplain.vjp import OPS
from onnxplain.vjp.registry import case
from onnxplain.vjp.secants import NEAR, secant_of

RESCALE = DIFFERENCE_RULES["rescale"]
REFUSED = {
    "GRU", "LSTM", "RNN", "Normalizer", "TopK", "ReduceProd", "LpPool", "GlobalLpPool",
}  # fmt: skip
COMPUTED = {"LayerNormalization", "RMSNormalization", "InstanceNormalization", "GroupNormalization"}
"""Their scale and bias, where these differ from the reference too, are refused."""
CASES = [
    pytest.param(name, entry, id=f"{name}-{index}")
    for name, index, entry in registered_cases()
    if name not in REFUSED and OPS[name].kind != "flat" and entry.opset >= 18  # older models are raised at load
    if entry.attributes.get("post_transform") != "SOFTMAX_ZERO"
]


def of_x_alone(op_type, entry):
    """The case with its parameters held fixed, for ops whose rule holds for the first input alone."""
    if op_type not in COMPUTED and op_type != "BatchNormalization":
        return entry
    return dataclasses.replace(entry, constant=tuple(name for name in entry.inputs if name != "x"))


def drawn(entry, dtype, seed):
    """Random inputs of a case, those that are no constants."""
    feeds = sample(entry, np.random.default_rng(seed), dtype)
    return {name: array for name, array in feeds.items() if isinstance(entry.inputs[name], tuple)}


def check_summation(op_type, entry, own, other):
    """Over all inputs that are not held fixed. own, other: feeds, and those of the reference."""
    entry, domain = of_x_alone(op_type, entry), OPS[op_type].domain
    dtype = precision(op_type, entry, domain)
    execute = evaluate if dtype is np.float64 else run
    built = one_node(op_type, entry, dtype, rule=RESCALE, domain=domain, reference=True)
    read = {value.name for value in built.proto.graph.input}
    moved = {name: other[name] if name in built.wanted else array for name, array in own.items()}
    seed = np.random.default_rng(3).standard_normal(built.shape).astype(dtype)
    named = {f"{name}.reference": moved[name] for name in built.wanted if f"{name}.reference" in read}
    found = execute(built.proto, {**own, **named, "seed": seed})
    base = execute(built.proto, {**moved, **named, "seed": seed})["y0"]
    total = sum(
        float((found[f"{name}.relevance"].astype(np.float64) * (own[name].astype(np.float64) - moved[name])).sum())
        for name in built.wanted
    )
    expected = float((seed.astype(np.float64) * (found["y0"].astype(np.float64) - base)).sum())
    scale = float(np.abs(seed * found["y0"]).sum() + np.abs(seed * base).sum()) + 1
    tolerance = 2e-6 if dtype is np.float64 else 1e-5  # attributes, and weights of Resize, are float32
    assert total == pytest.approx(expected, rel=1e-6, abs=tolerance * scale)
    return found


@pytest.mark.parametrize(("op_type", "entry"), CASES)
def test_multipliers_sum_to_the_difference(op_type, entry):
    """Every op that has a secant, with every attribute of its cases, each input apart from its reference."""
    dtype = precision(op_type, entry, OPS[op_type].domain)
    check_summation(op_type, entry, drawn(entry, dtype, 0), drawn(entry, dtype, 1))


@pytest.mark.parametrize(("op_type", "entry"), CASES)
def test_what_does_not_move_is_no_division_by_zero(op_type, entry):
    """Half of the elements equal their reference: multipliers are finite, and the sum stays what it is."""
    dtype = precision(op_type, entry, OPS[op_type].domain)
    own, other = drawn(entry, dtype, 0), drawn(entry, dtype, 1)
    for name, array in own.items():
        still = np.arange(array.size).reshape(array.shape) % 2 == 0
        other[name] = np.where(still, array, other[name])
    found = check_summation(op_type, entry, own, other)
    assert all(np.isfinite(array).all() for name, array in found.items() if name.endswith(".relevance"))


@pytest.mark.parametrize(("op_type", "entry"), CASES)
def test_where_nothing_moves_a_smooth_op_has_its_derivative(op_type, entry):
    """x = x': the secant is the tangent."""
    if op_type in ("MaxPool", "GlobalMaxPool", "ReduceMax", "ReduceMin"):
        pytest.skip("a winner that does not move has multiplier 0")
    entry = of_x_alone(op_type, entry)
    domain = OPS[op_type].domain
    dtype = precision(op_type, entry, domain)
    execute = evaluate if dtype is np.float64 else run
    own = drawn(entry, dtype, 0)
    plain = one_node(op_type, entry, dtype, domain=domain)
    built = one_node(op_type, entry, dtype, rule=RESCALE, domain=domain, reference=True)
    seed = np.random.default_rng(3).standard_normal(built.shape).astype(dtype)
    read = {value.name for value in built.proto.graph.input}
    named = {f"{name}.reference": own[name] for name in built.wanted if f"{name}.reference" in read}
    expected, found = execute(plain.proto, {**own, "seed": seed}), execute(built.proto, {**own, **named, "seed": seed})
    for name in built.wanted:
        tolerance = 1e-6 if dtype is np.float64 else 1e-4  # attributes are float32
        np.testing.assert_allclose(
            found[f"{name}.relevance"], expected[f"{name}.relevance"], rtol=tolerance, atol=tolerance
        )


@pytest.mark.parametrize(("op_type", "entry"), CASES)
def test_secants_over_half_precision_can_be_emitted(op_type, entry):
    """Types and shapes of every node infer: the forward passes in float16, the multipliers in float32."""
    domain = OPS[op_type].domain
    schema = onnx.defs.get_schema(op_type, 1 if domain else entry.opset, domain)
    taken = {formal.type_str for formal in schema.inputs}
    allowed = [set(c.allowed_type_strs) for c in schema.type_constraints if c.type_param_str in taken]
    if not all("tensor(float16)" in types for types in allowed if "tensor(float)" in types):
        pytest.skip("not defined in this type")
    one_node(op_type, of_x_alone(op_type, entry), np.float16, rule=RESCALE, domain=domain, reference=True)


def test_every_other_op_is_refused_by_name():
    """No gradient in silence: an op without a secant is an error that names the node and a way out."""
    without = set()
    for name, entry in OPS.items():
        if entry.kind != "flat":
            try:
                secant_of(Node(name, (), (ir.Value(name="y"),), domain=entry.domain))
            except UnsupportedOp as error:
                assert f"y ({name}): no rule for the difference of {name}" in str(error)
                without.add(name)
    assert without == REFUSED


def test_a_difference_below_the_threshold_is_none():
    """A Relu at x = -x' = 2e-7: the derivative, 1, and not the secant, 0.5; at 2e-6 the secant."""
    for size, expected in ((0.2 * NEAR, 1.0), (2 * NEAR, 0.5)):
        built = one_node("Relu", case(x=(1, 1)), np.float64, rule=RESCALE, reference=True)
        x = np.full((1, 1), size)
        found = evaluate(built.proto, {"x": x, "x.reference": -x, "seed": np.ones((1, 1))})
        assert found["x.relevance"] == pytest.approx(expected)


def test_two_factors_get_their_shapley_values():
    """delta(a b) = 3 * 5 - 1 * 2 = 13: to a (3 - 1) (5 + 2) / 2 = 7, to b (5 - 2) (3 + 1) / 2 = 6."""
    built = one_node("Mul", case(a=(1, 1), b=(1, 1)), np.float64, rule=RESCALE, reference=True)
    feeds = {"a": 3.0, "b": 5.0, "a.reference": 1.0, "b.reference": 2.0, "seed": 1.0}
    found = evaluate(built.proto, {name: np.full((1, 1), number) for name, number in feeds.items()})
    assert (found["a.relevance"] * 2).item() == pytest.approx(7)
    assert (found["b.relevance"] * 3).item() == pytest.approx(6)


def test_softmax_multipliers_are_bounded_however_far_apart_the_two_are():
    """Logits 80 away, on which a quotient of exponentials would be 1e34."""
    built = one_node("Softmax", case(x=(1, 4)), np.float64, rule=RESCALE, reference=True)
    x, other = np.array([[80.0, 0.0, -80.0, 1.0]]), np.array([[0.0, 1.0, 2.0, -80.0]])
    seed = np.eye(4)[:1]
    found = evaluate(built.proto, {"x": x, "x.reference": other, "seed": seed})["x.relevance"]
    y, base = (np.exp(v - v.max()) / np.exp(v - v.max()).sum() for v in (x, other))
    assert np.abs(found).max() <= 1
    assert (found * (x - other)).sum() == pytest.approx((y - base)[0, 0], abs=1e-9)
