"""Ablation-CAM: channels of a feature map, each weighed by how far the score falls without it."""

from __future__ import annotations

from typing import Literal

import numpy as np

from onnxplain.methods.registry import method
from onnxplain.methods.run import Run
from onnxplain.methods.tensors import Array, Tensors

NEAR_ZERO = 1e-6  # of the largest score without a channel: so little is rounding, and no share can be had of it


@method(
    "ablation_cam",
    base="",
    layer="moved",
    signed=False,
    cite="Desai and Ramaswamy 2020, Ablation-CAM: Visual Explanations for Deep Convolutional Network via Gradient-free "
    "Localization, eq. 1 and 2",
)
def ablation_cam(run: Run, x: Tensors, seed: Array, *, weights: Literal["relative", "fall"] = "relative") -> Tensors:
    """A feature map's channels summed, each with the share of the score that falls without it; the positive part.

    ReLU(sum_k w_k A_k), w_k = (y - y_k) / y, y_k the score where channel k is 0. What is below the layer runs once,
    what is above it once for each channel. A score y below 0 would turn the map round: it is divided by |y|, and that
    is noted. Where y is 0 up to rounding there is no share, and the falls themselves are the weights, which is noted
    too. pytorch-grad-cam divides by y with its sign, and sets a channel of a layer with negative values to -1e7.

    x the feature map, (1, C, …); result with one channel, in the unit of the activation (fall: times the score's).
    weights: relative: (y - y_k) / |y|, the paper's where y is positive; fall: y - y_k, the same map but for its scale.
    """
    names, whole = list(x), float(run.score(x, seed)[0])
    result = {}
    for name in names:
        axis = run.channels[name]
        count = x[name].shape[axis]
        falls = np.zeros(count)
        for part in run.batches(count):
            rows = part.stop - part.start
            points = {other: np.repeat(array, rows, 0) for other, array in x.items()}
            np.moveaxis(points[name], axis, 1)[np.arange(rows), np.arange(part.start, part.stop)] = 0
            falls[part] = whole - run.score(Tensors(points), seed)
        if weights == "relative":
            falls = falls / _size(run, whole, falls)
        shape = [-1 if n == axis else 1 for n in range(x[name].ndim)]
        summed = (falls.reshape(shape) * x[name].astype(np.float64)).sum(axis, keepdims=True)
        result[name] = np.maximum(summed, 0).astype(x[name].dtype)
    return Tensors(result)


def _size(run: Run, score: float, falls: Array) -> float:
    """What the falls are divided by."""
    if abs(score) <= NEAR_ZERO * float(np.abs(falls - score).max(initial=0.0)):
        run.note("a score is 0, of which no channel has a share: its channels are weighed by the falls themselves")
        return 1.0
    if score < 0:
        run.note(
            "a score is negative: channels are weighed by what falls divided by its size, as the paper's formula "
            "would turn its map round"
        )
    return abs(score)
