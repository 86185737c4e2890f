"""The search for anchors: a beam of growing rules, the best of which are told apart by KL-LUCB."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from onnxplain.methods.predicates import Predicates
from onnxplain.methods.tensors import Array

BATCH = 100  # rows that are drawn of a rule at once
HALVINGS = 25  # of an interval in which a confidence bound lies
MARGIN = 0.05  # by which an anchor's precision may be below the one wanted; the authors' code has it too
FIRST, POWER = 405.5, 1.1  # of the exploration rate of KL-LUCB, as in its paper


@dataclass
class Candidate:
    """A rule and what was drawn of it.

    order: its predicates as they joined. before: the precisions of the rules that it grew from, the empty one first.
    count, hits: rows drawn, and those with the decision.
    """

    order: tuple[int, ...]
    before: tuple[float, ...] = ()
    count: int = 0
    hits: int = 0

    @property
    def precision(self) -> float:
        """As far as is drawn."""
        return self.hits / max(1, self.count)

    @property
    def precisions(self) -> tuple[float, ...]:
        """Of the rules from the empty one to this."""
        return (*self.before, self.precision)


class AnchorSearch:
    """Ribeiro et al. 2018, algorithms 1 and 2; KL-LUCB: Kaufmann and Kalyanakrishnan 2013.

    same: how many of some rows have the decision of x. samples: drawn to find the best rules of a length, at most, and
    so many again to confirm each of these.
    """

    def __init__(
        self, rules: Predicates, same: Callable[[Array], int], precision: float, tolerance: float, confidence: float,
        beam: int, samples: int,
    ):  # fmt: skip
        self._rules, self._same, self._samples, self._left = rules, same, samples, samples
        self._precision, self._tolerance, self._confidence, self._beam = precision, tolerance, confidence, beam

    def best(self, longest: int) -> Candidate:
        """The shortest rule that is precise, of several the one of the largest coverage; else the most precise one."""
        empty = Candidate(())
        self._confirm(empty, 1)
        beam, seen = [empty], [empty]
        while not (anchors := [c for c in beam if self.precise(c)]):
            if len(beam[0].order) == longest or not (grown := self._grown(beam)):
                break
            beam = self._top(grown)
            for candidate in beam:
                self._confirm(candidate, len(grown))
            seen += beam
        if anchors:
            return max(anchors, key=lambda c: (self._rules.coverage(c.order), c.precision))
        return max(seen, key=lambda c: (c.precision, -len(c.order)))

    def precise(self, candidate: Candidate) -> bool:
        """Whether it is an anchor: precise enough, and with the confidence not by chance."""
        (low,), _ = bounds([candidate], np.log(1 / self._confidence))
        return bool(candidate.precision >= self._precision and low >= self._precision - MARGIN)

    def _grown(self, beam: Sequence[Candidate]) -> list[Candidate]:
        """Every rule of the beam with one predicate more, each set of predicates once."""
        grown: dict[frozenset[int], Candidate] = {}
        for parent in beam:
            for predicate in range(len(self._rules.column)):
                key = frozenset((*parent.order, predicate))
                if len(key) > len(parent.order) and key not in grown:
                    order = (*parent.order, predicate)
                    narrows = self._rules.coverage(order) < self._rules.coverage(parent.order) or not parent.order
                    if narrows and self._rules.possible(order):
                        grown[key] = Candidate(order, parent.precisions)
        return list(grown.values())

    def _top(self, arms: list[Candidate]) -> list[Candidate]:
        """The `beam` most precise, each but for the tolerance, with the confidence."""
        self._left = self._samples
        for arm in arms:
            self._draw(arm)
        step = 1
        while True:
            order = np.argsort([-arm.precision for arm in arms], kind="stable")
            inside, outside = order[: self._beam], order[self._beam :]
            if not outside.size or self._left < 2 * BATCH:
                return [arms[n] for n in inside]
            level = np.log(FIRST * len(arms) * step**POWER / self._confidence)
            low, high = bounds(arms, level + np.log(level))
            weakest, strongest = inside[low[inside].argmin()], outside[high[outside].argmax()]
            if high[strongest] - low[weakest] < self._tolerance:
                return [arms[n] for n in inside]
            self._draw(arms[weakest])
            self._draw(arms[strongest])
            step += 1

    def _confirm(self, candidate: Candidate, arms: int) -> None:
        """Draw until the rule is known to be precise, or not to be, but for the margin."""
        self._left = self._samples
        self._draw(candidate)
        while self._left >= BATCH:
            (low,), (high,) = bounds([candidate], np.log(arms / self._confidence))
            likely = candidate.precision >= self._precision
            if low >= self._precision - MARGIN if likely else high < self._precision + MARGIN:
                return
            self._draw(candidate)

    def _draw(self, candidate: Candidate) -> None:
        self._left -= BATCH
        candidate.hits += self._same(self._rules.draw(candidate.order, BATCH))
        candidate.count += BATCH


def bounds(candidates: Sequence[Candidate], level: float) -> tuple[Array, Array]:
    """Where each precision may lie, float64 (lowest, highest): q with count · KL(precision, q) <= level."""
    precisions = np.array([candidate.precision for candidate in candidates])
    limits = level / np.array([candidate.count for candidate in candidates])
    ends = []
    for end in (0.0, 1.0):
        inside, outside = precisions, np.full(len(precisions), end)
        for _ in range(HALVINGS):
            middle = (inside + outside) / 2
            beyond = divergence(precisions, middle) > limits
            inside, outside = np.where(beyond, inside, middle), np.where(beyond, middle, outside)
        ends.append(inside)
    return ends[0], ends[1]


def divergence(p: Array, q: Array) -> Array:
    """Kullback and Leibler's, of coins with chances p and q."""
    p, q = (np.clip(value, 1e-12, 1 - 1e-12) for value in (p, q))
    return np.asarray(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))
