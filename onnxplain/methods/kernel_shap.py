"""Kernel SHAP: Shapley values by weighted least squares over coalitions."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from math import comb
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
BEYOND = 2048  # samples beside two for each group, where none are said; as the shap package


@method(
    "kernel_shap",
    base="",
    switches=True,
    cite="Lundberg and Lee 2017, A Unified Approach to Interpreting Model Predictions, theorem 2; paired samples: "
    "Covert and Lee 2021, Improving KernelSHAP",
)
def kernel_shap(
    run: Run,
    x: Tensors,
    seed: Array,
    *,
    samples: Annotated[int | None, Range(2, 10_000_000)] = None,
    groups: Groups = "auto",
    patch: Lengths = None,
    baseline: Replacement = 0.0,
    fixed: Fixed = None,
    until: Annotated[float | None, Range(0)] = None,
    random_seed: Annotated[int, Range(0)] = 0,
) -> Estimate:
    """Shapley values as the weighted linear fit to the scores of coalitions of feature groups.

    phi minimises sum over z of pi(z) (F(z) - F(baseline) - phi z)^2, pi(z) = (n - 1) / (C(n, |z|) |z| (n - |z|)), under
    sum phi = F(x) - F(baseline), which is solved exactly. Where all 2^n - 2 coalitions fit into the samples they are
    all taken, and the values are exact; else they are drawn by pi, each with its complement. The elements of a group
    share its value equally (captum gives each the whole), so that relevance sums to the same.

    x (1, …) in model units; result the same shape, in the unit of the score.
    samples: coalitions, at most where `until` is given. None: 2048 and two for each group.
    patch: None: 7 patches along the longer side of a picture, 49 windows of a sequence, single columns.
    until: end as soon as the largest standard error is below this share of the largest value of a group.
    random_seed: of the coalitions, which are the same for every row and target.
    """
    absent = replacement_of(run, x, baseline, fixed)
    features = partition(x, groups, patch, CELLS, absent)
    count = features.count
    nothing = float(run.score(absent, seed).mean())
    change = run.score(x, seed)[0] - nothing
    wanted = 2 * count + BEYOND if samples is None else samples
    everything = count < 30 and 2**count - 2 <= wanted
    if everything:
        wanted, drawn = 2**count - 2, _all(count)
    else:
        require_samples("kernel_shap", count, wanted)
        wanted, drawn = wanted + wanted % 2, paired(np.random.default_rng(random_seed), count)
    sums = PresenceRegression(count, lambda products, targets: _constrained(products, targets, change), together=2)

    def draw(part: slice) -> tuple[Array, Array, Array]:
        coalitions = list(islice(drawn, part.stop - part.start))
        present, weights = np.stack([z for z, _ in coalitions]), np.array([weight for _, weight in coalitions])
        return present.astype(np.float64), weights, features.scores(run, x, absent, seed, present) - nothing

    sums.fill(run, wanted, draw, *((None, None) if everything else (until, least_samples(count))))
    values = sums.values() if count > 1 else np.array([change])
    errors = np.zeros(count) if everything else sums.standard_errors()
    return Estimate.of(features.shared(values), features.shared(errors), features.like)


def _all(count: int) -> Iterator[tuple[Array, float]]:
    """Every coalition but the empty and the full one, with its weight."""
    for coalition in range(1, 2**count - 1):
        present = coalition >> np.arange(count) & 1 > 0
        size = int(present.sum())
        yield present, (count - 1) / (comb(count, size) * size * (count - size))


def paired(generator: np.random.Generator, count: int) -> Iterator[tuple[Array, float]]:
    """Coalitions drawn by their weight, each before its complement, without end."""
    sizes = np.arange(1, count)
    chances = 1 / (sizes * (count - sizes))
    chances /= chances.sum()
    while True:
        present = np.zeros(count, bool)
        present[generator.permutation(count)[: generator.choice(sizes, p=chances)]] = True
        yield present, 1.0
        yield ~present, 1.0


def _constrained(products: Array, targets: Array, change: float) -> Array:
    """The least squares solution among those that sum to `change`, by a Lagrange multiplier."""
    free, one = solved(products, np.stack([targets, np.ones_like(targets)], 1)).T
    return np.asarray(free - one * (free.sum() - change) / one.sum())
