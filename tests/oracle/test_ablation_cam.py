"""Ablation-CAM against pytorch-grad-cam's, which divides by the score with its sign."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from onnxplain import Explainer

from .laws import difference
from .torchvision_stand_in import torchvision_if_missing

pytestmark = pytest.mark.oracle

CLOSE = 1e-3  # theirs holds scores in float32, of which a fall is a small difference
TARGETS = [1, 5, 7]
LAST = {"small_cnn": (nn.ReLU, 2), "mobilenet_v2": (nn.ReLU6, -1)}  # which module makes the last feature map


@pytest.mark.parametrize("name", LAST)
def test_ablation_cam_equals_pytorch_grad_cams(network, name):
    with torchvision_if_missing():
        from pytorch_grad_cam import AblationCAM
    model, path = network(name)
    x = model.example(3, random_seed=1)["input"]
    wide = copy.deepcopy(model).double()
    kind, index = LAST[name]
    layer = [module for module in wide.modules() if isinstance(module, kind)][index]
    held: list[torch.Tensor] = []
    handle = layer.register_forward_hook(lambda module, given, output: held.append(output.detach()))
    scores = wide(x.double()).detach().numpy()[np.arange(3), TARGETS]
    handle.remove()
    cam = AblationCAM(wide, [layer], batch_size=16)
    theirs = cam.get_cam_image(x.double(), layer, [lambda y, k=k: y[k] for k in TARGETS], held[0], None)
    expected = np.maximum(theirs * np.sign(scores)[:, None, None], 0)[:, None]
    explainer = Explainer(path, "ablation_cam", provider="cpu")
    found = np.concatenate([explainer.explain(x.numpy()[n : n + 1], k).relevance for n, k in enumerate(TARGETS)])
    assert difference(found, expected) < CLOSE
