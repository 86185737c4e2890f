"""Kernels, biases, scales, gates that a model computes of its input: whole models against differences."""

from __future__ import annotations

import re

import numpy as np
import pytest
from nets import compiled, net, normal

ROWS = "m = ReduceMean <keepdims = 0> (x, batch)"  # (2, 6, 6) of the whole batch
VECTOR = "v = ReduceMean <keepdims = 0> (x, but_channels) s = MatMul (v, mix)"  # (3,) of the whole batch
KERNEL = f"{ROWS} k = Slice (m, zero2, three2, last2)"  # (2, 3, 3)
SEQUENCE = "f = Reshape (x, steps) t = Transpose <perm = [1, 0, 2]> (f)"  # (12, N, 6)
MODELS = {
    "kernel": f"{KERNEL} k4 = Unsqueeze (k, zero) y = Conv (x, k4)",
    "kernel over a constant picture": f"{KERNEL} k4 = Unsqueeze (k, zero) y = Conv (picture, k4)",
    "bias": f"{VECTOR} y = Conv (x, w, s)",
    "transposed kernel": f"{KERNEL} k4 = Unsqueeze (k, one) y = ConvTranspose <strides = [2, 2]> (x, k4)",
    "transposed bias": f"{VECTOR} y = ConvTranspose (x, wt, s)",
    "depthwise": f"{ROWS} k4 = Unsqueeze (m, one) y = Conv <group = 2, pads = [2, 2, 3, 3]> (x, k4)",
    "batch normalisation": f"{VECTOR} e = Exp (s) h = Conv (x, w) y = BatchNormalization (h, s, v3, s, e)",
    "instance normalisation": f"{VECTOR} h = Conv (x, w) y = InstanceNormalization (h, s, v3)",
    "layer normalisation": f"{ROWS} c = ReduceMean <keepdims = 0> (m, zero_one) y = LayerNormalization (x, c, c)",
    "pad": "v = ReduceMean <keepdims = 0> (x) y = Pad (x, pads, v)",
    "gemm": "f = Flatten (x) b = MatMul (f, small) c = ReduceSum <keepdims = 0> (b, batch) "
    "y = Gemm <alpha = -0.5, beta = -2.0> (f, large, c)",
    "recurrent weights": f"{SEQUENCE} r = ReduceMean <keepdims = 0> (f, batch) "
    "q = MatMul (gates, r) w1 = Unsqueeze (q, zero) y, yh = GRU <hidden_size = 6> (t, w1, w1)",
    "first states": f"{SEQUENCE} h0 = ReduceMean (t, zero) y, yh, yc = LSTM <hidden_size = 6> (t, wr, wr, , , h0, h0)",
}


def model(name: str):
    constants = {
        "w": normal(3, 2, 3, 3), "wt": normal(2, 3, 3, 3), "mix": normal(2, 3, seed=1), "v3": normal(3, seed=2),
        "picture": normal(1, 2, 5, 5, seed=3), "small": normal(72, 4, seed=4) / 8, "large": normal(72, 4, seed=5) / 8,
        "gates": normal(18, 12, seed=6) / 4, "wr": normal(1, 24, 6, seed=7) / 3,
        "batch": np.array([0]), "zero": np.array([0]), "one": np.array([1]), "but_channels": np.array([0, 2, 3]),
        "zero2": np.array([0, 0]), "three2": np.array([3, 3]), "last2": np.array([1, 2]),
        "zero_one": np.array([0, 1]), "pads": np.array([0, 0, 1, 2, 0, 0, 0, -1]), "steps": np.array([0, 12, 6]),
    }  # fmt: skip
    used = re.findall(r"\w+", MODELS[name])
    constants = {key: array for key, array in constants.items() if key in used}
    rank = 2 if name == "gemm" else 4
    shape = ", ".join(f"d{i}" for i in range(rank))
    return net(f"g (float[N, 2, 6, 6] x) => (float[{shape}] y) {{ {MODELS[name]} }}", **constants)


@pytest.mark.parametrize("name", MODELS)
def test_what_a_model_computes_its_parameters_of_gets_its_share(name, tmp_path):
    file = compiled(model(name), tmp_path)
    x, direction = normal(3, 2, 6, 6, seed=8), normal(3, 2, 6, 6, seed=9)
    subject, eps = file.explainer.subject, 1e-2
    up, middle, down = (subject.forward({"x": x + k * eps * direction}, ["y"])["y"].astype(float) for k in (1, 0, -1))
    seed = normal(*middle.shape, seed=10)
    found = float((file.run(x=x, seed=seed)["x.relevance"].astype(float) * direction).sum())
    expected = float((seed * (up - down)).sum() / (2 * eps))
    # float32: 1e-7 of y over eps; the third derivative times eps squared
    assert found == pytest.approx(expected, rel=5e-3, abs=2e-4 * float(np.abs(seed * middle).sum()))
    assert file.about["streams"] == "exact"  # a parameter of all rows mixes them


OPEN = {
    "Conv": "<strides = [2, 1], pads = [1, 0, 2, 1], dilations = [1, 2]>",
    "Conv grouped": "<group = 2>",
    "ConvTranspose": "<strides = [2, 3], pads = [0, 1, 1, 0]>",
    "ConvTranspose grouped": "<group = 2, output_padding = [1, 0], strides = [2, 1]>",
}


@pytest.mark.parametrize("name", OPEN)
def test_a_kernel_whose_size_only_the_run_knows_gets_its_gradient(name, tmp_path):
    into = "4, 2" if "grouped" in name else "4, 4"
    node = f"{name.split()[0]} {OPEN[name]} (x, k)"
    text = f"g (float[N, 4, H, W] x, float[{into}, K, L] k) => (float[N, M, A, B] y) {{ y = {node} }}"
    file = compiled(net(text), tmp_path)
    for kernel in ((1, 1), (3, 2), (2, 4)):
        x, k = normal(2, 4, 8, 9), normal(4, int(into[-1]), *kernel, seed=1)
        y = file.explainer.subject.forward({"x": x, "k": k}, ["y"])["y"].astype(float)
        seed = normal(*y.shape, seed=2)
        found = file.run(x=x, k=k, seed=seed)
        for key, value in (("x", x), ("k", k)):  # linear in each
            ours, scale = found[f"{key}.relevance"].astype(float), float(np.abs(seed * y).sum())
            assert ours.shape == value.shape
            assert float((ours * value).sum()) == pytest.approx(float((seed * y).sum()), abs=1e-5 * scale)  # float32
