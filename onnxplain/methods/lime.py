"""LIME: a linear model of the scores near the input."""

from __future__ import annotations

from typing import Annotated

import numpy as np

from onnxplain.methods.estimate import Estimate
from onnxplain.methods.feature_groups import Groups, Lengths, partition
from onnxplain.methods.options import Range
from onnxplain.methods.presence_regression import PresenceRegression, least_samples, require_samples, solved
from onnxplain.methods.registry import method
from onnxplain.methods.replacements import Fixed, Replacement, replacement_of
from onnxplain.methods.run import Run
from onnxplain.methods.tensors import Array, Tensors

CELLS = 7  # patches along the longer side of a picture, by default


@method(
    "lime",
    base="",
    switches=True,
    cite='Ribeiro, Singh and Guestrin 2016, "Why Should I Trust You?", sect. 3; weights and ridge as the lime package',
)
def lime(
    run: Run,
    x: Tensors,
    seed: Array,
    *,
    samples: Annotated[int, Range(2, 10_000_000)] = 1000,
    kernel_width: Annotated[float, Range(1e-3)] = 0.25,
    ridge: Annotated[float, Range(0)] = 1.0,
    groups: Groups = "auto",
    patch: Lengths = None,
    baseline: Replacement = 0.0,
    fixed: Fixed = None,
    until: Annotated[float | None, Range(0)] = None,
    random_seed: Annotated[int, Range(0)] = 0,
) -> Estimate:
    """Coefficients of a weighted ridge regression of the score on which feature groups are present.

    beta minimises sum over z of w(z) (F(z) - a - beta z)^2 + ridge |beta|^2, w(z) = sqrt(exp(-d^2 / kernel_width^2)), d
    the cosine distance from z to all groups present; groups are present by the toss of a coin, the first sample is the
    input itself. The elements of a group share its coefficient equally.

    x (1, …) in model units; result the same shape, in the unit of the score.
    samples: points near the input, at most where `until` is given.
    kernel_width: how fast the weight falls with the distance, which is 0 to 1.
    ridge: weight of the penalty, which shrinks all coefficients; 0 is least squares.
    patch: None: 7 patches along the longer side of a picture, 49 windows of a sequence, single columns.
    until: end as soon as the largest standard error is below this share of the largest coefficient.
    random_seed: of the coins, which fall the same for every row and target.
    """
    absent = replacement_of(run, x, baseline, fixed)
    features = partition(x, groups, patch, CELLS, absent)
    count = features.count
    require_samples("lime", count, samples)
    whole = run.score(x, seed)[0]
    penalty = np.diag([*np.full(count, ridge), 0.0])  # none on the constant a
    sums = PresenceRegression(count + 1, lambda products, targets: solved(products + penalty, targets)[:count])
    generator = np.random.default_rng(random_seed)

    def draw(part: slice) -> tuple[Array, Array, Array]:
        present = generator.random((part.stop - part.start, count)) < 0.5
        if part.start == 0:
            present[0] = True
        distances = 1 - np.sqrt(present.mean(1))  # of z to ones: 1 - |z| / (sqrt(|z|) sqrt(n))
        z = np.column_stack([present.astype(np.float64), np.ones(len(present))])
        scores = features.scores(run, x, absent, seed, present) - whole
        return z, np.exp(-0.5 * np.square(distances / kernel_width)), scores

    sums.fill(run, samples, draw, until, least_samples(count))
    return Estimate.of(features.shared(sums.values()), features.shared(sums.standard_errors()), features.like)
