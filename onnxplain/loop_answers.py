"""What a looped method answers, and what it notes of that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from onnxplain.methods.notes import Note, Notes, larger
from onnxplain.runtime.session import Array

NAMED = 3  # explanations that a note names; of more it tells how many


class LoopAnswers(NamedTuple):
    """By attributed tensor; rows are target-major.

    standard_errors: of a method that draws samples, the same shapes; empty of any other. notes: what it says of them,
    row_notes: of which.
    """

    relevances: dict[str, Array]
    standard_errors: dict[str, Array]
    notes: list[str]
    row_notes: Mapping[int, Sequence[Note]] = {}


class LoopNotes:
    """What a method notes, explanation by explanation."""

    def __init__(self) -> None:
        self._said: dict[int, dict[str, float | None]] = {}

    def add(self, text: str, figure: float | None, explanations: range) -> None:
        """See `methods.run.Run.note`. explanations: their numbers among those of a call."""
        for number in explanations:
            said = self._said.setdefault(number, {})
            said[text] = larger(said.get(text), figure)

    def of_rows(self, method: str) -> dict[int, list[Note]]:
        """By explanation, with the method's name."""
        return {
            number: [Note(f"{method}: {text}", figure) for text, figure in said.items()]
            for number, said in self._said.items()
        }

    def texts(self, method: str, rows: int, explanations: int) -> list[str]:
        """Each once: with the largest of its figures and in how many explanations one was found, else of which it is.

        Explanations are target-major: a sample's are `rows` apart.
        """
        notes, places = Notes(), dict[str, list[int]]()
        for number, said in self.of_rows(method).items():
            notes.add(said)
            for note in said:
                places.setdefault(note.text, []).extend([number] if note.figure is None else [])
        texts = notes.texts(explanations, "explanations")
        return [text + _of(numbers, rows, explanations) for text, numbers in zip(texts, places.values(), strict=True)]


def _of(numbers: Sequence[int], rows: int, explanations: int) -> str:
    """Of which explanations something is said, where it is not said of all."""
    if not numbers or len(numbers) == explanations:
        return ""
    if len(numbers) > NAMED:
        return f" (of {len(numbers)} of {explanations} explanations)"
    targets = [f", target {number // rows + 1}" if explanations > rows else "" for number in numbers]
    places = [f"sample {number % rows}{target}" for number, target in zip(numbers, targets, strict=True)]
    return f" ({'; '.join(places)})"
