"""Shapley values by sampling: groups join one after the other, in random orders."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Annotated

import numpy as np

from onnxplain.methods.estimate import Estimate, relative_error
from onnxplain.methods.feature_groups import FeatureGroups, Groups, Lengths, partition
from onnxplain.methods.options import Range
from onnxplain.methods.registry import method
from onnxplain.methods.replacements import Fixed, Replacement, replacement_of
from onnxplain.methods.run import Run
from onnxplain.methods.tensors import Array, Tensors

CELLS = 7  # patches along the longer side of a picture, by default
ENOUGH = 2  # permutations for a standard error
CHECK = 10  # permutations between two looks at the standard error


@method(
    "shapley_sampling",
    base="",
    switches=True,
    cite="Castro, Gomez and Tejada 2009, Polynomial calculation of the Shapley value based on sampling; Strumbelj and "
    "Kononenko 2010, An Efficient Explanation of Individual Classifications using Game Theory",
)
def shapley_sampling(
    run: Run,
    x: Tensors,
    seed: Array,
    *,
    permutations: Annotated[int, Range(2, 10_000_000)] = 25,
    groups: Groups = "auto",
    patch: Lengths = None,
    baseline: Replacement = 0.0,
    fixed: Fixed = None,
    until: Annotated[float | None, Range(0)] = None,
    random_seed: Annotated[int, Range(0)] = 0,
) -> Estimate:
    """Mean rise of the score when a feature group joins those before it, over random orders.

    phi_g = 1/P sum over orders of F(those before g, and g) - F(those before g), all others at the baseline. The values
    of all groups sum to F(x) - F(baseline), whatever the orders. The elements of a group share its value equally
    (captum gives each the whole), so that relevance sums to the same.

    x (1, …) in model units; result the same shape, in the unit of the score.
    permutations: random orders; each takes as many looks as there are groups. Where `until` is given, at most.
    patch: None: 7 patches along the longer side of a picture, 49 windows of a sequence, single columns.
    until: end as soon as the largest standard error is below this share of the largest value of a group.
    random_seed: of the orders, which are the same for every row and target.
    """
    absent = replacement_of(run, x, baseline, fixed)
    features = partition(x, groups, patch, CELLS, absent)
    count = features.count
    nothing, whole = float(run.score(absent, seed).mean()), run.score(x, seed)[0]
    sums = _Marginals(count, nothing, whole)
    steps = _steps(np.random.default_rng(random_seed), count)
    each = max(1, count - 1)  # looks of a permutation
    for part in run.batches(permutations * each, ENOUGH * each):
        chosen = list(islice(steps, part.stop - part.start))
        present = np.zeros((len(chosen), count), bool)
        for row, (order, step) in enumerate(chosen):
            present[row, order[: step + 1]] = True
        for (order, step), score in zip(chosen, features.scores(run, x, absent, seed, present), strict=True):
            sums.add(order, step, score)
            if until is not None and sums.at_a_look(step) and relative_error(*sums.answer()) < until:
                return _estimate(features, sums)
    return _estimate(features, sums)


def _estimate(features: FeatureGroups, sums: _Marginals) -> Estimate:
    values, errors = sums.answer()
    return Estimate.of(features.shared(values), features.shared(errors), features.like)


class _Marginals:
    """Sums of what each group adds when it joins, over whole orders. nothing, whole: the scores at both ends."""

    def __init__(self, count: int, nothing: float, whole: float):
        self._nothing, self._whole, self._before = nothing, whole, nothing
        self._marginal, self._total, self._squares, self._orders = np.zeros(count), np.zeros(count), np.zeros(count), 0

    def add(self, order: Array, step: int, score: float) -> None:
        """The score once `step` + 1 groups of an order have joined."""
        self._marginal[order[step]] = score - self._before
        self._before = score
        if step >= len(order) - 2:  # the last step is x itself
            self._marginal[order[-1]] = self._whole - (score if len(order) > 1 else self._nothing)
            self._total += self._marginal
            self._squares += self._marginal**2
            self._orders, self._before = self._orders + 1, self._nothing

    def at_a_look(self, step: int) -> bool:
        """Whether behind this step so many orders are whole that it is time to look at the standard error."""
        return step >= len(self._total) - 2 and self._orders % CHECK == 0

    def answer(self) -> tuple[Array, Array]:
        """(mean, its standard error), each (count,)."""
        mean = self._total / self._orders
        variance = np.maximum(self._squares / self._orders - mean**2, 0) / max(1, self._orders - 1)
        return mean, np.sqrt(variance)


def _steps(generator: np.random.Generator, count: int) -> Iterator[tuple[Array, int]]:
    """(order, number of the group that joins), one order after the other without end."""
    while True:
        order = generator.permutation(count)
        yield from ((order, step) for step in range(max(1, count - 1)))
