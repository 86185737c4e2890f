"""Conductance of the units of a layer, and their internal influence."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np

from onnxplain.methods.baselines import Baseline, baseline_of
from onnxplain.methods.options import Range
from onnxplain.methods.quadrature import Quadrature, nodes
from onnxplain.methods.registry import method
from onnxplain.methods.run import Run
from onnxplain.methods.tensors import Array, Tensors

PLACES = {"left": 0.0, "midpoint": 0.5, "right": 1.0}  # of a line of the path, where its gradient is taken


@method(
    "conductance",
    layer="followed",
    cite="Dhamdhere, Sundararajan and Yan 2018, How Important Is a Neuron?, sect. 3",
)
def conductance(
    run: Run,
    x: Tensors,
    seed: Array,
    *,
    baseline: Baseline = 0.0,
    sigma: Annotated[float | None, Range(0)] = None,
    axes: list[int] | None = None,
    steps: Annotated[int, Range(1, 1_000_000)] = 50,
    quadrature: Literal["midpoint", "left", "right"] = "midpoint",
) -> Tensors:
    """How much of the change of the score along a path of the input flows through each unit of a layer.

    C_j = ∫ dF/dy_j dy_j/da da, y the layer at x' + a (x - x'), a from 0 to 1. The path is taken as lines, on each of
    which dF/dy_j at one point is multiplied by the change of y_j. Where everything passes the layer it sums to
    F(x) - F(x'); of the inputs, which are taken where no layer is named (--attribute-to), it is integrated gradients.
    Over a base that answers in shares of the score its answers are averaged.

    x (1, …) in model units; result as the layer, in the unit of the score.
    baseline: where the path begins, in model units: one number, one for each channel (axis 1), blur (the input,
        blurred), or maximum_distance (for each element the farther end of the input's range).
    sigma: of baseline=blur, in elements; None: a tenth of the longest blurred axis.
    axes: of baseline=blur, counted from that of the samples; None: the two of a picture.
    steps: lines of the path; each is one backward pass and one pass up to the layer.
    quadrature: where on a line dF/dy_j is taken; left, with riemann_trapezoid, is captum's sum.
    """
    start = baseline_of(run, x, baseline, sigma, axes)
    here = run.layer(x)
    total = here.wide() * 0.0

    def points(rows: Array, steps_done: Array) -> Tensors:
        return start.row(rows) + (x - start.row(rows)).scaled(steps_done / steps)

    for part in run.batches(steps * start.rows):
        rows, lines = np.divmod(np.arange(part.start, part.stop), steps)
        ends, at = np.unique(np.concatenate([(rows, lines), (rows, lines + 1)], 1), axis=1, return_inverse=True)
        values = run.layer(points(*ends)).wide()
        changes = values.row(at.ravel()[len(rows) :]) - values.row(at.ravel()[: len(rows)])
        found = run.relevance(points(rows, lines + PLACES[quadrature]), seed).wide()
        total = total + (found * changes if run.per_unit else found / steps).sum()
    return (total / start.rows).typed(here)


@method(
    "internal_influence",
    layer="followed",
    cite="Leino et al. 2018, Influence-Directed Explanations for Deep Convolutional Networks, eq. 1",
)
def internal_influence(
    run: Run,
    x: Tensors,
    seed: Array,
    *,
    baseline: Baseline = 0.0,
    sigma: Annotated[float | None, Range(0)] = None,
    axes: list[int] | None = None,
    steps: Annotated[int, Range(1, 1_000_000)] = 50,
    quadrature: Quadrature = "gauss_legendre",
) -> Tensors:
    """Mean gradient at a layer while the input goes straight from a baseline to itself.

    I_j = ∫ dF/dy_j (x' + a (x - x')) da, a from 0 to 1, y the layer (--attribute-to), by default the inputs. It is not
    multiplied by anything. Over another base its answers are averaged.

    x (1, …) in model units; result as the layer, in the unit of the base.
    baseline: where the path begins, in model units: one number, one for each channel (axis 1), blur (the input,
        blurred), or maximum_distance (for each element the farther end of the input's range).
    sigma: of baseline=blur, in elements; None: a tenth of the longest blurred axis.
    axes: of baseline=blur, counted from that of the samples; None: the two of a picture.
    steps: points on the path; each is one backward pass.
    quadrature: how they lie and count, see integrated_gradients.
    """
    start, here = baseline_of(run, x, baseline, sigma, axes), run.layer(x)
    positions, weights = nodes(steps, quadrature)
    total = here.wide() * 0.0
    for part in run.batches(steps * start.rows):
        rows, places = np.divmod(np.arange(part.start, part.stop), steps)
        points = start.row(rows) + (x - start.row(rows)).scaled(positions[places])
        total = total + run.relevance(points, seed).wide().scaled(weights[places]).sum()
    return (total / start.rows).typed(here)
