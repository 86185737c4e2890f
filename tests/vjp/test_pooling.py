"""Ties: of equal maxima the first in row-major order wins, in every form the derivative of a pool takes."""

from __future__ import annotations

import numpy as np
import pytest
from nets import compiled, net, normal, plain
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


@pytest.mark.parametrize(("kernel", "size", "stride"), [(9, 8, 2), (5, 3, 3), (2, 1, 2), (2, 6, 2)])
def test_a_window_that_only_the_run_finds_too_large_is_cut(kernel, size, stride, tmp_path):
    """Of open height and width: the average is over the entries there are."""
    model = net(
        f"""g (float[N, 1, H, W] x) => (float[N, 1, A, B] y) {{
            y = AveragePool <kernel_shape = [{kernel}, {kernel}], strides = [{stride}, {stride}]> (x)
        }}"""
    )
    x = normal(1, 1, size, size)
    file = compiled(model, tmp_path)
    y = plain(model, {"x": x})["y"]
    relevance = file.run(x=x, seed=np.ones_like(y))["x.relevance"]
    np.testing.assert_allclose((relevance * x).sum(), y.sum(), rtol=1e-4, atol=1e-5)  # linear: <g, y> = <vjp(g), x>
