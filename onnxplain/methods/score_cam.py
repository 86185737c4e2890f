"""Score-CAM: a feature map's channels, each weighed by the score of the input seen through it."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np

from onnxplain.errors import UsageError
from onnxplain.methods.feature_groups import group_axes
from onnxplain.methods.masks import enlargement
from onnxplain.methods.options import Range
from onnxplain.methods.registry import method
from onnxplain.methods.replacements import Replacement, replacement_of
from onnxplain.methods.run import Run
from onnxplain.methods.tensors import Array, Tensors


@method(
    "score_cam",
    base="",
    layer="read",
    signed=False,
    cite="Wang et al. 2020, Score-CAM: Score-Weighted Visual Explanations for CNNs, eq. 5 to 7",
)
def score_cam(
    run: Run,
    x: Tensors,
    seed: Array,
    *,
    weights: Literal["softmax", "increase"] = "softmax",
    top: Annotated[int | None, Range(1)] = None,
    baseline: Replacement = 0.0,
) -> Tensors:
    """A feature map's channels summed, each weighed by the score of the input seen through it; the positive part.

    ReLU(sum_k w_k A_k). The mask H_k is A_k enlarged to the input, bilinear, over its range, 0..1; c_k = F(b + H_k (x -
    b)) - F(b), with b = 0 the input times the mask. w = softmax of c over the channels (algorithm 1 of the paper; F(b)
    cancels), or c_k itself (its definition 3). A channel that is the same everywhere hides nothing and is left out, as
    in the authors' code. No derivative is asked for.

    What is masked is the input, so the whole model runs once for each channel: nothing below the layer is shared
    between the masks, and `top` is what makes it cheaper.

    weights: softmax, or increase.
    top: only so many channels, those that vary most over the positions; default all of them.
    """
    maps, start = run.layer(x), replacement_of(run, x, baseline)
    return Tensors({n: _map(run, n, maps[n], x, start, seed, weights, top) for n in maps})


def _map(
    run: Run, name: str, maps: Array, x: Tensors, start: Tensors, seed: Array, weights: str, top: int | None
) -> Array:
    """Of one layer, with one channel. maps (1, …)."""
    axis = run.channels[name]
    channels = np.moveaxis(maps.astype(np.float64), axis, 1)[0]
    spread = channels.std(tuple(range(1, channels.ndim)))
    order = np.argsort(-spread, kind="stable")[:top]
    chosen = channels[np.sort(order[spread[order] > 0])]
    if top is not None and top < len(channels):
        run.note(f"{len(chosen)} of {len(channels)} channels of {name} are looked at, those that vary most")
    result = np.zeros(channels.shape[1:])
    if len(chosen):
        masks = _Masks(name, chosen, x)
        scores = np.empty(len(chosen))
        for part in run.batches(len(chosen)):
            looks = [run.score(masks.points(x, start.row(n), part), seed) for n in range(start.rows)]
            scores[part] = np.mean(looks, 0)
        if weights == "softmax":
            lifted = np.exp(scores - scores.max())
            scores = lifted / lifted.sum()
        else:
            scores = scores - run.score(start, seed).mean()
        result = np.tensordot(scores, chosen, 1).clip(0)
    return np.expand_dims(result[None], axis).astype(maps.dtype)


class _Masks:
    """Channels (K, *space) as masks of the inputs that have as many axes of positions. Raises UsageError."""

    def __init__(self, name: str, channels: Array, x: Tensors):
        space = tuple(range(1, channels.ndim))
        self._channels = channels
        self._axes = {n: axes for n, array in x.items() if len(axes := group_axes(array.shape)) == len(space)}
        self._enlarge = {
            n: [enlargement(channels.shape[1 + k], x[n].shape[at]) for k, at in enumerate(axes)]
            for n, axes in self._axes.items()
        }
        if not self._axes:
            shapes = ", ".join(f"{n} {list(array.shape)}" for n, array in x.items())
            raise UsageError(
                f"score_cam lays the channels of a feature map over the inputs, and {name} has positions along "
                f"{len(space)} axes, unlike {shapes}. Name another map by --layer, or take eigen_cam."
            )

    def points(self, x: Tensors, start: Tensors, part: slice) -> Tensors:
        """The inputs seen through some of the channels, (S, …)."""
        rows = part.stop - part.start
        return Tensors(
            {
                n: start[n] + self._over(n, array, part) * (array - start[n])
                if n in self._axes
                else np.repeat(array, rows, 0)
                for n, array in x.items()
            }
        )

    def _over(self, name: str, array: Array, part: slice) -> Array:
        masks = self._channels[part]
        for k, matrix in enumerate(self._enlarge[name], 1):
            masks = np.moveaxis(np.tensordot(matrix, masks, (1, k)), 0, k)
        space = tuple(range(1, masks.ndim))
        low, high = masks.min(space, keepdims=True), masks.max(space, keepdims=True)
        masks = (masks - low) / np.where(high > low, high - low, 1)
        sides = [array.shape[n] if n in self._axes[name] else 1 for n in range(1, array.ndim)]
        return np.asarray(masks.reshape(len(masks), *sides).astype(array.dtype))
