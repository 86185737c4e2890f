"""What the comparisons share: a distance, a seed, and inputs on which a comparison in float32 makes sense."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from .networks import Network

MARGIN = 1e-4  # in the unit of the activations: a hundred times the epsilon rule's stabiliser of 1e-6


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest absolute difference over the largest absolute value of theirs; no unit."""
    assert ours.shape == theirs.shape, f"{ours.shape} against {theirs.shape}"
    scale = np.abs(theirs).max()
    assert scale > 0, "a map of zeros proves nothing"
    return float(np.abs(ours - theirs).max() / scale)


def one_hot(logits: np.ndarray) -> np.ndarray:
    """The seed of every sample's largest logit, float32 (N, classes)."""
    return np.eye(logits.shape[1], dtype=np.float32)[logits.argmax(1)]


def well_conditioned_input(model: Network, batch: int) -> torch.Tensor:
    """The first example on which no hidden Linear's output is nearer to 0 than MARGIN.

    The epsilon rule multiplies by relu(z) / (z + 1e-6): a step at 0 for a float32 z, whose rounding is of the size of
    the 1e-6. One unit on the step changes the map by 1e-4, in zennit's own float32 too. Thousands of units leave no
    margin to set wide; convolutions, millions of units, none at all: they are compared with a larger epsilon.
    """
    hidden = [module for module in model.modules() if isinstance(module, nn.Linear)][:-1]
    near: list[float] = []
    handles = [layer.register_forward_hook(lambda _, x, z: near.append(float(z.abs().min()))) for layer in hidden]
    try:
        for random_seed in range(1, 50):
            near.clear()
            x = model.example(batch, random_seed)["input"]
            with torch.no_grad():
                model(x)
            if min(near, default=MARGIN) >= MARGIN:
                return x
    finally:
        for handle in handles:
            handle.remove()
    raise AssertionError(f"no input of 49 keeps {MARGIN} away from the kinks")
