"""onnxplain's class activation maps against pytorch-grad-cam's and captum's, at the layer that is found by default."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from torch import nn

from onnxplain import Explainer

from . import ours, peers
from .laws import difference

pytestmark = pytest.mark.oracle

FLOAT32 = 1e-5  # ours float32, the peers float64; on these inputs no activation above the layer is within rounding of 0
TARGETS = [1, 5, 7]
LAST = {  # which module, of which type, makes the last feature map
    "small_cnn": (nn.ReLU, 2),
    "mobilenet_v2": (nn.ReLU6, -1),
    "vgg16": (nn.MaxPool2d, -1),
}


@pytest.fixture(params=LAST)
def case(request, network):
    model, path = network(request.param)
    kind, index = LAST[request.param]
    layer = [module for module in model.modules() if isinstance(module, kind)][index]
    x = model.example(3, random_seed=1)["input"]
    return model, path, layer, x


def seeds(path, times: float = 1.0) -> np.ndarray:
    import onnx

    classes = onnx.load(path, load_external_data=False).graph.output[0].type.tensor_type.shape.dim[1].dim_value
    return times * np.eye(classes, dtype=np.float32)[TARGETS]


def test_grad_cam_equals_captum(case):
    model, path, layer, x = case
    theirs = peers.captum_grad_cam(model, layer, x, TARGETS)
    assert difference(ours.ours(path, "grad_cam", x.numpy(), seeds(path)), theirs) < FLOAT32


def test_guided_grad_cam_equals_captum(network):
    """On the net whose ReLUs captum's hooks see; the input is one on which none is within rounding of 0."""
    model, path = network("small_cnn")
    layer = [module for module in model.modules() if isinstance(module, nn.ReLU)][2]
    x = model.example(3, random_seed=1)["input"]
    theirs = peers.captum_guided_grad_cam(model, layer, x, TARGETS)
    assert difference(ours.ours(path, "guided_grad_cam", x.numpy(), seeds(path)), theirs) < FLOAT32


@pytest.mark.skipif(importlib.util.find_spec("pytorch_grad_cam") is None, reason="grad-cam is not installed")
@pytest.mark.parametrize("method", peers.ACTIVATION_MAPS)
def test_every_map_equals_pytorch_grad_cam(case, method):
    """Grad-CAM++ of 10^4 times the score: the 1e-6 in its denominator would bend the weights of small gradients."""
    model, path, layer, x = case
    times = 1e4 if method == "grad_cam_plus_plus" else 1.0
    theirs = peers.torch_activation_map(model, layer, x, TARGETS, method, times)
    theirs = theirs if method == "hires_cam" else np.maximum(theirs, 0)  # the paper of HiResCAM has no ReLU
    assert difference(ours.ours(path, method, x.numpy(), seeds(path, times)), theirs) < FLOAT32


@pytest.mark.skipif(importlib.util.find_spec("pytorch_grad_cam") is None, reason="grad-cam is not installed")
def test_the_numbers_in_the_denominators_of_pytorch_grad_cam_matter_for_small_gradients(case):
    """So that nobody takes that difference for a mistake here: at the plain score its maps are smaller than ours."""
    model, path, layer, x = case
    theirs = np.maximum(peers.torch_activation_map(model, layer, x, TARGETS, "grad_cam_plus_plus"), 0)
    found = ours.ours(path, "grad_cam_plus_plus", x.numpy(), seeds(path))
    assert np.all(theirs <= found * (1 + FLOAT32) + FLOAT32 * found.max())


@pytest.mark.skipif(importlib.util.find_spec("pytorch_grad_cam") is None, reason="grad-cam is not installed")
@pytest.mark.parametrize("method", ["eigen_cam", "eigen_grad_cam"])
def test_principal_components_equal_pytorch_grad_cam_but_for_the_sign(case, method):
    """It centres channels, and takes whatever sign LAPACK gives an eigenvector; ours agrees with the channels' sum."""
    model, path, layer, x = case
    theirs = peers.torch_activation_map(model, layer, x, TARGETS, method)
    found = np.concatenate([row_map(path, method, x[n : n + 1], k, centred=True) for n, k in enumerate(TARGETS)])
    either = [min(difference(a, np.maximum(s * b, 0)) for s in (1, -1)) for a, b in zip(found, theirs, strict=True)]
    assert max(either) < 10 * FLOAT32  # an eigenvector is off by the rounding over the gap between the singular values


@pytest.mark.skipif(importlib.util.find_spec("pytorch_grad_cam") is None, reason="grad-cam is not installed")
def test_score_cam_equals_pytorch_grad_cam_with_the_masks_of_the_authors_code(network, monkeypatch):
    """It enlarges masks with corners aligned; the authors and we do not. Its dead channels share in the softmax, which
    makes its whole map smaller: maps are compared by their shares."""
    monkeypatch.setattr(nn, "UpsamplingBilinear2d", lambda size: nn.Upsample(size, mode="bilinear"))
    monkeypatch.setattr(torch.nn, "UpsamplingBilinear2d", nn.UpsamplingBilinear2d)
    model, path = network("small_cnn")
    layer = [module for module in model.modules() if isinstance(module, nn.ReLU)][2]
    x = model.example(3, random_seed=1)["input"]
    theirs = np.maximum(peers.torch_activation_map(model, layer, x, TARGETS, "score_cam"), 0)
    found = np.concatenate([row_map(path, "score_cam", x[n : n + 1], k) for n, k in enumerate(TARGETS)])
    for a, b in zip(found, theirs, strict=True):
        assert difference(a / a.sum(), b / b.sum()) < 10 * FLOAT32  # a softmax of scores in float32


@pytest.mark.skipif(importlib.util.find_spec("pytorch_grad_cam") is None, reason="grad-cam is not installed")
def test_full_grad_equals_pytorch_grad_cam(network):
    """Of a net whose biases are all those of convolutions: beside these it takes BatchNorm's, and no implicit ones.

    Of 10^4 times the score, which changes no map that is brought to 0..1: it adds 1e-7 to each maximum.
    """
    model, path = network("small_cnn")
    x = model.example(3, random_seed=1)["input"]
    theirs = peers.torch_full_grad(model, x, TARGETS, 1e4)
    found = ours.ours(path, "full_grad", x.numpy(), seeds(path))[:, 0]
    low, high = found.min((1, 2), keepdims=True), found.max((1, 2), keepdims=True)
    assert difference((found - low) / (high - low), theirs) < 10 * FLOAT32  # a difference of float32 maps


def row_map(path, method: str, x, target: int, **options) -> np.ndarray:
    return Explainer(path, method, provider="cpu", **options).explain(x.numpy(), target).relevance
