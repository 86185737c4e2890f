"""Laws of every registered derivative. A new op is tested by being registered with its cases."""

from __future__ import annotations

import contextlib
import dataclasses

import ml_dtypes
import numpy as np
import onnx
import onnx.utils
import pytest
from support import REFUSED, Misfit, evaluate, one_node, precision, registered_cases, run, sample

from onnxplain.errors import UnsupportedOp
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


def takes(op_type, case, domain, kind):
    """Whether every float input of the op may be of this type."""
    schema = onnx.defs.get_schema(op_type, 1 if domain else case.opset, domain)
    taken = {formal.type_str for formal in schema.inputs}
    allowed = [set(c.allowed_type_strs) for c in schema.type_constraints if c.type_param_str in taken]
    return all(f"tensor({kind})" in types for types in allowed if "tensor(float)" in types)


@pytest.mark.parametrize(("op_type", "index", "case"), CASES, ids=IDS)
def test_gradients_over_float16_are_the_float32_ones(op_type, index, case):
    """The forward pass in float16, the backward in float32, in plain onnxruntime."""
    domain = OPS[op_type].domain
    if not takes(op_type, case, domain, "float16"):
        pytest.skip("not defined in float16")
    feeds = sample(case, np.random.default_rng(0), np.float16)
    feeds = {name: array for name, array in feeds.items() if isinstance(case.inputs[name], tuple)}
    single = one_node(op_type, case, np.float32, domain=domain)
    half = one_node(op_type, case, np.float16, domain=domain)
    seed = np.random.default_rng(1).standard_normal(half.shape).astype(np.float32)
    try:
        run(onnx.utils.Extractor(half.proto).extract_model(list(feeds), ["y0"]), feeds)
    except REFUSED as error:
        pytest.skip(f"no float16 kernel on the CPU: {error}")
    found = run(half.proto, {**feeds, "seed": seed})
    expected = run(single.proto, {**{n: a.astype(np.float32) for n, a in feeds.items()}, "seed": seed})
    assert half.wanted == single.wanted
    for name in half.wanted:
        ours, theirs = found[f"{name}.relevance"], expected[f"{name}.relevance"]
        assert ours.dtype == np.float32
        # float16 carries 5e-4; a sum of products or a difference of near ones loses some tens of that
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-2 * np.abs(theirs).max() + 1e-6)


@pytest.mark.parametrize("open_axes", [False, True], ids=["closed", "open"])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize(("op_type", "index", "case"), CASES, ids=IDS)
def test_gradients_over_half_precision_can_be_emitted(op_type, index, case, dtype, open_axes):
    """Types and shapes of every node infer; of bfloat16, onnxruntime's CPU has few kernels to run them."""
    domain = OPS[op_type].domain
    if not takes(op_type, case, domain, np.dtype(dtype).name):
        pytest.skip("not defined in this type")
    if open_axes and case.opset < 18:
        pytest.skip("older models are raised at load")
    try:
        one_node(op_type, case, np.float32, domain=domain, open_axes=open_axes)
    except UnsupportedOp as error:
        pytest.skip(f"refused in float32 as well: {error}")
    except ValueError as error:
        if "y0: the rank is not known" not in str(error):
            raise
        pytest.skip(f"refused in float32 as well: {error}")
    one_node(op_type, case, dtype, domain=domain, open_axes=open_axes)


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
