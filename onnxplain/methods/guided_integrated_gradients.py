"""Integrated gradients along a path that avoids steep slopes."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np

from onnxplain.methods.baselines import Baseline, BaselineAt, baseline_of
from onnxplain.methods.completeness import note_residual
from onnxplain.methods.options import Range
from onnxplain.methods.registry import method
from onnxplain.methods.run import Run
from onnxplain.methods.tensors import Array, Tensors

NEAR = 1e-9  # relative and absolute: two distances that are the same, float64


@method(
    "guided_integrated_gradients",
    cite="Kapishnikov et al. 2021, Guided Integrated Gradients: an Adaptive Path Method for Removing Noise",
)
def guided_integrated_gradients(
    run: Run,
    x: Tensors,
    seed: Array,
    *,
    baseline: Baseline = 0.0,
    sigma: Annotated[float | None, Range(0)] = None,
    axes: list[int] | None = None,
    baseline_at: BaselineAt = "moved",
    steps: Annotated[int, Range(1, 1_000_000)] = 200,
    fraction: Annotated[float, Range(0.01, 1)] = 0.25,
    distance: Annotated[float, Range(0, 1)] = 0.02,
    quadrature: Literal["trapezoid", "left"] = "trapezoid",
) -> Tensors:
    """Gradient times change, along a path on which the elements with the smallest gradients move first.

    R_i = ∫ dF(c(t)) / dx_i dc_i(t). Each step covers 1/steps of the L1 distance from the baseline to the input: first
    the elements move whose absolute gradient is among the smallest `fraction`, as far as the band around the straight
    path allows. With the gradient as base R sums to F(x) - F(x') up to the error of the quadrature, which is noted
    where it is above 5 % of the sum. Over a base that answers in shares of the score its answers choose the path, and
    are averaged along it.

    x (1, …) in model units; result the same shape, in the unit of the score.
    baseline: where the path begins: one number, one for each channel (axis 1), blur, maximum_distance, background
        or background_mean (see integrated_gradients).
    sigma: of baseline=blur, in elements; None: a tenth of the longest blurred axis.
    axes: of baseline=blur, counted from that of the samples; None: the two of a picture.
    steps: of the path; each is one backward pass, at the point where the one before has led, so that none can share a
        run; trapezoid takes one more at the end.
    fraction: of the elements, those that move first.
    distance: half the width of the band, as a share of the way from the baseline to the input; 1 is no band.
    quadrature: trapezoid: of a step counts the mean of the gradients at its ends; left: the one at its beginning, as in
        the authors' code, which is chosen for being small and so counts too little.
    """
    start = baseline_of(run, x, baseline, sigma, axes, baseline_at)
    last, trapezoid = _vector(x), quadrature == "trapezoid"
    first = point = found = total = np.zeros(len(last))

    def answer(point: Array) -> Array:
        return _vector(run.relevance(_tensors(point, x), seed))

    for part in run.batches(steps * start.rows):
        for path, step in (divmod(look, steps) for look in range(part.start, part.stop)):
            if step == 0:
                first = point = _vector(start.row(path))
                found = answer(point)
            before, point = point, _moved(point, first, last, np.abs(found), (step + 1) / steps, fraction, distance)
            after = answer(point) if trapezoid or step + 1 < steps else found
            mean = (found + after) / 2 if trapezoid else found
            total, found = total + (mean * (point - before) if run.per_unit else mean / steps), after
    result = _tensors(total / start.rows, x.wide())
    if run.per_unit:
        note_residual(run, start, x, seed, result, "take more steps, or fewer elements at once (fraction, distance)")
    return result.typed(x)


def _moved(
    point: Array, first: Array, last: Array, slopes: Array, share: float, fraction: float, distance: float
) -> Array:
    """The point to which one step goes: at `share` of the L1 distance from first to last. slopes: at least 0."""
    low = first + (last - first) * max(share - distance, 0.0)
    high = first + (last - first) * min(share + distance, 1.0)
    left = np.abs(last - first).sum() * (1 - share)
    behind = np.abs(point - first) < np.abs(low - first)
    point, slopes = np.where(behind, low, point), slopes.copy()
    while (now := np.abs(last - point).sum()) > left and not np.isclose(now, left, NEAR, NEAR):
        slopes[point == high] = np.inf  # these are as far as they may go
        chosen = (slopes <= np.quantile(slopes, fraction, method="lower")) & np.isfinite(slopes)
        if not chosen.any():
            break
        way = np.where(chosen, high - point, 0.0)
        part = (now - left) / np.abs(way).sum()
        point = point + way * part if part < 1 else np.where(chosen, high, point)
    return point


def _vector(tensors: Tensors) -> Array:
    """All elements of one point, one tensor behind the other; float64."""
    return np.concatenate([array.reshape(-1).astype(np.float64) for array in tensors.values()])


def _tensors(vector: Array, like: Tensors) -> Tensors:
    """The reverse, in the shapes and types of another."""
    ends = np.cumsum([array.size for array in like.values()])[:-1]
    parts = np.split(vector, ends)
    return Tensors(
        {name: part.reshape(a.shape).astype(a.dtype) for (name, a), part in zip(like.items(), parts, strict=True)}
    )
