"""Growing spheres: a counterfactual by looking farther and farther around a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np

from onnxplain.methods.counterfactuals import Bound, Fixed, Neighbourhood, OneHot, Scale, Whole
from onnxplain.methods.decisions import Decision, Threshold, ToClass
from onnxplain.methods.estimate import looks
from onnxplain.methods.options import Range
from onnxplain.methods.registry import method
from onnxplain.methods.run import Run
from onnxplain.methods.tables import table_of
from onnxplain.methods.tensors import Array, Tensors

NEAREST = 16  # rows of the first ring that has any, each made sparse; the nearest of these is the answer


@method(
    "growing_spheres",
    base="",
    cite="Laugel et al. 2017, Inverse Classification for Comparison-based Interpretability in Machine Learning",
    background="optional",
    of_tables=True,
    shares=False,
)
def growing_spheres(
    run: Run,
    x: Tensors,
    seed: Array,
    *,
    to: ToClass = None,
    threshold: Threshold = None,
    scale: Scale = None,
    samples: Annotated[int, Range(1)] = 500,
    rings: Annotated[int, Range(2, 10_000)] = 40,
    nearest: Annotated[float, Range(1e-9)] = 0.01,
    farthest: Annotated[float, Range(1e-9)] = 30.0,
    fixed: Fixed = None,
    whole: Whole = None,
    one_hot: OneHot = None,
    low: Bound = None,
    high: Bound = None,
    random_seed: Annotated[int, Range(0)] = 0,
) -> Tensors:
    """The change to the nearest row with another class, found by random rows in growing rings; no gradient is asked.

    Rows are drawn in rings around x whose radii, of changes divided by scale, grow by one factor from nearest to
    farthest. In the first ring with a row that is decided otherwise the nearest ones are made sparse: changes are taken
    back, the smallest first, while the decision stays, then each is made as small as it can be. The answer is checked
    by the model. Where the target is not the class of x, the nearest row that has the target's class is looked for. The
    paper moves all columns of each row; here a random choice of them moves, so that few columns are tried too.

    x (1, columns) in model units; result the same shape: counterfactual - x, in model units, 0 where none was found.
    A note says in words what to change, and what the class then is.
    samples: rows in each ring.
    rings: at most.
    nearest: radius of the first ring.
    farthest: radius of the last ring.
    random_seed: of the rows, drawn alike for every row and target.
    """
    table = table_of(run, x, "growing_spheres")
    decision = Decision(run, table, seed, threshold, to)
    around = Neighbourhood(run, table, scale, fixed, whole, one_hot, low, high)
    draws = [np.random.default_rng([random_seed, n]) for n in range(4)]  # each in order, wherever batches are cut
    radii = np.geomspace(nearest, max(nearest, farthest), rings + 1)
    hits: list[Array] = []
    for part in run.batches(samples * rings):
        for piece in looks(part, samples):
            ring = piece.start // samples
            steps = _ring(draws, piece.stop - piece.start, len(table.row), radii[ring : ring + 2])
            rows = around.valid(table.row + steps * around.scale)
            hits += list(rows[decision.reached(rows)])
            if piece.stop % samples == 0 and hits:
                order = np.argsort(around.distances(np.array(hits)), kind="stable")[:NEAREST]
                sparse = np.array([around.sparse(hits[n], decision) for n in order])
                found = sparse[around.distances(sparse).argmin()]
                return around.answer(run, found, decision, "")
    where = f"among {samples * rings} rows up to {radii[-1]:g} scales away"
    return around.answer(run, None, decision, where)


def _ring(draws: Sequence[np.random.Generator], count: int, columns: int, radii: Array) -> Array:
    """Steps (count, columns) with lengths between two radii, each along a random choice of the columns."""
    directions, counts, choices, sizes = draws
    steps = directions.standard_normal((count, columns))
    moved = np.floor((columns + 1) ** counts.random((count, 1)))  # few as often as many: evenly in their logarithm
    chosen = choices.random((count, columns)).argsort(1) < moved
    steps = np.where(chosen, steps, 0.0)
    lengths = sizes.uniform(radii[0], radii[1], (count, 1))
    return np.asarray(steps / np.linalg.norm(steps, axis=1, keepdims=True) * lengths)
