"""Exact Shapley values of few feature groups."""

from __future__ import annotations

from math import comb

import numpy as np

from onnxplain.errors import UsageError
from onnxplain.methods.feature_groups import Groups, Lengths, partition
from onnxplain.methods.registry import method
from onnxplain.methods.replacements import Replacement, replacement_of
from onnxplain.methods.run import Run
from onnxplain.methods.tensors import Array, Tensors

CELLS = 3  # patches along the longest side of a picture: 9 of a square one
MOST = 12  # groups: 4096 looks


@method("exact_shapley", base="", cite="Shapley 1953, A Value for n-Person Games")
def exact_shapley(
    run: Run,
    x: Tensors,
    seed: Array,
    *,
    groups: Groups = "auto",
    patch: Lengths = None,
    baseline: Replacement = 0.0,
) -> Tensors:
    """Shapley values from the scores of all coalitions of up to 12 feature groups.

    phi_g = sum over S without g of |S|! (n - |S| - 1)! / n! (F(S and g) - F(S)), absent groups at the baseline. They
    sum to F(x) - F(baseline). The elements of a group share its value equally, so that relevance sums to the same.

    x (1, …) in model units; result the same shape, in the unit of the score. Takes 2^n looks.
    patch: None: 3 patches along the longer side of a picture, 9 windows of a sequence, single columns.
    """
    features, absent = partition(x, groups, patch, CELLS), replacement_of(run, x, baseline)
    count = features.count
    if count > MOST:
        raise UsageError(
            f"exact Shapley values look at every coalition, and {count} groups have 2^{count}; at most {MOST} groups: "
            "take larger ones (patch=…, groups=…), or kernel_shap or shapley_sampling, which draw some."
        )
    coalitions = np.arange(2**count)
    present = coalitions[:, None] >> np.arange(count) & 1 > 0
    scores = np.zeros(len(coalitions))
    for part in run.batches(len(coalitions)):
        scores[part] = features.scores(run, x, absent, seed, present[part])
    weights = np.array([1 / (count * comb(count - 1, size)) for size in range(count)])
    values = np.zeros(count)
    for group in range(count):
        without = coalitions[~present[:, group]]
        values[group] = weights[present[without].sum(1)] @ (scores[without | 1 << group] - scores[without])
    return features.shared(values).with_(x, lambda array, like: array.astype(like.dtype))
