"""Ties: of equal maxima the first in row-major order wins, in every form the derivative of a pool takes."""

from __future__ import annotations

import numpy as np
import pytest
from support import WindowMaxPool, one_node, run

from onnxplain.vjp.registry import case

POOLS = [
    {"kernel_shape": [2, 2], "strides": [2, 2]},  # masks
    {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
    {"kernel_shape": [3, 2], "strides": [2, 2], "ceil_mode": 1},
    {"kernel_shape": [2, 2], "dilations": [2, 3]},
    {"kernel_shape": [4, 4], "strides": [4, 4]},
]


def winners(x, **attributes):
    """Index of each window's winner over the whole tensor, by a loop over windows."""
    counted = type("Counted", (WindowMaxPool,), {"onnx_node": type("Node", (), {"output": ["y", "i"]})})
    return counted.__new__(counted)._run(x, **attributes)[1]


@pytest.mark.parametrize("open_axes", [False, True], ids=["closed", "open"])
@pytest.mark.parametrize("pool", POOLS, ids=[str(p["kernel_shape"]) for p in POOLS])
def test_the_first_of_equal_maxima_wins(pool, open_axes):
    built = one_node("MaxPool", case(x=(2, 3, 8, 8), **pool), np.float32, open_axes=open_axes)
    rng = np.random.default_rng(0)
    x = np.maximum(rng.integers(-2, 3, (2, 3, 8, 8)), 0).astype(np.float32)  # many ties, many zeros, as after a Relu
    index = winners(x, **pool)
    seed = rng.standard_normal(index.shape).astype(np.float32)
    expected = np.zeros(x.size)
    np.add.at(expected, index.reshape(-1), seed.reshape(-1).astype(float))
    found = run(built.proto, {"x": x, "seed": seed})["x.relevance"]
    np.testing.assert_allclose(found, expected.reshape(x.shape), atol=1e-5)  # float32 sums over overlapping windows
