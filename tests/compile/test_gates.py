"""A gate that is closed passes nothing on, whatever comes: 0, never 0 times infinity."""

from __future__ import annotations

import numpy as np
import pytest
from nets import compiled, net

from onnxplain.graph import streams
from onnxplain.vjp import OPS

ELEMENTWISE = [
    name
    for name, entry in OPS.items()
    if entry.streams is streams.elementwise
    and entry.kind != "flat"
    and len(entry.cases[0].inputs) == 1
    and not entry.domain
    and entry.cases[0].opset <= 18
    and not entry.cases[0].attributes
]


@pytest.mark.parametrize("gate", ["h = Relu (x)", "h = Clip (x, zero, six)"])
@pytest.mark.parametrize("op_type", ELEMENTWISE)
def test_behind_a_closed_gate_every_derivative_is_zero(op_type, gate, tmp_path):
    """Whatever the op's derivative at 0 is: a square root has an infinite one."""
    model = net(
        f"g (float[N, 4] x) => (float[N, 4] y) {{ {gate} y = {op_type} (h) }}",
        zero=np.zeros((), np.float32),
        six=np.full((), 6, np.float32),
    )
    x = np.array([[-1.0, 0.5, -2.0, 0.7]], np.float32)
    file = compiled(model, tmp_path)
    relevance = file.run(x=x, seed=np.ones_like(x))["x.relevance"]
    np.testing.assert_array_equal(relevance[x < 0], 0)


def test_an_infinite_gradient_does_not_reach_through_other_steps(tmp_path):
    """The square root of a distance that is zero, behind a Relu two layers down."""
    model = net(
        """g (float[N, 3] x) => (float[N, 1] y) {
            h = Relu (x)
            d = Mul (h, h)
            s = ReduceSum (d, one)
            y = Sqrt (s)
        }""",
        one=np.array([1]),
    )
    file = compiled(model, tmp_path)
    x = np.array([[-1, -2, -3], [1, 2, -2]], np.float32)
    relevance = file.run(x=x, seed=np.ones((2, 1), np.float32))["x.relevance"]
    np.testing.assert_allclose(relevance, [[0, 0, 0], np.array([1, 2, 0]) / np.sqrt(5)], rtol=1e-6)  # float32


def test_a_row_that_is_masked_whole_has_no_relevance(tmp_path):
    """softmax of -inf alone is not a number; torch answers 0 there, and so do its maps."""
    model = net(
        """g (float[N, 3] x, bool[N, 3] mask) => (float[N, 3] y) {
            s = Where (mask, x, lowest)
            p = Softmax <axis = -1> (s)
            bad = IsNaN (p)
            y = Where (bad, zero, p)
        }""",
        lowest=np.full((), -np.inf, np.float32),
        zero=np.zeros((), np.float32),
    )
    x = np.array([[0.3, -0.2, 1.0], [0.1, 0.7, 0.4]], np.float32)
    mask = np.array([[False, False, False], [True, False, True]])
    for method in ("gradient", "lrp"):
        file = compiled(model, tmp_path, method, explain="y")
        relevance = file.run(x=x, mask=mask, seed=np.eye(3, dtype=np.float32)[[0, 0]])["x.relevance"]
        assert np.isfinite(relevance).all() and not relevance[~mask].any() and relevance[1].any()
