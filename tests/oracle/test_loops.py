"""Path and noise methods against captum's, zennit's and saliency's, with the same points and the same noise."""

from __future__ import annotations

import copy
import importlib.util
import sys
import types
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


def saliency(module):
    """A module of saliency.core by itself: the package asks for scikit-image and TensorFlow."""
    if "saliency_core" not in sys.modules:
        (folder,) = importlib.util.find_spec("saliency").submodule_search_locations
        package = types.ModuleType("saliency_core")
        package.__path__ = [f"{folder}/core"]
        sys.modules["saliency_core"] = package
    return importlib.import_module(f"saliency_core.{module}")


def ours(path, x, method, **options):
    explainer = Explainer(path, method, provider="cpu", **options)
    return np.concatenate([explainer.explain(x.numpy()[n : n + 1], t).relevance for n, t in enumerate(TARGETS)])


@pytest.mark.parametrize("name, build, tolerance", [("vit", {}, SMOOTH), ("small_cnn", {}, KINKED)])
@pytest.mark.parametrize(
    "theirs, quadrature",
    [
        ("gausslegendre", "gauss_legendre"), ("riemann_middle", "midpoint"), ("riemann_left", "left"),
        ("riemann_right", "right"), ("riemann_trapezoid", "trapezoid"),
    ],
)  # fmt: skip
def test_integrated_gradients_equal_captums(network, name, build, tolerance, theirs, quadrature):
    """Captum's trapezoid has 1/n where n points leave n - 1 steps: its weights sum to 1 - 1/n, ours to 1."""
    model, path, x = example(network, name, build)
    expected = captum(model, "IntegratedGradients").attribute(
        x.double(), baselines=0.1, target=TARGETS, n_steps=50, method=theirs
    )
    found = ours(path, x, "integrated_gradients", baseline=0.1, quadrature=quadrature)
    scale = 50 / 49 if quadrature == "trapezoid" else 1
    assert difference(found, scale * expected.detach().numpy()) < tolerance


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


def test_expected_gradients_equal_captums_gradient_shap(network):
    """Captum is given our noise and our places on the paths; its samples of a row lie behind each other."""
    model, path, x = example(network, "vit", {})
    drawn = np.random.default_rng([3, 0]).standard_normal((SAMPLES, *x.shape[1:]))
    spread = (x.amax((1, 2, 3)) - x.amin((1, 2, 3))).double().numpy()
    noise = torch.from_numpy(np.concatenate([NOISE * s * drawn for s in spread]))
    places = np.tile(np.random.default_rng([3, 1]).random(SAMPLES), len(x))
    with (
        mock.patch.object(torch, "normal", lambda mean, std: noise),
        mock.patch.object(np.random, "uniform", lambda low, high, size: places),
    ):
        expected = captum(model, "GradientShap").attribute(
            x.double(), 0.1 * torch.ones_like(x[:1]).double(), n_samples=SAMPLES, stdevs=1.0, target=TARGETS
        )
    options = {"samples": SAMPLES, "noise": NOISE, "baseline": 0.1, "random_seed": 3}
    assert difference(ours(path, x, "expected_gradients", **options), expected.detach().numpy()) < SMOOTH


def gradients(model, target):
    """What saliency's methods call: (points, H, W, C) -> their gradients, in float64."""
    wide = copy.deepcopy(model).double()

    def call(points, call_model_args=None, expected_keys=None):
        at = torch.from_numpy(np.moveaxis(np.asarray(points), -1, 1).copy()).double().requires_grad_()
        (found,) = torch.autograd.grad(wide(at)[:, target].sum(), at)
        return {"INPUT_OUTPUT_GRADIENTS": np.moveaxis(found.numpy(), 1, -1)}

    return call


def channels_last(x):
    return np.moveaxis(x.double().numpy(), 1, -1)


@pytest.mark.parametrize("fraction, distance", [(0.25, 0.02), (0.1, 1.0)])
def test_guided_integrated_gradients_equal_saliencys(network, fraction, distance):
    """The authors' library is given our gradients: which elements move first hangs on the last digit of small ones."""
    _, path, x = example(network, "vit", {})
    module, base, expected = saliency("guided_ig"), Explainer(path, "gradient", provider="cpu"), []
    quantile = np.quantile  # numpy 2.4 has left out the name that saliency gives its argument
    with mock.patch.object(np, "quantile", lambda a, q, interpolation: quantile(a, q, method=interpolation)):
        for row, target in zip(x.numpy(), TARGETS, strict=True):

            def gradient(point, target=target):
                return base.explain(point[None].astype(np.float32), target).relevance[0].astype(np.float64)

            expected.append(module.guided_ig_impl(row, 0 * row, gradient, 30, fraction, distance))
    options = {"steps": 30, "fraction": fraction, "distance": distance, "quadrature": "left"}
    assert difference(ours(path, x, "guided_integrated_gradients", **options), np.stack(expected)) < SMOOTH


def test_blurred_integrated_gradients_tend_to_saliencys(network):
    """The authors' library with ever more steps, its blur given mirrored ends; theirs is a sum at the left ends."""
    model, path, x = example(network, "vit", {})
    module, steps = saliency("blur_ig"), 200
    module.gaussian_blur = lambda image, sigma: module.ndimage.gaussian_filter(image, [sigma, sigma, 0], mode="reflect")
    expected = [
        module.BlurIG().GetMask(
            row, gradients(model, target), max_sigma=6.0, steps=steps, grad_step=1e-6, batch_size=50
        )
        for row, target in zip(channels_last(x), TARGETS, strict=True)
    ]
    found = ours(path, x, "blurred_integrated_gradients", steps=steps, sigma=6.0)
    assert difference(found, np.moveaxis(np.stack(expected), -1, 1)) < 5 / steps


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
