"""Anchors: a rule that, as long as it holds, all but keeps the decision, whatever the other columns are."""

from __future__ import annotations

from typing import Annotated

import numpy as np

from onnxplain.methods.anchor_search import AnchorSearch, Candidate
from onnxplain.methods.decisions import Decision, Threshold
from onnxplain.methods.options import Range
from onnxplain.methods.predicates import Predicates
from onnxplain.methods.registry import method
from onnxplain.methods.run import Run
from onnxplain.methods.tables import table_of
from onnxplain.methods.tensors import Array, Tensors


@method(
    "anchors",
    base="",
    cite="Ribeiro, Singh and Guestrin 2018, Anchors: High-Precision Model-Agnostic Explanations, algorithms 1 and 2",
    background="required",
    of_tables=True,
)
def anchors(
    run: Run,
    x: Tensors,
    seed: Array,
    *,
    precision: Annotated[float, Range(0.5, 0.999)] = 0.95,
    tolerance: Annotated[float, Range(0.001, 0.5)] = 0.15,
    confidence: Annotated[float, Range(0.001, 0.5)] = 0.05,
    bins: Annotated[int, Range(2, 100)] = 4,
    beam: Annotated[int, Range(1, 100)] = 4,
    longest: Annotated[int, Range(1, 100)] = 8,
    samples: Annotated[int, Range(100, 10_000_000)] = 10000,
    threshold: Threshold = None,
    random_seed: Annotated[int, Range(0)] = 0,
) -> Tensors:
    """By how much each column of a rule lifts the share of rows that are decided as x is.

    A rule is predicates that x fulfils, such as 0.8 < petal width <= 1.8, of the quantiles of the background. Its
    precision is the share of rows with the decision of x among rows of the background whose ruled columns are drawn
    anew from rows that fulfil the rule; its coverage the share of the background that fulfils it. Rules grow by beam
    search; which are the best is found by KL-LUCB, and the first length at which one is precise ends it. Of several
    the one of the largest coverage is taken. The decision is whether the class is the target's.

    x (1, columns) in model units; result the same shape: of each ruled column the precision that it added when it
    joined the rule; the sum is the rule's precision less that of no rule. A note says the rule in words.
    precision: that a rule must have.
    tolerance: by which the most precise rules of a length may be missed.
    confidence: the chance that they are missed by more, or that the precision is more than 0.05 below the one wanted.
    bins: quantiles of the background whose edges make predicates.
    beam: rules that are kept of each length.
    longest: predicates in a rule, at most.
    samples: rows drawn to find the best rules of a length, at most, and so many again to confirm each of these.
    random_seed: of the rows, drawn alike for every row and target.
    """
    table = table_of(run, x, "anchors")
    decision = Decision(run, table, seed, threshold)
    background = run.background
    assert background is not None  # `background="required"`
    rules = Predicates.of(table, table.flat(background), bins, np.random.default_rng(random_seed))

    def same(rows: Array) -> int:
        return sum(int(decision.same(rows[part]).sum()) for part in run.batches(len(rows)))

    search = AnchorSearch(rules, same, precision, tolerance, confidence, beam, samples)
    found = search.best(longest)
    relevance = np.zeros(len(table.row))
    for predicate, gain in zip(found.order, np.diff(found.precisions), strict=True):
        relevance[rules.column[predicate]] += gain
    _tell(run, found, rules, decision, precision, search)
    return table.points(relevance[None])


def _tell(
    run: Run, found: Candidate, rules: Predicates, decision: Decision, precision: float, search: AnchorSearch
) -> None:
    """The rule in words, and whether it is an anchor."""
    is_not = "" if decision.before == decision.target or decision.single else "not "
    then = decision.name(decision.before if decision.single else decision.target)
    words = rules.words(found.order)
    figures = f"precision {found.precision:.3f} of {found.count} rows, coverage {rules.coverage(found.order):.3f}"
    run.note(f"{f'if {words}' if words else 'whatever the row'}: then {is_not}{then} ({figures})")
    if not search.precise(found):
        run.note(
            f"no rule with a precision of {precision:g} was found: this is the most precise of all that were tried"
        )
