"""What a looped method answers, and what it notes of that."""

from __future__ import annotations

from typing import NamedTuple

from onnxplain.runtime.session import Array


class LoopAnswers(NamedTuple):
    """By attributed tensor; rows are target-major.

    standard_errors: of a method that draws samples, the same shapes; empty of any other. notes: what it says of them.
    """

    relevances: dict[str, Array]
    standard_errors: dict[str, Array]
    notes: list[str]


class LoopNotes:
    """What a method notes, explanation by explanation; each text once in the end, with the largest of its figures."""

    def __init__(self) -> None:
        self._said: dict[str, dict[int, float | None]] = {}

    def add(self, text: str, figure: float | None, explanation: int) -> None:
        """See `methods.run.Run.note`. explanation: its number among those of a call."""
        figures = self._said.setdefault(text, {})
        before = figures.get(explanation)
        figures[explanation] = figure if figure is None or before is None else max(before, figure)

    def texts(self, method: str, explanations: int) -> list[str]:
        """With the method's name, and in how many explanations a figure was found."""
        notes = []
        for text, by_explanation in self._said.items():
            figures = [figure for figure in by_explanation.values() if figure is not None]
            said = text.format(figure=max(figures)) if figures else text
            of = f" (in {len(figures)} of {explanations} explanations)" if figures and explanations > 1 else ""
            notes.append(f"{method}: {said}{of}")
        return notes
