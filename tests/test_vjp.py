"""Laws of every registered derivative. A new op is tested by being registered with its cases."""

from __future__ import annotations

import contextlib
import dataclasses

import numpy as np
import pytest
from support import Misfit, evaluate, one_node, precision, registered_cases, run, sample

from onnxplain.vjp import OPS

CASES = registered_cases()
IDS = [f"{name}-{i}" for name, i, _ in CASES]


@pytest.mark.parametrize("name", OPS)
def test_every_op_has_a_case(name):
    assert OPS[name].cases


@pytest.mark.parametrize(("op_type", "index", "case"), CASES, ids=IDS)
def test_vjp_equals_the_central_difference(op_type, index, case):
    """<g, J d> by central difference in float64 along random directions, for each differentiable input.

    Ops that ONNX defines in float32 only run on onnxruntime, with what that precision allows.
    """
    domain = OPS[op_type].domain
    dtype = precision(op_type, case, domain)
    execute, eps, rel, tolerance = (evaluate, 1e-6, 1e-6, 1e-8) if dtype is np.float64 else (run, 1e-2, 1e-2, 2e-4)
    built = one_node(op_type, case, dtype, domain=domain)
    rng = np.random.default_rng(1)
    feeds = sample(case, np.random.default_rng(0), dtype)
    feeds = {name: array for name, array in feeds.items() if isinstance(case.inputs[name], tuple)}
    assert OPS[op_type].kind == "flat" or built.wanted == [name for name in feeds if name not in case.constant]
    seed = rng.standard_normal(built.shape).astype(dtype)
    result = execute(built.proto, {**feeds, "seed": seed})
    for name in built.wanted:
        direction = rng.standard_normal(feeds[name].shape).astype(dtype)
        up, down = (
            execute(built.proto, {**feeds, name: feeds[name] + sign * eps * direction, "seed": seed})["y0"]
            for sign in (1, -1)
        )
        expected = float((seed * (up - down)).sum() / (2 * eps))
        relevance = result[f"{name}.relevance"]
        assert relevance.shape == feeds[name].shape
        # rounding 1e-16 / eps 1e-6 = 1e-10 of the largest terms (float32: 1e-7 / 1e-2), truncation eps^2
        scale = float(np.abs(seed).sum()) + 1
        assert float((relevance * direction).sum()) == pytest.approx(expected, rel=rel, abs=tolerance * scale)


@pytest.mark.parametrize(
    ("op_type", "index", "case"),
    [c for c in CASES if OPS[c[0]].linear],
    ids=[i for i, c in zip(IDS, CASES, strict=True) if OPS[c[0]].linear],
)
def test_linear_ops_obey_the_adjoint_identity(op_type, index, case):
    """<g, f(x) - f(0)> = <vjp(g), x> in float32 on onnxruntime, the kernels that users run."""
    built = one_node(op_type, case, np.float32, domain=OPS[op_type].domain)
    if not built.wanted:
        return
    name = built.wanted[0]
    rng = np.random.default_rng(2)
    feeds = sample(case, np.random.default_rng(0), np.float32)
    feeds = {n: a for n, a in feeds.items() if isinstance(case.inputs[n], tuple)}
    seed = rng.standard_normal(built.shape).astype(np.float32)
    at = run(built.proto, {**feeds, "seed": seed})
    zero = run(built.proto, {**feeds, name: np.zeros_like(feeds[name]), "seed": seed})
    left = float((seed.astype(np.float64) * (at["y0"].astype(np.float64) - zero["y0"])).sum())
    right = float((at[f"{name}.relevance"].astype(np.float64) * feeds[name]).sum())
    size = float(np.abs(seed).sum() * np.abs(at["y0"]).max() + 1)
    assert left == pytest.approx(right, abs=2e-6 * size)  # float32: 6e-8 per product, some tens of terms


RECURRENT = ("LSTM", "GRU", "RNN")


def one_batch(op_type, case, batch):
    return one_node(op_type, case, np.float32, free=True, domain=OPS[op_type].domain, batch=batch)


def batch_of_one(op_type, case, batch):
    """The case with one row where the batch is; Misfit where the other inputs do not go with it."""
    inputs = dict(case.inputs)
    for name, axis in batch.items():
        inputs[name] = tuple(1 if i == axis else d for i, d in enumerate(inputs[name]))
    case = dataclasses.replace(case, inputs=inputs)
    return case, one_batch(op_type, case, batch)


def check_ten_seeds(case, built):
    """Streams are independent: one forward row, K seeds."""
    axis = built.axes["y0"]
    feeds = sample(case, np.random.default_rng(0), np.float32)
    feeds = {n: a for n, a in feeds.items() if isinstance(case.inputs[n], tuple)}
    shape = [10 if i == axis else d for i, d in enumerate(built.shape)]
    seeds = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    together = run(built.proto, {**feeds, "seed": seeds})
    singles = [run(built.proto, {**feeds, "seed": np.take(seeds, [k], axis)}) for k in range(10)]
    for name in built.wanted:
        found, at = together[f"{name}.relevance"], built.axes[name]
        assert found.shape[at] == 10
        apart = np.concatenate([single[f"{name}.relevance"] for single in singles], at)
        np.testing.assert_allclose(found, apart, rtol=1e-5, atol=1e-5)  # float32, other summation order


@pytest.mark.parametrize(("op_type", "index", "case"), CASES, ids=IDS)
def test_ten_seeds_at_once_equal_ten_runs(op_type, index, case):
    name, first = next((n, given) for n, given in case.inputs.items() if isinstance(given, tuple))
    at = 1 if op_type in RECURRENT and not case.attributes.get("layout") else 0
    if not first or (op_type in RECURRENT and name != "x"):
        pytest.skip("no batch axis")
    try:
        case, built = batch_of_one(op_type, case, {name: at})
    except Misfit as error:
        pytest.skip(f"the case's other inputs do not go with a batch of one: {error}")
    if built.axes.get("y0", -2) < 0 or not built.wanted:
        pytest.skip("batch axis not proven: the compiler asks for exact seeds")
    check_ten_seeds(case, built)


@pytest.mark.parametrize(("op_type", "index", "case"), CASES, ids=IDS)
def test_a_parameter_computed_from_the_batch_has_streams_of_its_own_or_leaves_the_axis_unproven(op_type, index, case):
    """Whichever axis of each other input is said to carry the batch, beside the first input or alone."""
    names = [n for n, given in case.inputs.items() if isinstance(given, tuple) and n not in case.constant]
    parameters = names[1:] if names[:1] == list(case.inputs)[:1] else names
    at = 1 if op_type in RECURRENT and not case.attributes.get("layout") else 0
    alone = [{name: axis} for name in parameters for axis in range(len(case.inputs[name]))]
    beside = [{names[0]: at, **one} for one in alone if case.inputs[names[0]] and names[0] not in one]
    for batch in [*alone, *beside]:
        with contextlib.suppress(Misfit):  # a constant of as many rows as the batch; what onnxruntime does not run
            built = one_batch(op_type, case, batch)
            if (axis := built.axes["y0"]) < 0:
                continue
            # one row beside a batch: the compiler asks for exact seeds (`Analysis._other_batches`)
            assert {case.inputs[name][own] for name, own in batch.items()} <= {1, built.shape[axis]}
            changed, built = batch_of_one(op_type, case, batch)
            if built.axes["y0"] >= 0:
                check_ten_seeds(changed, built)
