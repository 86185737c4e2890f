"""Feature ablation: one feature group after the other is taken away."""

from __future__ import annotations

import numpy as np

from onnxplain.methods.feature_groups import Groups, Lengths, partition
from onnxplain.methods.registry import method
from onnxplain.methods.replacements import Replacement, replacement_of
from onnxplain.methods.run import Run
from onnxplain.methods.tensors import Array, Tensors

CELLS = 14  # patches along the longer side of a picture, by default


@method(
    "feature_ablation",
    base="",
    channels="mean",
    cite="Kokhlikyan et al. 2020, Captum; Robnik-Sikonja and Kononenko 2008, Explaining Classifications For Individual "
    "Instances, eq. 6",
)
def feature_ablation(
    run: Run,
    x: Tensors,
    seed: Array,
    *,
    groups: Groups = "auto",
    patch: Lengths = None,
    baseline: Replacement = 0.0,
) -> Tensors:
    """How far the score falls without a feature group, the others as they are.

    R_i = F(x) - F(x with the group of i at the baseline). An element has the whole fall of its group, as in captum, so
    the sum over elements means nothing where groups are larger; channels of a picture are averaged.

    x (1, …) in model units; result the same shape, in the unit of the score.
    patch: None: 14 patches along the longer side of a picture, 196 windows of a sequence, single columns.
    """
    features, absent = partition(x, groups, patch, CELLS), replacement_of(run, x, baseline)
    falls = np.zeros(features.count)
    whole = run.score(x, seed)[0]
    for part in run.batches(features.count):
        present = np.arange(features.count) != np.arange(part.start, part.stop)[:, None]
        falls[part] = whole - features.scores(run, x, absent, seed, present)
    return features.spread(falls).with_(x, lambda array, like: array.astype(like.dtype))
