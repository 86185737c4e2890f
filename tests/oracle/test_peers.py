"""The peers agree with each other, so that what the other files hold onnxplain against is right."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch

from . import networks, peers
from .laws import difference, one_hot

pytestmark = pytest.mark.oracle


@pytest.mark.parametrize("dynamo", [False, True], ids=["torchscript", "dynamo"])
@pytest.mark.parametrize("name", networks.NETWORKS)
def test_the_exported_file_answers_like_torch_at_any_batch(network, name, dynamo):
    model, path = network(name, dynamo=dynamo)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        x = model.example(batch, random_seed=1)
        (logits,) = session.run(None, {key: value.numpy() for key, value in x.items()})
        with torch.no_grad():
            assert difference(logits, model(**x).numpy()) < 1e-5  # float32 on both sides; seen 1e-6


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2"])
def test_merging_batch_norms_changes_no_output(network, name):
    model, _ = network(name)
    model = model.double()
    x = model.example(2)["input"].double()
    with torch.no_grad():
        merged = networks.folded(model)(x)
        assert difference(merged.numpy(), model(x).numpy()) < 1e-10  # float64
    model.float()
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in networks.folded(model).modules())


@pytest.mark.parametrize("name", ["vgg16", "alexnet", "resnet50", "mobilenet_v2", "small_cnn"])
def test_onnx_ad_equals_torch_on_the_branches_of_its_run(network, name):
    """Also the proof that `forced` works: without it full-size nets differ by up to 1e-1."""
    model, path = network(name)
    x = model.example(2, random_seed=1)
    with torch.no_grad():
        seed = one_hot(model(**x).numpy())
    keep = tuple(tensor for _, tensor in peers.kinks(path))
    run = peers.onnx_ad_gradient(path, x["input"].numpy(), seed, keep)
    expected = peers.torch_gradient(model, x, seed, path, run)["input"]
    assert difference(run["adj_input"], expected) < 1e-5  # float32 against float64; seen 8e-7


def test_forced_branches_far_from_torch_are_refused(network):
    model, path = network("small_cnn")
    x = model.example(1)
    tensors = {tensor: -np.ones(1) for _, tensor in peers.kinks(path)}
    with pytest.raises(AssertionError):
        peers.torch_gradient(model, x, np.ones((1, 10), np.float32), path, tensors)


@pytest.mark.parametrize("method", ["guided_backprop", "deconvnet"])
def test_zennit_equals_captum(network, method):
    model, _ = network("small_cnn")
    x = model.example(3)["input"]
    ours = peers.zennit_relevance(model, x, np.eye(10)[[1, 5, 7]], method)
    assert difference(ours, peers.captum_relevance(model, x, [1, 5, 7], method)) < 1e-12  # float64


def test_zennit_conserves_through_a_residual_sum():
    """A bare + in the module would double the relevance; for_zennit must have replaced it."""
    block = networks.Residual(torch.nn.Sequential(), torch.nn.Sequential(), torch.nn.Sequential())
    model = networks.Chain(4, block, torch.nn.Flatten(), torch.nn.Linear(48, 2, bias=False)).eval()
    x = model.example(1)["input"]
    seed = np.eye(2)[[0]]
    with torch.no_grad():
        score = float(model(x)[0, 0])
    assert np.isclose(peers.zennit_relevance(model, x, seed, "epsilon").sum(), score, rtol=1e-4)  # epsilon 1e-6


# The measured vectors: rule, options, relevance of x = [1, -2, .5, 3] under W, b and R below.
GOLDEN = [
    ("epsilon", {}, [4.444436, 2.355551, -0.688887, -6.399987]),
    ("z_plus", {}, [0.444444, 0.888889, 0.587302, 0.857143]),
    ("alpha_beta", {"alpha": 2, "beta": 1}, [0.388889, 2.027777, 1.299603, 2.089285]),
    ("gamma", {"gamma": 0.25}, [2.11111, 1.195906, -0.020468, -2.394736]),
]


@pytest.mark.parametrize("rule, options, expected", GOLDEN)
def test_zennit_gives_the_golden_vectors(rule, options, expected):
    layer = torch.nn.Linear(4, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1, -1, 2, 0], [-2, 0.5, 1, 1], [0, 1, -1, -0.5]]))
        layer.bias.copy_(torch.tensor([0.5, -1, 0.25]))
    x, relevance = np.array([[1, -2, 0.5, 3]]), np.array([[2.0, 1, -1]])
    np.testing.assert_allclose(peers.zennit_rule(layer, x, relevance, rule, **options), [expected], atol=2e-6)
