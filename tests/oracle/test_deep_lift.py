"""DeepLIFT against captum's and shap's, where these are right, and where they are not: pools, products, softmax."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from onnxplain import Explainer

from .laws import difference
from .networks import Network, export

pytestmark = pytest.mark.oracle

FLOAT32 = 1e-4  # ours float32, theirs float64: quotients of differences near 0.01
SHAP = 1e-3  # both float32
TARGETS = [1, 0]
ACTIVATIONS = {
    "relu": nn.ReLU, "elu": nn.ELU, "leaky_relu": lambda: nn.LeakyReLU(0.2), "sigmoid": nn.Sigmoid, "tanh": nn.Tanh,
    "softplus": nn.Softplus,
}  # fmt: skip


class Net(Network):
    """Layers one after the other, (N, 3, 13, 13) to 4 logits; `gate` multiplies two branches at the end."""

    def __init__(self, *layers: nn.Module, gate: bool = False, head: nn.Module | None = None):
        super().__init__(input=(3, 13, 13))
        torch.manual_seed(0)
        self.layers, self.one = nn.Sequential(*layers, nn.Flatten()), nn.LazyLinear(4)
        self.gate, self.head = nn.Sequential(nn.LazyLinear(4), nn.Sigmoid()) if gate else None, head
        self(torch.zeros(1, 3, 13, 13))

    def forward(self, input: Tensor) -> Tensor:
        """Pictures to logits."""
        found = self.layers(input)
        scores = self.one(found)
        scores = scores if self.gate is None else scores * self.gate(found)
        return scores if self.head is None else self.head(scores)


def convolution(width: int, activation: str = "relu") -> list[nn.Module]:
    return [nn.LazyConv2d(width, 3, padding=1), ACTIVATIONS[activation]()]


def pooled(width: int, *window: int) -> list[nn.Module]:
    """A pool beside no activation: captum 0.9 loses a part of the difference where it is."""
    return [nn.LazyConv2d(width, 3, padding=1), nn.MaxPool2d(*window)]


def saved(model, folder):
    torch.manual_seed(1)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    path = folder / "model.onnx"
    export(model.eval(), path)
    return path


def pictures(rows: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(rows, 3, 13, 13, generator=torch.Generator().manual_seed(seed))


def theirs(model, x, baselines, kind="DeepLift", targets=TARGETS):
    import captum.attr

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = getattr(captum.attr, kind)(model.double()).attribute(
            x.double(), baselines=baselines.double(), target=targets
        )
    model.float()
    return found.detach().numpy()


def ours(path, x, method="deep_lift", **options):
    explainer = Explainer(path, method, provider="cpu", **options)
    rows = [explainer.explain(x.numpy()[n : n + 1], t) for n, t in enumerate(TARGETS)]
    return np.concatenate([row.relevance for row in rows])


def changes(model, x, other):
    """F(x) - F(x') of each row's target, float64."""
    with torch.no_grad():
        scores = model.double()(x.double()) - model(other.double())
    model.float()
    return scores[range(len(x)), TARGETS].numpy()


def missed(found, expected):
    """How far relevance is from summing to the difference, over the largest."""
    return np.abs(found.reshape(len(found), -1).sum(1) - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_networks_of_layers_and_activations_equal_captums(activation, tmp_path):
    model = Net(*convolution(6, activation), *pooled(4, 2), *convolution(5, activation), nn.AvgPool2d(2))
    path, x = saved(model, tmp_path), pictures()
    expected = theirs(model, x, torch.full_like(x, 0.1))
    assert difference(ours(path, x, baseline=0.1), expected) < FLOAT32


def test_the_mean_over_a_background_equals_captums(tmp_path):
    model = Net(*convolution(6), *pooled(4, 2), *convolution(5))
    path, x, background = saved(model, tmp_path), pictures(), pictures(7, seed=1)
    expected = theirs(model, x, background, "DeepLiftShap")
    assert difference(ours(path, x, "deep_lift_shap", background=background.numpy()), expected) < FLOAT32


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "elu"])
def test_the_mean_over_a_background_equals_shaps(activation, tmp_path):
    """DeepExplainer of shap, whose pool is right beside an activation too."""
    import shap

    model = Net(*convolution(6, activation), nn.MaxPool2d(2), *convolution(5, activation))
    path, x, background = saved(model, tmp_path), pictures(), pictures(7, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values = shap.DeepExplainer(model, background).shap_values(x, check_additivity=False)
    expected = np.stack([values[n, ..., t] for n, t in enumerate(TARGETS)])
    assert difference(ours(path, x, "deep_lift_shap", background=background.numpy()), expected) < SHAP


@pytest.mark.parametrize(
    "layers",
    [
        pytest.param(lambda: pooled(6, 3, 1), id="overlapping"),
        pytest.param(lambda: [*convolution(6), nn.MaxPool2d(2)], id="behind an activation"),
    ],
)
def test_pools_sum_to_the_difference_and_captums_do_not(layers, tmp_path):
    """MaxUnpool overwrites where windows overlap; and hooks of a pool and of an activation beside it do not meet."""
    model = Net(*layers(), *convolution(5))
    path, x, other = saved(model, tmp_path), pictures(), pictures(1, seed=1)
    expected = changes(model, x, other)
    assert missed(ours(path, x, "deep_lift_shap", background=other.numpy()), expected) < FLOAT32
    assert missed(theirs(model, x, other), expected) > 0.01


def test_products_sum_to_the_difference_and_captums_do_not(tmp_path):
    """Captum has no rule for a product of two activations: it takes the gradient at the input."""
    model = Net(*convolution(6), gate=True)
    path, x = saved(model, tmp_path), pictures()
    expected = changes(model, x, torch.zeros_like(x))
    assert missed(ours(path, x), expected) < FLOAT32
    assert missed(theirs(model, x, torch.zeros_like(x)), expected) > 0.01


def test_a_softmax_sums_to_the_difference_and_captums_does_not(tmp_path):
    """Captum divides y - y' by x - x' entry by entry and subtracts a mean over the whole batch."""
    model = Net(*convolution(6), head=nn.Softmax(-1))
    path, x = saved(model, tmp_path), pictures()
    expected = changes(model, x, torch.zeros_like(x))
    assert missed(ours(path, x, head="keep"), expected) < FLOAT32
    assert missed(theirs(model, x, torch.zeros_like(x)), expected) > 0.01


def test_below_its_threshold_captum_takes_the_derivative_where_we_do_too(tmp_path):
    """A picture against itself but for one pixel: the differences are zero but in its neighbourhood."""
    model = Net(*convolution(6), *convolution(5))
    path, x = saved(model, tmp_path), pictures(1)
    other = x.clone()
    other[0, :, 4, 7] = 0
    expected = theirs(model, x, other, targets=[1])
    explainer = Explainer(path, "deep_lift_shap", provider="cpu", baseline="background", background=other.numpy())
    assert difference(explainer.explain(x.numpy(), 1).relevance, expected) < FLOAT32
