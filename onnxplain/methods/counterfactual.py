"""Counterfactual: down the slope of the score to the nearest row with another class."""

from __future__ import annotations

from typing import Annotated

import numpy as np

from onnxplain.errors import UsageError
from onnxplain.methods.counterfactuals import Bound, Fixed, Neighbourhood, OneHot, Scale, Whole
from onnxplain.methods.decisions import Decision, Threshold, ToClass
from onnxplain.methods.options import Range
from onnxplain.methods.registry import method
from onnxplain.methods.run import Run
from onnxplain.methods.tables import TableRow, table_of
from onnxplain.methods.tensors import Array, Tensors

WEIGHTS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 1000.0)  # of the gap, one after the other
MARGIN = 0.02  # of the gap at x, by which the other class is to be ahead
KEPT = 8  # of the rows found on the way, the nearest, each made sparse


@method(
    "counterfactual",
    cite="Wachter, Mittelstadt and Russell 2018, Counterfactual Explanations without Opening the Black Box, eq. 1 to 4",
    background="optional",
    of_tables=True,
    shares=False,
)
def counterfactual(
    run: Run,
    x: Tensors,
    seed: Array,
    *,
    to: ToClass = None,
    threshold: Threshold = None,
    scale: Scale = None,
    steps: Annotated[int, Range(1, 1_000_000)] = 50,
    fixed: Fixed = None,
    whole: Whole = None,
    one_hot: OneHot = None,
    low: Bound = None,
    high: Bound = None,
) -> Tensors:
    """The change to the nearest row with another class, found by gradient descent.

    x' minimises weight (gap(x') / gap(x) + 1/50)^2 + sum |x'_i - x_i| / scale_i, gap how far the scores of the wanted
    class are behind, the square as long as it is positive. weight grows in rounds from 0.1 to 1000, each of which
    starts at x, until rows are decided otherwise. Steps are proximal (ISTA), of the length at which a linear score
    closes its gap, so that columns which do not pay for their distance stay what they are; the paper has Adam. The
    nearest rows are made sparse: changes are taken back, the smallest first, while the decision stays, then each is
    made as small as it can be. The answer is checked by the model. Where the target is not the class of x, the nearest
    row that has the target's class is looked for.

    x (1, columns) in model units; result the same shape: counterfactual - x, in model units, 0 where none was found.
    A note says in words what to change, and what the class then is.
    steps: in each round, each a backward pass and two forward ones.
    """
    if not run.derivative:
        raise UsageError("method counterfactual goes down the score's slope: its base is gradient, no other.")
    table = table_of(run, x, "counterfactual")
    decision = Decision(run, table, seed, threshold, to)
    around = Neighbourhood(run, table, scale, fixed, whole, one_hot, low, high)
    gap = _Gap(run, table, decision, seed)
    x0, hits = table.row, list[Array]()
    start, row, ended = gap.of(x0), x0, False
    for part in run.batches(steps * len(WEIGHTS)):
        for step in range(part.start, part.stop):
            round_, first = divmod(step, steps)
            ended = ended or (first == 0 and (bool(hits) or decision.before in decision.goals))
            if ended:
                break
            row = x0 if first == 0 else row
            row = _stepped(row, around, gap.of(row) / start + MARGIN, gap.slope(row) / start, WEIGHTS[round_])
            valid = around.valid(row[None].copy())
            if decision.reached(valid)[0]:
                hits.append(valid[0])
    found = None
    if hits:
        order = np.argsort(around.distances(np.array(hits)), kind="stable")[:KEPT]
        sparse = np.array([around.sparse(hits[n], decision) for n in order])
        found = sparse[around.distances(sparse).argmin()]
    return around.answer(run, found, decision, f"in {len(WEIGHTS)} descents of {steps} steps")


def _stepped(row: Array, around: Neighbourhood, behind: float, slope: Array, weight: float) -> Array:
    """One proximal step: down the square of the gap, then each change less by what its distance costs."""
    x = around.table.row
    slope = np.where(around.free, slope * around.scale, 0.0)
    square = float(slope @ slope)
    if behind <= 0 or square == 0:
        square, slope = max(square, 1.0), slope * 0.0
    change = (row - x) / around.scale - slope * behind / square
    change = np.sign(change) * np.maximum(np.abs(change) - 1 / (2 * weight * square), 0)
    return np.clip(x + change * around.scale, np.minimum(around.low, x), np.maximum(around.high, x))


class _Gap:
    """How far the best wanted class is behind the best other one, and which way that grows."""

    def __init__(self, run: Run, table: TableRow, decision: Decision, seed: Array):
        self._run, self._table, self._decision, self._seed = run, table, decision, seed
        self._ahead, self._behind = 0, 1

    def of(self, row: Array) -> float:
        """At one row (columns,): positive where no wanted class is ahead."""
        scores = self._decision.scores(row[None])[0]
        goals = np.array(self._decision.goals)
        others = np.setdiff1d(np.arange(len(scores)), goals)
        self._ahead, self._behind = int(others[scores[others].argmax()]), int(goals[scores[goals].argmax()])
        return float(scores[self._ahead] - scores[self._behind])

    def slope(self, row: Array) -> Array:
        """At the row that `of` was last asked about, float64 (columns,)."""
        weights = np.zeros(self._seed.size)
        if self._decision.single:
            weights[0] = 2.0 if self._ahead else -2.0  # one score is the distance above the threshold, the other below
        else:
            weights[self._ahead], weights[self._behind] = 1.0, -1.0
        seed = weights.reshape(self._seed.shape).astype(self._seed.dtype)
        return np.asarray(self._table.flat(self._run.relevance(self._table.points(row[None]), seed))[0])
