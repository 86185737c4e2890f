"""Integrated gradients."""

from __future__ import annotations

from typing import Annotated

import numpy as np

from onnxplain.methods.baselines import Baseline, BaselineAt, baseline_of
from onnxplain.methods.completeness import note_residual
from onnxplain.methods.options import Range
from onnxplain.methods.quadrature import Quadrature, nodes
from onnxplain.methods.registry import method
from onnxplain.methods.run import Run
from onnxplain.methods.tensors import Array, Tensors


@method(
    "integrated_gradients",
    cite="Sundararajan, Taly and Yan 2017, Axiomatic Attribution for Deep Networks, eq. 1; "
    "baselines: Sturmfels, Lundberg and Lee 2020",
)
def integrated_gradients(
    run: Run,
    x: Tensors,
    seed: Array,
    *,
    baseline: Baseline = 0.0,
    sigma: Annotated[float | None, Range(0)] = None,
    axes: list[int] | None = None,
    baseline_at: BaselineAt = "moved",
    steps: Annotated[int, Range(1, 1_000_000)] = 50,
    quadrature: Quadrature = "gauss_legendre",
    multiply_by_inputs: bool | None = None,
) -> Tensors:
    """Mean gradient on the straight path from a baseline to the input, times their difference.

    R_i = (x_i - x'_i) ∫ dF(x' + a (x - x')) / dx_i da, a from 0 to 1. With the gradient as base it sums to
    F(x) - F(x'), up to the error of the quadrature: that error is noted where it is above 5 % of the sum. Over another
    base its answers are averaged in the gradient's place.

    x (1, …) in model units; result the same shape, in the unit of the score.
    baseline: where the path begins, in model units: one number, one for each channel (axis 1), blur (the input,
        blurred), maximum_distance (for each element the farther end of the input's range), background (the mean over
        paths from each of its rows) or background_mean (the mean of its rows).
    sigma: of baseline=blur, in elements; None: a tenth of the longest blurred axis.
    axes: of baseline=blur, counted from that of the samples; None: the two of a picture.
    steps: points on the path; each is one backward pass.
    quadrature: how they lie and count; gauss_legendre is exact for polynomials of degree 2 steps - 1 (up to 64 steps,
        more are that many on each part of the path), left and right are the sums at the ends of the steps that other
        libraries take.
    multiply_by_inputs: whether the mean is multiplied by x - x'; None: where the base answers per unit of the input.
    """
    start = baseline_of(run, x, baseline, sigma, axes, baseline_at)
    positions, weights = nodes(steps, quadrature)
    multiply = run.per_unit if multiply_by_inputs is None else multiply_by_inputs
    result = x.wide() * 0.0
    for part in run.batches(steps * start.rows):
        rows, places = np.divmod(np.arange(part.start, part.stop), steps)
        difference = x - start.row(rows)
        found = run.relevance(start.row(rows) + difference.scaled(positions[places]), seed).wide()
        result = result + (found * difference if multiply else found).scaled(weights[places] / start.rows).sum()
    if multiply:
        note_residual(run, start, x, seed, result, "take more steps")
    return result.typed(x)
