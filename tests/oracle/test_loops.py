"""Integrated gradients and SmoothGrad against captum's and zennit's, with the same points and the same noise."""

from __future__ import annotations

import copy
import warnings
from unittest import mock

import numpy as np
import pytest
import torch

from onnxplain import Explainer

from . import peers
from .laws import difference

pytestmark = pytest.mark.oracle

SMOOTH = 1e-5  # ours float32, theirs float64, without kinks
KINKED = 2e-3  # of 50 points a few lie so near a kink that float32 and float64 take different branches there
TARGETS = [1, 0]
NOISE, SAMPLES = 0.2, 6


def example(network, name, build):
    model, path = network(name, build=build)
    (x,) = model.example(2).values()
    return model, path, x


def captum(model, kind):
    import captum.attr

    return getattr(captum.attr, kind)(copy.deepcopy(model).double())


def ours(path, x, method, **options):
    explainer = Explainer(path, method, provider="cpu", **options)
    return np.concatenate([explainer.explain(x.numpy()[n : n + 1], t).relevance for n, t in enumerate(TARGETS)])


@pytest.mark.parametrize("name, build, tolerance", [("vit", {}, SMOOTH), ("small_cnn", {}, KINKED)])
@pytest.mark.parametrize("theirs, quadrature", [("gausslegendre", "gauss_legendre"), ("riemann_middle", "midpoint")])
def test_integrated_gradients_equal_captums(network, name, build, tolerance, theirs, quadrature):
    model, path, x = example(network, name, build)
    expected = captum(model, "IntegratedGradients").attribute(
        x.double(), baselines=0.1, target=TARGETS, n_steps=50, method=theirs
    )
    found = ours(path, x, "integrated_gradients", baseline=0.1, quadrature=quadrature)
    assert difference(found, expected.detach().numpy()) < tolerance


@pytest.mark.parametrize(
    "average, kind", [("mean", "smoothgrad"), ("square", "smoothgrad_sq"), ("variance", "vargrad")]
)
def test_smooth_grad_equals_captums_noise_tunnel(network, average, kind):
    """Captum is given our noise in place of torch's; its samples of a row lie behind each other."""
    from captum.attr import NoiseTunnel

    model, path, x = example(network, "vit", {})
    drawn = np.random.default_rng([3, 0]).standard_normal((SAMPLES, *x.shape[1:]))
    spread = (x.amax((1, 2, 3)) - x.amin((1, 2, 3))).double().numpy()
    noise = torch.from_numpy(np.concatenate([NOISE * s * drawn for s in spread]))
    with mock.patch.object(torch, "normal", lambda mean, std: noise), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = NoiseTunnel(captum(model, "Saliency")).attribute(
            x.double(), nt_type=kind, nt_samples=SAMPLES, stdevs=1.0, target=TARGETS, abs=False
        )
    options = {"samples": SAMPLES, "noise": NOISE, "average": average, "random_seed": 3}
    assert difference(ours(path, x, "smooth_grad", **options), expected.detach().numpy()) < 10 * SMOOTH  # squares


@pytest.mark.parametrize("composite", ["epsilon_plus", "epsilon_alpha2_beta1"])
def test_integrated_gradients_over_lrp_equal_zennits_attributor(network, composite):
    """Right ends of the steps, and times the input whatever the base: as zennit has it."""
    model, path, x = example(network, "small_cnn", {})
    steps, expected = 10, np.zeros(x.shape)
    for k in range(1, steps + 1):
        seed = np.eye(10)[TARGETS]
        expected += peers.zennit_relevance(model, k / steps * x, seed, composite) / steps
    options = {"steps": steps, "quadrature": "right", "multiply_by_inputs": True}
    found = ours(path, x, "integrated_gradients", base=f"lrp-{composite}", **options)
    assert difference(found, expected * x.double().numpy()) < KINKED
