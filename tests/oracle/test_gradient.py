"""onnxplain's gradient against torch autograd and onnx-ad."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from . import ours, peers
from .laws import difference, one_hot

pytestmark = pytest.mark.oracle

FLOAT32 = 1e-5  # ours is float32, torch float64 on the same branches; onnx-ad's float32 graphs are within 1e-6
RECURRENT = 1e-4  # rounding adds up over the time steps


def seeded(model, batch: int, random_seed: int = 1):
    """Example inputs (tensors, arrays) and a seed that is no one-hot: every logit takes part."""
    x = model.example(batch, random_seed)
    with torch.no_grad():
        shape = tuple(model(**x).shape)
    seed = np.random.default_rng(random_seed).standard_normal(shape).astype(np.float32)
    return x, {name: value.numpy() for name, value in x.items()}, seed


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", ["vgg16", "alexnet", "resnet50", "mobilenet_v2", "small_cnn"])
def test_gradient_equals_autograd_on_the_same_branches(network, name, batch):
    model, path = network(name)
    x, arrays, seed = seeded(model, batch)
    keep = tuple(dict.fromkeys(tensor for _, tensor in peers.kinks(path) if tensor not in arrays))
    run = ours.explain(path, "gradient", arrays, seed, keep=keep)
    expected = peers.torch_gradient(model, x, seed, path, run)["input"]
    assert difference(run["input.relevance"], expected) < FLOAT32


@pytest.mark.parametrize("name", ["vgg16", "resnet50"])
def test_gradient_equals_autograd_at_full_size(network, name):
    model, path = network(name, full=True)
    x, arrays, seed = seeded(model, 1)
    keep = tuple(dict.fromkeys(tensor for _, tensor in peers.kinks(path) if tensor not in arrays))
    run = ours.explain(path, "gradient", arrays, seed, keep=keep)
    expected = peers.torch_gradient(model, x, seed, path, run)["input"]
    assert difference(run["input.relevance"], expected) < FLOAT32


SMOOTH = [
    ("vit", {}, "input", FLOAT32),
    ("vit", {"folded": True}, "input", FLOAT32),  # heads in the batch axis
    ("bert", {}, "tokens", FLOAT32),  # token ids: gradient x embedding, summed over the features
    ("lstm", {"bidirectional": False}, "input", RECURRENT),
    ("lstm", {"bidirectional": True}, "input", RECURRENT),
    ("gru", {"bidirectional": False}, "input", RECURRENT),
    ("gru", {"bidirectional": True}, "input", RECURRENT),
]


@pytest.mark.parametrize("dynamo", [False, True], ids=["torchscript", "dynamo"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name, build, attributed, tolerance", SMOOTH, ids=lambda value: str(value) if value else "")
def test_gradient_equals_autograd_without_kinks(network, name, build, attributed, tolerance, batch, dynamo):
    model, path = network(name, build=build, dynamo=dynamo)
    x, arrays, seed = seeded(model, batch)
    run = ours.explain(path, "gradient", arrays, seed)
    expected = peers.torch_gradient(model, x, seed)[attributed]
    assert difference(run[f"{attributed}.relevance"], expected) < tolerance


def test_gradient_sees_through_batch_norms_left_in_the_file(network):
    model, path = network("resnet50", keep_batchnorm=True)
    x, arrays, seed = seeded(model, 2)
    keep = tuple(dict.fromkeys(tensor for _, tensor in peers.kinks(path) if tensor not in arrays))
    run = ours.explain(path, "gradient", arrays, seed, keep=keep)
    expected = peers.torch_gradient(model, x, seed, path, run)["input"]
    assert difference(run["input.relevance"], expected) < FLOAT32


def test_gradient_equals_onnx_ad_on_a_fixed_batch(network):
    model, path = network("small_cnn", dynamic=False)
    x, arrays, _ = seeded(model, 1)
    with torch.no_grad():
        seed = one_hot(model(**x).numpy())
    theirs = peers.onnx_ad_gradient(path, arrays["input"], seed)["adj_input"]
    assert difference(ours.ours(path, "gradient", arrays, seed), theirs) < FLOAT32


def test_gradient_equals_captum_saliency(network):
    model, path = network("small_cnn")
    x, arrays, _ = seeded(model, 3)
    seed = np.eye(10, dtype=np.float32)[[2, 4, 6]]
    theirs = peers.captum_relevance(model, x["input"], [2, 4, 6], "saliency")
    assert difference(ours.ours(path, "gradient", arrays, seed), theirs) < FLOAT32
