"""A detector is served and explained by D-RISE, as offline."""

from __future__ import annotations

import numpy as np
import onnx
from nets import net, normal
from running import running_server

from onnxplain import Client, Explainer

BOXES = np.array([[[0, 0, 4, 4], [4, 4, 8, 8]]], np.float32)
FEW = {"masks": 40, "cells": 4, "random_seed": 2}


def detector() -> onnx.ModelProto:
    """Two boxes that stay, (N, 2, 4), and their scores, linear in the picture, (N, 2, 1)."""
    text = """g (float[N, 1, 8, 8] x) => (float[N, 2, 4] where, float[N, 2, 1] scores) {
        f = Flatten (x) s = MatMul (f, w) scores = Reshape (s, form)
        z = ReduceSum <keepdims = 1> (f, axis) n = Mul (z, zero) n3 = Unsqueeze (n, last) where = Add (n3, boxes)
    }"""
    return net(
        text, w=np.abs(normal(64, 2)) / 64, form=np.array([-1, 2, 1]), axis=np.array([1]),
        zero=np.float32(0).reshape(()), last=np.array([2]), boxes=BOXES,
    )  # fmt: skip


def test_the_service_explains_a_detection_as_offline(tmp_path):
    (tmp_path / "boxes" / "1").mkdir(parents=True)
    path = tmp_path / "boxes" / "1" / "model.onnx"
    onnx.save(detector(), path)
    (tmp_path / "boxes" / "model.toml").write_text('[output]\nexplain = ["scores"]\n')
    x = np.abs(normal(2, 1, 8, 8, seed=3))
    expected = Explainer(path, "d_rise", explain="scores", **FEW).explain(x, ["0,0", "1,0"])
    with running_server(tmp_path) as server, Client(server.address) as client:
        found = client.explain("boxes", x, ["0,0", "1,0"], method="d_rise", **FEW)
    np.testing.assert_array_equal(found.relevance, expected.relevance)
    assert found.relevance.any() and found.recipe == expected.recipe
