"""An explanation graph out of a cache, and whether it answers here as it did where it was verified."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onnxplain.explanation_graph import ExplanationGraph
from onnxplain.frontend.compare import mismatch
from onnxplain.frontend.verify import Reference
from onnxplain.runtime.session import Array
from onnxplain.runtime.verification import distance

ROUNDING = 1e-2  # of the largest value, of a relevance's length: other kernels agree to that, a wrong one does not


@dataclass(frozen=True)
class RestoredGraph:
    """An explanation graph as it was compiled and verified. more: JSON that was kept with it.

    seeds, answers: of one question, and what the verified graph answered.
    """

    graph: ExplanationGraph
    more: Mapping[str, Any]
    seeds: Mapping[str, Array]
    answers: Mapping[str, Array]

    def difference(self, answers: Mapping[str, Array]) -> str | None:
        """How a session's answers to the question differ beyond rounding; None where they do not."""
        relevances = self.graph.compiled.relevances
        for name in relevances:
            if (error := distance(answers[name], self.answers[name])) > ROUNDING:
                return f"output {name} differs by {error:.1e} of its length"
        others = {name: array for name, array in self.answers.items() if name not in relevances}
        return mismatch(others, answers, self.graph.subject.normalised.reference.bounded, ROUNDING)


def source_difference(reference: Reference, expected: Mapping[str, Any], outputs: Mapping[str, Any]) -> str | None:
    """The same of the model itself. expected: of the reference, what `outputs` should be."""
    return mismatch(expected, outputs, reference.bounded, max(ROUNDING, reference.tolerance))
