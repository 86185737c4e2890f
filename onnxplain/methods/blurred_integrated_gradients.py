"""Integrated gradients along a path of blurs."""

from __future__ import annotations

from typing import Annotated

import numpy as np

from onnxplain.methods.completeness import note_residual
from onnxplain.methods.gaussian_blur import blurred, blurred_axes, longest
from onnxplain.methods.options import Range
from onnxplain.methods.registry import method
from onnxplain.methods.run import Run
from onnxplain.methods.tensors import Array, Tensors

SHARE = 0.25  # of the longest blurred axis: 56 of the 224 pixels for which the authors' code takes 50


@method(
    "blurred_integrated_gradients",
    cite="Xu, Venugopalan and Sundararajan 2020, Attribution in Scale and Space, eq. 4",
)
def blurred_integrated_gradients(
    run: Run,
    x: Tensors,
    seed: Array,
    *,
    sigma: Annotated[float | None, Range(0)] = None,
    axes: list[int] | None = None,
    steps: Annotated[int, Range(1, 1_000_000)] = 50,
) -> Tensors:
    """Gradient times change, along the path from the blurred input to the input as the blur fades.

    R_i = -∫ dF(L(s)) / dL_i dL_i / ds ds, s from 0 to `sigma`, L(s) the input blurred by a Gaussian of standard
    deviation s. The path is taken as straight lines between blurs at equal distances of s, each with the gradient in
    its middle: so with the gradient as base R sums to F(x) - F(L(sigma)), exactly where F is quadratic; the error is
    noted where it is above 5 % of the sum. Over a base that answers in shares of the score its answers are averaged.

    x (1, …) in model units; result the same shape, in the unit of the score.
    sigma: the strongest blur, in elements; None: a quarter of the longest blurred axis.
    axes: along which it is blurred, counted from that of the samples; None: the two of a picture.
    steps: lines of the path; each is one backward pass.
    """
    along = blurred_axes(x, axes)
    widest = {name: SHARE * length if sigma is None else sigma for name, length in longest(x, along).items()}
    fading = np.linspace(1, 0, steps + 1)

    def blurs(places: slice) -> Tensors:
        """The points of the path at some of its places, (S, …)."""
        return Tensors({name: blurred(array, widest[name] * fading[places], along[name]) for name, array in x.items()})

    total = x.wide() * 0.0
    for part in run.batches(steps):
        path = blurs(slice(part.start, part.stop + 1))
        before, after = path.map(lambda array: array[:-1]), path.map(lambda array: array[1:])
        found = run.relevance((before + after) * 0.5, seed).wide()
        total = total + (found * (after - before) if run.per_unit else found / steps).sum()
    if run.per_unit:
        note_residual(run, blurs(slice(0, 1)), x, seed, total, "take more steps")
    return total.typed(x)
