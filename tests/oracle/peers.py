"""What other libraries answer: torch autograd, zennit, captum, onnx-ad. Arrays in, arrays out.

Kinks. Two correct float32 programs of one ReLU network disagree about its gradient by 1e-3 to 1e-1 as soon as one of a
million activations lies within rounding of 0 and one program rounds it up, the other down; the same with the winners
of a max-pool. Float64 on both sides would help, but onnxruntime's CPU has no float64 Conv. So `kinks` names the tensors
of the ONNX model that decide (outputs of Relu and Clip, inputs of MaxPool), the caller reads their values from the very
run that made the explanation, and `forced` makes torch take the same branches: float64 autograd of exactly the linear
piece onnxruntime was on. `forced` also refuses branches that are not within rounding of torch's own, so a wrong forward
pass or a wrong pairing of layers cannot hide behind it.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from .networks import Add, Bert, Network, folded
from .torchvision_stand_in import torchvision_if_missing

Arrays = Mapping[str, np.ndarray]

KINK = 1e-5  # share of the layer's largest absolute input: float32 forward error of a deep net is below 1e-6


with torchvision_if_missing():
    from zennit import composites, rules
    from zennit.core import Composite
    from zennit.layer import Sum
    from zennit.types import Linear


# --- torch autograd ---------------------------------------------------------------------------------------------------


def torch_gradient(
    model: Network, inputs: Mapping[str, Tensor], seed: np.ndarray, path: Path | None = None, kept: Arrays | None = None
) -> dict[str, np.ndarray]:
    """Vector-Jacobian product of the seed in float64, for every input that has one.

    seed (N, classes). path, kept: see `forced`; without them torch takes its own branches.
    Token ids get gradient x embedding, summed over the features.
    """
    model = copy.deepcopy(model).double()
    inputs = {name: x.double().requires_grad_() if x.is_floating_point() else x for name, x in inputs.items()}
    of = {name: x for name, x in inputs.items() if x.is_floating_point()}
    handle = None
    if isinstance(model, Bert):
        handle = model.words.register_forward_hook(lambda module, args, output: of.update(tokens=output))
    with forced(model, path, kept) if path and kept else contextlib.nullcontext():
        logits = model(**inputs)
    if handle:
        handle.remove()
    gradients = torch.autograd.grad(logits, list(of.values()), torch.from_numpy(seed).double())
    result = dict(zip(of, gradients, strict=True))
    if "tokens" in of:
        result["tokens"] = (result["tokens"] * of["tokens"]).sum(-1)
    return {name: gradient.detach().numpy() for name, gradient in result.items()}


def kinks(path: Path) -> list[tuple[str, str]]:
    """(op type, deciding tensor) of every node with a kink, in the order of the graph, which is that of torch's run."""
    graph = onnx.load(path, load_external_data=False).graph
    tensor = {
        "Relu": lambda node: node.output[0],
        "Clip": lambda node: node.output[0],
        "MaxPool": lambda node: node.input[0],
    }
    return [(node.op_type, tensor[node.op_type](node)) for node in graph.node if node.op_type in tensor]


KINKED = {nn.ReLU: "Relu", nn.ReLU6: "Clip", nn.MaxPool2d: "MaxPool"}


@contextlib.contextmanager
def forced(
    model: nn.Module, path: Path, kept: Arrays, only: tuple[type[nn.Module], ...] = tuple(KINKED)
) -> Iterator[None]:
    """Every ReLU, ReLU6 and MaxPool2d of `only` takes the branch that the values in `kept` took, in `kinks` order.

    path: the exported model. kept: tensor name -> value in the run to follow, at least those `kinks` names.
    """
    queue = iter(kinks(path))

    def follow(module: nn.Module, arguments: tuple[Tensor], output: Tensor) -> Tensor | None:
        (x,) = arguments
        op_type, name = next(queue)
        assert op_type == KINKED[type(module)], f"{name}: the graph has {op_type} where torch runs {module}"
        if not isinstance(module, only):
            return None
        value = torch.from_numpy(kept[name]).to(x)
        if isinstance(module, nn.MaxPool2d):
            assert value.shape == x.shape, f"{name}: {value.shape} in the graph, {x.shape} in torch"
            options = {"stride": module.stride, "padding": module.padding, "dilation": module.dilation}
            _, winners = nn.functional.max_pool2d(
                value, module.kernel_size, ceil_mode=module.ceil_mode, return_indices=True, **options
            )
            result = x.flatten(2).gather(2, winners.flatten(2)).view_as(winners)
        else:
            assert value.shape == x.shape, f"{name}: {value.shape} in the graph, {x.shape} in torch"
            result = x * (value > 0)
            if isinstance(module, nn.ReLU6):
                result = torch.where(value < 6, result, 6.0)
        distance, scale = (result - output).abs().max(), x.abs().max()
        assert distance <= KINK * scale, f"{name}: a branch {distance:.1e} away from torch's own, scale {scale:.1e}"
        return result

    handles = [m.register_forward_hook(follow) for m in model.modules() if isinstance(m, tuple(KINKED))]
    try:
        yield
        assert next(queue, None) is None, "the graph has kinks that torch did not run"
    finally:
        for handle in handles:
            handle.remove()


# --- zennit -----------------------------------------------------------------------------------------------------------


class _ZennitAdd(nn.Module):
    """Add through zennit's Sum, on which its composites put the norm rule. A bare + would double the relevance."""

    def __init__(self) -> None:
        super().__init__()
        self.sum = Sum()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.sum(torch.stack([a, b], dim=-1))


def _epsilon(epsilon: float = 1e-6) -> Composite:
    rule = rules.Epsilon(epsilon=epsilon)
    return composites.LayerMapComposite([*composites.layer_map_base(), (Linear, rule)])


# Our composite names -> zennit's.
COMPOSITES: dict[str, Callable[..., Composite]] = {
    "epsilon": _epsilon,
    "epsilon_plus": composites.EpsilonPlus,
    "epsilon_plus_flat": composites.EpsilonPlusFlat,
    "epsilon_alpha2_beta1": composites.EpsilonAlpha2Beta1,
    "epsilon_alpha2_beta1_flat": composites.EpsilonAlpha2Beta1Flat,
    "epsilon_gamma_box": composites.EpsilonGammaBox,  # low, high
    "excitation_backprop": composites.ExcitationBackprop,
    "guided_backprop": composites.GuidedBackprop,
    "deconvnet": composites.DeconvNet,
}
GRADIENT_LIKE = ("guided_backprop", "deconvnet")  # these start from the seed, the others from seed x logit

# Our rule names -> zennit's, for one layer.
RULES: dict[str, Callable[..., Any]] = {
    "epsilon": rules.Epsilon,
    "gamma": rules.Gamma,
    "alpha_beta": rules.AlphaBeta,
    "z_plus": rules.ZPlus,
    "box": rules.ZBox,
    "w_square": rules.WSquare,
    "flat": rules.Flat,
    "norm": rules.Norm,
    "pass": rules.Pass,
}


def for_zennit(model: Network) -> Network:
    """A copy zennit can explain: batch norms merged, every Add through its Sum."""
    model = folded(model)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, Add):
                setattr(module, name, _ZennitAdd())
    return model


def zennit_relevance(
    model: Network,
    x: Tensor,
    seed: np.ndarray,
    composite: str,
    path: Path | None = None,
    kept: Arrays | None = None,
    **options: Any,
) -> np.ndarray:
    """Relevance of x under a zennit composite, in float64. seed (N, classes).

    path, kept: max-pools take the winners of that run (see `forced`). ReLUs need no such care: LRP passes through them
    and what arrives at an activation near 0 is near 0. options go to the composite.
    """
    model = for_zennit(model).double()
    x = x.detach().double().requires_grad_()
    pools = forced(model, path, kept, only=(nn.MaxPool2d,)) if path and kept else contextlib.nullcontext()
    with COMPOSITES[composite](**options).context(model), pools:
        logits = model(x)
        start = torch.from_numpy(seed).double()
        if composite not in GRADIENT_LIKE:
            start = start * logits.detach()
        (relevance,) = torch.autograd.grad(logits, x, start)
    return relevance.numpy()


def zennit_rule(layer: nn.Module, x: np.ndarray, relevance: np.ndarray, rule: str, **options: Any) -> np.ndarray:
    """One layer, one rule, float64: the relevance of its output handed down to x."""
    layer = copy.deepcopy(layer).double()
    handle = RULES[rule](**options).copy().register(layer)
    x = torch.from_numpy(x).double().requires_grad_()
    (result,) = torch.autograd.grad(layer(x), x, torch.from_numpy(relevance).double())
    handle.remove()
    return result.numpy()


# --- captum -----------------------------------------------------------------------------------------------------------


def captum_relevance(model: Network, x: Tensor, targets: list[int], method: str) -> np.ndarray:
    """Captum's guided_backprop, deconvnet or saliency (signed: the plain gradient), float64; one target a sample."""
    from captum.attr import Deconvolution, GuidedBackprop, Saliency

    model = copy.deepcopy(model).double()
    explainer = {"guided_backprop": GuidedBackprop, "deconvnet": Deconvolution, "saliency": Saliency}[method](model)
    options = {"abs": False} if method == "saliency" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it announces its hooks
        relevance = explainer.attribute(x.detach().double().requires_grad_(), target=targets, **options)
    return relevance.detach().numpy()


def captum_grad_cam(model: Network, layer: nn.Module, x: Tensor, targets: list[int]) -> np.ndarray:
    """Captum's LayerGradCam with the paper's ReLU, float64, (N, 1, H, W); one target a sample."""
    from captum.attr import LayerGradCam

    found = LayerGradCam(model.double(), layer).attribute(
        x.detach().double(), target=targets, relu_attributions=True, attr_dim_summation=True
    )
    model.float()
    return found.detach().numpy()


def captum_guided_grad_cam(model: Network, layer: nn.Module, x: Tensor, targets: list[int]) -> np.ndarray:
    """Captum's GuidedGradCam with the paper's bilinear map (its own default is nearest), float64."""
    from captum.attr import GuidedGradCam

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it announces its hooks
        found = GuidedGradCam(model.double(), layer).attribute(
            x.detach().double().requires_grad_(), target=targets, interpolate_mode="bilinear"
        )
    model.float()
    return found.detach().numpy()


# --- pytorch-grad-cam -------------------------------------------------------------------------------------------------

# Our method names -> pytorch-grad-cam's classes.
ACTIVATION_MAPS = {
    "grad_cam": "GradCAM",
    "grad_cam_plus_plus": "GradCAMPlusPlus",
    "x_grad_cam": "XGradCAM",
    "layer_cam": "LayerCAM",
    "hires_cam": "HiResCAM",
}
FORWARD_MAPS = {"eigen_cam": "EigenCAM", "eigen_grad_cam": "EigenGradCAM", "score_cam": "ScoreCAM"}


def torch_activation_map(
    model: Network, layer: nn.Module, x: Tensor, targets: list[int], method: str, times: float = 1.0
) -> np.ndarray:
    """pytorch-grad-cam's map at a layer as its formula gives it, float64 (N, 1, H, W): not cut, scaled or enlarged.

    What it returns to its users is cut at 0, scaled to 0..1 and as large as the picture. times: of the score.
    """
    with torchvision_if_missing():
        import pytorch_grad_cam

    model.double()
    with getattr(pytorch_grad_cam, {**ACTIVATION_MAPS, **FORWARD_MAPS}[method])(model, [layer]) as cam:
        asked = [lambda scores, k=k: times * scores[k] for k in targets]
        cam(x.detach().double(), asked)
        hooked = cam.activations_and_grads
        a, *g = (held[0].detach().numpy() for held in (hooked.activations, hooked.gradients) if held)
        found = cam.get_cam_image(x.detach().double(), layer, asked, a, g[0] if g else None, False)
    model.float()
    return np.asarray(found)[:, None]


def torch_full_grad(model: Network, x: Tensor, targets: list[int], times: float) -> np.ndarray:
    """pytorch-grad-cam's FullGrad of a multiple of the score, float64 (N, H, W), 0..1 in each row as it returns it."""
    with torchvision_if_missing():
        from pytorch_grad_cam import FullGrad

    model.double()
    with FullGrad(model, []) as cam:
        found = cam(x.detach().double(), [lambda scores, k=k: times * scores[k] for k in targets])
    model.float()
    return np.asarray(found, np.float64)


# --- onnx-ad ----------------------------------------------------------------------------------------------------------


def onnx_ad_model(path: Path, batch: int) -> onnx.ModelProto:
    """The gradient graph onnx-ad writes: one more input adj_logits (N, classes, K), one more output adj_input (…, K).

    The batch is fixed: onnx-ad wants to know the shape in front of every Conv.
    """
    from onnx_ad import reverse

    model = onnx.load(path)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    return reverse(onnx.shape_inference.infer_shapes(model), layout="onnx")


def onnx_ad_gradient(path: Path, x: np.ndarray, seed: np.ndarray, keep: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """All outputs of onnx-ad's graph, float32; "adj_input" (without K) is the gradient. keep: tensors to return too."""
    model = onnx_ad_model(path, len(x))
    present = {output.name for output in model.graph.output} | {i.name for i in model.graph.input}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(keep) if name not in present)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    values = session.run(None, {"input": x, "adj_logits": seed[..., None]})
    result = dict(zip((output.name for output in session.get_outputs()), values, strict=True))
    return result | {"input": x, "adj_input": result["adj_input"][..., 0]}
