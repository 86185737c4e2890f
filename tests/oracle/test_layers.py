"""Methods about inner tensors against captum's layer and neuron methods, of modules that others go around too."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from onnxplain import Explainer

from .laws import difference

pytestmark = pytest.mark.oracle

SMOOTH = 2e-5  # ours float32, theirs float64, without kinks
CLOSE = 1e-4  # a fall is the difference of two scores many times as large
TARGETS = [1, 0]
MODULES = {  # of networks without kinks: what everything passes, and what a skip connection goes around
    "encoder layer": ("vit", lambda model: model.encoder[1]),
    "inside of a branch": ("vit", lambda model: model.encoder[1].mlp),
}


def tensor_of(path, module, model, x) -> str:
    """The name of the ONNX tensor that is a module's output: the first that has its values."""
    seen = []
    handle = module.register_forward_hook(lambda module, given, output: seen.append(output.detach().numpy()))
    with torch.no_grad():
        model(x)
    handle.remove()
    proto = onnx.load(path)
    names = [name for node in proto.graph.node for name in node.output]
    known = {value.name for value in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    values = session.run(names, {session.get_inputs()[0].name: x.numpy()})
    for name, value in zip(names, values, strict=True):
        if value.shape == seen[0].shape and np.allclose(value, seen[0], rtol=1e-4, atol=1e-5):
            return name
    raise AssertionError(f"no tensor of {path} is the output of {module}")


@pytest.fixture(params=MODULES)
def case(request, network):
    """(model in float64, path, module of it, name of its output, x float32 (2, …))."""
    name, find = MODULES[request.param]
    model, path = network(name)
    (x,) = model.example(2).values()
    layer = tensor_of(path, find(model), model, x)
    wide = copy.deepcopy(model).double()
    return wide, path, find(wide), layer, x


def ours(path, x, method, targets=TARGETS, **options):
    explainer = Explainer(path, method, provider="cpu", **options)
    return np.concatenate([explainer.explain(x.numpy()[n : n + 1], t).relevance for n, t in enumerate(targets)])


def captum(kind, *about):
    import captum.attr

    return getattr(captum.attr, kind)(*about)


@pytest.mark.parametrize("theirs, quadrature", [("gausslegendre", "gauss_legendre"), ("riemann_left", "left")])
def test_layer_integrated_gradients_equal_captums(case, theirs, quadrature):
    model, path, module, layer, x = case
    expected = captum("LayerIntegratedGradients", model, module).attribute(
        x.double(), baselines=0.1, target=TARGETS, n_steps=20, method=theirs
    )
    options = {"baseline": 0.1, "baseline_at": "input", "steps": 20, "quadrature": quadrature}
    found = ours(path, x, "integrated_gradients", attribute_to=layer, **options)
    assert difference(found, expected.detach().numpy()) < SMOOTH


def test_layer_conductance_equals_captums(case):
    """Captum's trapezoid has n + 1 points that end at 0 and 1, and takes the gradient at the left of each line."""
    model, path, module, layer, x = case
    expected = captum("LayerConductance", model, module).attribute(
        x.double(), baselines=0.1, target=TARGETS, n_steps=20, method="riemann_trapezoid"
    )
    options = {"baseline": 0.1, "steps": 20, "quadrature": "left"}
    found = ours(path, x, "conductance", attribute_to=layer, **options)
    assert difference(found, expected.detach().numpy()) < 5 * SMOOTH  # differences of near values, float32


@pytest.mark.parametrize("theirs, quadrature", [("gausslegendre", "gauss_legendre"), ("riemann_middle", "midpoint")])
def test_internal_influence_equals_captums(case, theirs, quadrature):
    model, path, module, layer, x = case
    expected = captum("InternalInfluence", model, module).attribute(
        x.double(), baselines=0.1, target=TARGETS, n_steps=20, method=theirs
    )
    options = {"baseline": 0.1, "steps": 20, "quadrature": quadrature}
    found = ours(path, x, "internal_influence", attribute_to=layer, **options)
    assert difference(found, expected.detach().numpy()) < SMOOTH


def test_layer_gradient_times_activation_equals_captums(case):
    model, path, module, layer, x = case
    expected = captum("LayerGradientXActivation", model, module).attribute(x.double(), target=TARGETS)
    found = ours(path, x, "gradient_x_input", attribute_to=layer)
    assert difference(found, expected.detach().numpy()) < SMOOTH


@pytest.mark.parametrize("name", ["vit", "small_cnn"])
def test_layer_feature_ablation_equals_captums(network, name):
    """Every unit of a small layer by itself; every channel of a feature map as one."""
    model, path = network(name)
    (x,) = model.example(2).values()
    find = (
        (lambda m: m.norm) if name == "vit" else lambda m: [k for k in m.modules() if isinstance(k, torch.nn.ReLU)][2]
    )
    layer = tensor_of(path, find(model), model, x)
    wide = copy.deepcopy(model).double()
    module, mask, options = find(wide), None, {"groups": "elements"}
    if name == "small_cnn":
        shape = Explainer(path, "gradient", attribute_to=layer, provider="cpu").explain(x.numpy(), 0).relevance.shape
        mask = torch.arange(shape[1]).reshape(1, -1, 1, 1).expand(1, *shape[1:])
        options = {"patch": [1, 0, 0]}
    expected = captum("LayerFeatureAblation", wide, module).attribute(
        x.double(), layer_baselines=0.1, target=1, layer_mask=mask, perturbations_per_eval=16
    )
    found = ours(path, x, "feature_ablation", [1, 1], attribute_to=layer, baseline=0.1, **options)
    assert difference(found, expected.detach().numpy()) < CLOSE


@pytest.mark.parametrize(
    "kind, method, theirs, options",
    [
        ("NeuronGradient", "gradient", {}, {}),
        ("NeuronIntegratedGradients", "integrated_gradients", {"n_steps": 20, "baselines": 0.1}, {"steps": 20, "baseline": 0.1}),  # noqa: E501
    ],
)  # fmt: skip
def test_neurons_are_explained_as_captum_does(case, kind, method, theirs, options):
    """The explained tensor is the layer, the target one unit of it."""
    model, path, module, layer, x = case
    unit = (2, 7)
    expected = captum(kind, model, module).attribute(x.double(), neuron_selector=unit, **theirs)
    found = Explainer(path, method, explain=layer, provider="cpu", **options).explain(x.numpy(), "2,7").relevance
    assert difference(found, expected.detach().numpy()) < SMOOTH
