"""The law of open sizes: a derivative built for symbolic lengths gives what one built for numbers gives."""

from __future__ import annotations

import numpy as np
import pytest
from support import one_node, registered_cases, run, sample

from onnxplain.errors import UnsupportedOp
from onnxplain.vjp import OPS

CASES = [entry for entry in registered_cases() if entry[2].opset >= 18]  # older models are raised at load


@pytest.mark.parametrize(("op_type", "index", "case"), CASES, ids=[f"{name}-{i}" for name, i, _ in CASES])
def test_open_sizes_give_the_same_relevance(op_type, index, case):
    domain = OPS[op_type].domain
    closed = one_node(op_type, case, np.float32, domain=domain)
    try:
        opened = one_node(op_type, case, np.float32, domain=domain, open_axes=True)
    except UnsupportedOp as error:
        pytest.skip(f"refused while compiling: {error}")
    except ValueError as error:
        if "y0: the rank is not known" not in str(error):  # onnx infers nothing of the forward node
            raise
        pytest.skip(f"refused while compiling: {error}")
    feeds = sample(case, np.random.default_rng(0), np.float32)
    feeds = {name: array for name, array in feeds.items() if isinstance(case.inputs[name], tuple)}
    feeds["seed"] = np.random.default_rng(1).standard_normal(closed.shape).astype(np.float32)
    expected, found = run(closed.proto, feeds), run(opened.proto, feeds)
    assert found.keys() == expected.keys()
    for name in closed.wanted:
        np.testing.assert_allclose(
            found[f"{name}.relevance"], expected[f"{name}.relevance"], rtol=1e-5, atol=1e-5
        )  # float32, other kernels
