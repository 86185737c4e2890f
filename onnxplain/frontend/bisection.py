"""Find the rewrite that breaks or changes a model, do everything else, and say so.

The steps are taken one by one, each verified. In a step that fails, the rewrites it consists of (a fold, a rule) are
bisected: the longest beginning that leaves the answers alone, then the next rewrite is to blame and is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import onnx_ir as ir

from onnxplain.cpu_session import one_line
from onnxplain.errors import ConversionChanged
from onnxplain.frontend.instrumented import run_instrumented
from onnxplain.frontend.verify import Reference
from onnxplain.interrupt import check_interrupt

MANDATORY = {"inline functions", "raise the opset"}  # nothing can be walked without
CULPRITS = 6  # rewrites of one step left out one by one; with more, the step is left out


class RewriteFilter:
    """Asked by name before every rewrite whether it may be made; remembers what it was asked."""

    def __init__(self, without: Collection[str] = (), only: Collection[str] | None = None):
        self._without, self._only = without, only
        self.asked: dict[str, None] = {}

    def __call__(self, rewrite: str) -> bool:
        """Whether the rewrite of this name may be made."""
        self.asked.setdefault(rewrite)
        return rewrite not in self._without and (self._only is None or rewrite in self._only)


Lines = list[str]  # of the report: a rewrite each
Step = Callable[[ir.Model, Sequence[str], RewriteFilter, Lines, Lines], ir.Model]


def apply_verified(
    model: ir.Model, steps: Mapping[str, Step], keep: Sequence[str], expected: Reference
) -> tuple[ir.Model, list[str], list[str]]:
    """The model after all rewrites that leave its answers alone; what was done, what was not and why, a line each.

    Raises ConversionChanged where a step is to blame that nothing can do without.
    """
    changes: list[str] = []
    notes: list[str] = []
    unstable = run_instrumented(model, expected)[0]
    if unstable is not None:
        notes.append(
            f"the model does not answer the same input twice alike ({unstable}), so that no rewrite can be verified: "
            "only what nothing can do without is done"
        )
    for name, step in steps.items():
        if unstable is not None and name not in MANDATORY | {"infer shapes", "tidy", "infer final shapes"}:
            continue
        trial = StepTrial(model, step, keep, None if unstable is not None else expected)
        problem = trial.run(RewriteFilter())
        if problem is None:
            model = trial.take(changes, notes)
            continue
        if name in MANDATORY:
            raise ConversionChanged(f"normalisation changed the model at the step {name!r}: {problem}")
        without = _culprits(trial)
        if without is None:
            notes.append(f"left out: {name!r}, because after it {problem}")
            continue
        model = trial.take(changes, notes)
        notes += [f"left out in {name!r}: {rewrite}, because after it {why}" for rewrite, why in without.items()]
    return model, changes, notes


class StepTrial:
    """One step on one model, tried with these rewrites or those."""

    def __init__(self, model: ir.Model, step: Step, keep: Sequence[str], expected: Reference | None):
        self._before, self._step, self._keep, self._expected = model, step, keep, expected
        self.permits = RewriteFilter()
        self._after = model
        self._changes: list[str] = []
        self._notes: list[str] = []

    def run(self, permits: RewriteFilter) -> str | None:
        """What is wrong afterwards; None where the answers are the same."""
        check_interrupt()
        self.permits, self._changes, self._notes = permits, [], []
        try:
            self._after = self._step(self._before.clone(), self._keep, permits, self._changes, self._notes)
        except Exception as error:  # of onnx, onnxscript or ours: the rewrite is to blame, not the model
            return one_line(error)
        return None if self._expected is None else run_instrumented(self._after, self._expected)[0]

    def take(self, changes: list[str], notes: list[str]) -> ir.Model:
        """The model of the last run."""
        changes += self._changes
        notes += self._notes
        return self._after


def _culprits(trial: StepTrial) -> dict[str, str] | None:
    """The rewrites to leave out of a step, each with what it breaks; None where the whole step has to go.

    The last run of the trial is the one without them.
    """
    culprits: dict[str, str] = {}
    while len(culprits) < CULPRITS:
        rewrites = [name for name in trial.permits.asked if name not in culprits]
        if not rewrites or trial.run(RewriteFilter(only=())) is not None:
            return None
        good, bad, why = 0, len(rewrites), ""  # how many from the first on may be made
        while bad - good > 1:
            middle = (good + bad) // 2
            problem = trial.run(RewriteFilter(only=rewrites[:middle]))
            good, bad, why = (good, middle, problem) if problem is not None else (middle, bad, why)
        problem = trial.run(RewriteFilter(only=rewrites[:bad]))
        culprits[rewrites[bad - 1]] = problem or why
        if trial.run(RewriteFilter(without=culprits)) is None:
            return culprits
    return None
