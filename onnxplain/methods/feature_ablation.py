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
    groups: auto (patches of a picture, windows of a sequence, columns of a table), elements, inputs, or a number for
        each column or step: those of one number go together, such as the columns of a one-hot code.
    patch: lengths of patches or windows: one number, or one for each axis behind the first, 0 for a whole axis.
        None: 14 patches along the longer side of a picture, 196 windows of a sequence, single columns.
    baseline: what stands in the place of a group, in model units: one number, one for each channel or column, mean
        (of each channel of the input itself) or blur.
    """
    features, absent = partition(x, groups, patch, CELLS), replacement_of(x, baseline)
    falls = np.zeros(features.count)
    whole = run.score(x, seed)[0]
    for part in run.batches(features.count):
        present = np.arange(features.count) != np.arange(part.start, part.stop)[:, None]
        falls[part] = whole - features.scores(run, x, absent, seed, present)
    return features.spread(falls).with_(x, lambda array, like: array.astype(like.dtype))
