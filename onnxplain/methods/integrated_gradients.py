"""Integrated gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np

from onnxplain.errors import UsageError
from onnxplain.methods.options import Range
from onnxplain.methods.registry import method
from onnxplain.methods.run import Run
from onnxplain.methods.tensors import Array, Tensors

PANEL = 64  # points of one Gauss-Legendre rule: its nodes take the cube of that to find; more points are several rules


@method(
    "integrated_gradients",
    cite="Sundararajan, Taly and Yan 2017, Axiomatic Attribution for Deep Networks, eq. 1",
)
def integrated_gradients(
    run: Run,
    x: Tensors,
    seed: Array,
    *,
    baseline: float | list[float] = 0.0,
    steps: Annotated[int, Range(1, 1_000_000)] = 50,
    quadrature: Literal["gauss_legendre", "midpoint", "right"] = "gauss_legendre",
    multiply_by_inputs: bool | None = None,
) -> Tensors:
    """Mean gradient on the straight path from a baseline to the input, times their difference.

    R_i = (x_i - x'_i) ∫ dF(x' + a (x - x')) / dx_i da, a from 0 to 1. With the gradient as base it sums to
    F(x) - F(x'), up to the error of the quadrature. Over another base its answers are averaged in the gradient's place.

    x (1, …) in model units; result the same shape, in the unit of the score.
    baseline: where the path begins, in model units: one number, or one for each channel (axis 1).
    steps: points on the path; each is one backward pass.
    quadrature: how they lie and count; gauss_legendre is exact for polynomials of degree 2 steps - 1 (up to 64 steps,
        more are that many on each part of the path), right is the sum at the right ends that other libraries take.
    multiply_by_inputs: whether the mean is multiplied by x - x'; None: where the base answers per unit of the input.
    """
    if not isinstance(baseline, (int, float)) and not run.samples:
        raise UsageError("a baseline for each channel needs inputs whose axis 0 counts samples: give one number.")
    start = x.map(lambda array: _filled(array, baseline))
    positions, weights = nodes(steps, quadrature)
    total = x.map(lambda array: np.zeros(array.shape, np.float64))
    for part in run.batches(steps):
        points = start + (x - start).scaled(positions[part])
        total = (
            total + run.relevance(points, seed).map(lambda array: array.astype(np.float64)).scaled(weights[part]).sum()
        )
    multiply = run.per_unit if multiply_by_inputs is None else multiply_by_inputs
    result = (x - start) * total if multiply else total
    return result.with_(x, lambda array, like: array.astype(like.dtype))


def nodes(steps: int, quadrature: str) -> tuple[Array, Array]:
    """Positions in (0, 1) and weights that sum to 1, float64 (steps,)."""
    if quadrature == "midpoint":
        return (np.arange(steps) + 0.5) / steps, np.full(steps, 1 / steps)
    if quadrature == "right":
        return (np.arange(steps) + 1.0) / steps, np.full(steps, 1 / steps)
    panels = -(-steps // PANEL)
    counts = [steps // panels + (panel < steps % panels) for panel in range(panels)]
    found = {count: np.polynomial.legendre.leggauss(count) for count in set(counts)}
    positions = [(panel + (found[count][0] + 1) / 2) / panels for panel, count in enumerate(counts)]
    weights = [found[count][1] / (2 * panels) for count in counts]
    return np.concatenate(positions), np.concatenate(weights)


def _filled(x: Array, baseline: float | Sequence[float]) -> Array:
    if isinstance(baseline, (int, float)):
        return np.full_like(x, baseline)
    if x.ndim < 2 or x.shape[1] != len(baseline):
        raise UsageError(
            f"baseline has {len(baseline)} numbers, one for each channel, and axis 1 of {list(x.shape)} is not as long."
        )
    return np.broadcast_to(np.asarray(baseline, x.dtype).reshape(-1, *(1,) * (x.ndim - 2)), x.shape).copy()
