"""What a method notes of its results, counted: each text once, with how many results and the largest figure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import isfinite
from typing import Any, NamedTuple, Self


class Note(NamedTuple):
    """A text, with `{figure:…}` in it where there is a figure; see `methods.run.Run.note`."""

    text: str
    figure: float | None = None

    @property
    def said(self) -> str:
        """In words, with its figure."""
        return self.text if self.figure is None else self.text.format(figure=self.figure)


class Notes:
    """By text: how many results it was said of, of how many there was a figure, and the largest."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, int, float | None]] = {}

    def add(self, notes: Iterable[Note], results: int = 1, figures: int = 1) -> None:
        """Notes of one result, each once; or of so many results, of which so many had its figure."""
        merged: dict[str, float | None] = {}
        for text, figure in notes:
            merged[text] = larger(merged.get(text), figure)
        for text, figure in merged.items():
            said, had, largest = self._found.get(text, (0, 0, None))
            figures_now = 0 if figure is None else figures
            self._found[text] = (said + results, had + figures_now, larger(largest, figure))

    def texts(self, of: int, what: str, always: bool = False) -> list[str]:
        """In words. of: results in all, what: they are. always: how many is said where no figure is, too."""
        found = []
        for text, (results, figures, largest) in self._found.items():
            count = figures if figures else results if always else 0
            share = f" (in {count} of {of} {what})" if count and of > 1 else ""
            found.append(Note(text, largest).said + share)
        return found

    def content(self) -> list[dict[str, Any]]:
        """As JSON has it; a figure that is not finite as text."""
        return [
            {"text": text, "results": results, "figures": figures, "largest": _plain(largest)}
            for text, (results, figures, largest) in self._found.items()
        ]

    @classmethod
    def of(cls, contents: Iterable[Iterable[Mapping[str, Any]]]) -> Self:
        """The sum of several `content`."""
        notes = cls()
        for content in contents:
            for entry in content:
                largest = None if entry["largest"] is None else float(entry["largest"])
                notes.add([Note(entry["text"], largest)], entry["results"], entry["figures"])
        return notes


def larger(a: float | None, b: float | None) -> float | None:
    """The larger of two figures, where there are any."""
    return b if a is None else a if b is None else max(a, b)


def _plain(figure: float | None) -> float | str | None:
    return figure if figure is None or isfinite(figure) else str(figure)
