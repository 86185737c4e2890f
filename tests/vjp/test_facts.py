"""What registrations claim of ops, on numbers: each claim for every op that makes it, on its own cases."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from support import evaluate, one_node, precision, run, sample

from onnxplain.graph.bounds import BoundStep
from onnxplain.graph.node import Node
from onnxplain.rules import RULES
from onnxplain.vjp import OPS, Case, case
from onnxplain.vjp.facts import never


def outputs(op_type: str, of: Case, feeds: dict[str, np.ndarray], dtype: type | None = None) -> np.ndarray:
    """The node's own output, in float64 where it takes that; float32 by onnxruntime."""
    evaluated, dtype = dtype is None, dtype or precision(op_type, of, "")
    built = one_node(op_type, of, dtype).proto
    fed = {value.name: feeds[value.name].astype(dtype) for value in built.graph.input if value.name in feeds}
    return (evaluate if evaluated else run)(built, {**fed, "seed": np.zeros(built_shape(built), dtype)})["y0"]


def built_shape(model: onnx.ModelProto) -> tuple[int, ...]:
    (seed,) = [value for value in model.graph.input if value.name == "seed"]
    return tuple(dim.dim_value or 1 for dim in seed.type.tensor_type.shape.dim)


def drawn(of: Case) -> dict[str, np.ndarray]:
    return sample(of, np.random.default_rng(4), np.float64)


def first_input(of: Case) -> str:
    return next(iter(of.inputs))


def cases_of(claims) -> Iterator:
    """(op type, case) of every op that claims something, as parameters."""
    for name, entry in OPS.items():
        if claims(entry):
            for i, of in enumerate(entry.cases):
                if isinstance(of.inputs[first_input(of)], tuple) and not entry.domain:
                    yield pytest.param(name, of, id=f"{name}-{i}")


def node_of(op_type: str, of: Case) -> Node:
    """The node as a claim sees it: constants are known, the rest is not."""
    values = [
        ir.Value(name=name, const_value=ir.tensor(given)) if isinstance(given, np.ndarray) else ir.Value(name=name)
        for name, given in of.inputs.items()
        if given is not None
    ]
    return Node(op_type, tuple(values), (), of.attributes)


@pytest.mark.parametrize(("op_type", "of"), cases_of(lambda entry: entry.zero_at_zero is not never))
def test_what_keeps_zero_is_zero_wherever_its_input_is(op_type, of):
    if not OPS[op_type].zero_at_zero(node_of(op_type, of)):
        return
    feeds = drawn(of)
    x = feeds[first_input(of)]
    x[np.random.default_rng(0).random(x.shape) < 0.5] = 0
    y = outputs(op_type, of, feeds)
    np.testing.assert_array_equal(y[np.broadcast_to(x == 0, y.shape)], 0)


@pytest.mark.parametrize(("op_type", "of"), cases_of(lambda entry: entry.commutes))
def test_the_operands_of_what_commutes_may_be_exchanged(op_type, of):
    feeds = drawn(of)
    names = list(feeds)
    backwards = replace(of, inputs={name: of.inputs[name] for name in reversed(names)})
    found, expected = outputs(op_type, backwards, feeds, np.float32), outputs(op_type, of, feeds, np.float32)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)  # float32, another order of summation


@pytest.mark.parametrize(("op_type", "of"), cases_of(lambda entry: entry.rectifies is not never))
def test_what_rectifies_is_zero_for_negative_inputs(op_type, of):
    if OPS[op_type].rectifies(node_of(op_type, of)):
        feeds = drawn(of)
        y = outputs(op_type, of, feeds)
        np.testing.assert_array_equal(y[feeds[first_input(of)] < 0], 0)


def test_relu6_rectifies_and_a_tanh_like_clip_does_not():
    ends = {low: case(x=(2, 3), low=np.array(low), high=np.array(6.0)) for low in (0.0, -1.0)}
    assert OPS["Clip"].rectifies(node_of("Clip", ends[0.0])) and not OPS["Clip"].rectifies(node_of("Clip", ends[-1.0]))


@pytest.mark.parametrize(("op_type", "of"), cases_of(lambda entry: entry.zero_or_input))
def test_what_is_zero_or_its_input_is(op_type, of):
    feeds = drawn(of)
    y = outputs(op_type, of, feeds)
    np.testing.assert_array_equal(y[y != 0], feeds[first_input(of)][y != 0])


@pytest.mark.parametrize(("op_type", "of"), cases_of(lambda entry: entry.bounds is not None and entry.bounds.changes))
def test_what_carries_bounds_is_monotone_in_its_first_input(op_type, of):
    feeds = drawn(of)
    name = first_input(of)
    low, high = (feeds | {name: feeds[name] + shift} for shift in (-0.7, 0.4))
    ends = [outputs(op_type, of, given) for given in (low, high)]
    inside = outputs(op_type, of, feeds)
    assert (np.minimum(*ends) <= inside + 1e-12).all() and (inside <= np.maximum(*ends) + 1e-12).all()


@pytest.mark.parametrize("op_type", [name for name, entry in OPS.items() if entry.bounds == BoundStep(changes=False)])
def test_what_leaves_bounds_alone_moves_values_only(op_type):
    assert OPS[op_type].kind == "routing"


@pytest.mark.parametrize("op_type", [name for name, entry in OPS.items() if entry.own_rule])
def test_a_rule_made_for_an_op_is_for_its_kind(op_type):
    assert OPS[op_type].kind in RULES[OPS[op_type].own_rule].kinds
