"""DeepLIFT against many references."""

from __future__ import annotations

import numpy as np

from onnxplain.methods.baselines import Baseline, baseline_of
from onnxplain.methods.registry import method
from onnxplain.methods.run import Run
from onnxplain.methods.tensors import Array, Tensors


@method(
    "deep_lift_shap",
    cite="Lundberg and Lee 2017, A Unified Approach to Interpreting Model Predictions, section 4.2 (Deep SHAP); "
    "shap's DeepExplainer, captum's DeepLiftShap",
    base="deep_lift",
    references=True,
)
def deep_lift_shap(run: Run, x: Tensors, seed: Array, *, baseline: Baseline = "background") -> Tensors:
    """DeepLIFT's mean over the rows of a background: Shapley values where the layers' differences are independent.

    R = 1/B sum_b m(x, x_b) (x - x_b), with the multipliers m of the base between x and a row x_b. Sums to
    F(x) - 1/B sum_b F(x_b).

    x (1, …) in model units; result the same shape, in the unit of the score.
    baseline: what x is compared with: background (each of its rows), background_mean, one number, one for each channel
        (axis 1), blur (x, blurred), or maximum_distance (for each element the farther end of the input's range).
    """
    references = baseline_of(run, x, baseline)
    total = x.wide() * 0.0
    for part in run.batches(references.rows):
        compared = references.row(np.arange(part.start, part.stop))
        points = x.row(np.zeros(compared.rows, int))
        total = total + run.relevance(points, seed, compared).wide().sum()
    return (total / references.rows).typed(x)
