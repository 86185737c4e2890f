"""onnxplain's guided backprop and DeconvNet against captum's and zennit's, on a module-only net."""

from __future__ import annotations

import numpy as np
import pytest

from . import ours, peers
from .laws import difference

pytestmark = pytest.mark.oracle

FLOAT32 = 1e-5  # ours float32, the peers float64; on this net and input no activation is within rounding of 0
TARGETS = [1, 5, 7]


@pytest.fixture
def case(network):
    model, path = network("small_cnn")
    return model, path, model.example(3, random_seed=1)["input"], np.eye(10, dtype=np.float32)[TARGETS]


@pytest.mark.parametrize("method", ["guided_backprop", "deconvnet"])
def test_equals_captum(case, method):
    model, path, x, seed = case
    theirs = peers.captum_relevance(model, x, TARGETS, method)
    assert difference(ours.ours(path, method, x.numpy(), seed), theirs) < FLOAT32


@pytest.mark.parametrize("method", ["guided_backprop", "deconvnet"])
def test_equals_zennit(case, method):
    model, path, x, seed = case
    theirs = peers.zennit_relevance(model, x, seed, method)
    assert difference(ours.ours(path, method, x.numpy(), seed), theirs) < FLOAT32
