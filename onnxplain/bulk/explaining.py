"""A worker: blocks in, partitions out, by one explainer that is opened once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from onnxplain.bulk.job import BulkJob
from onnxplain.bulk.partition import FORMATS, Row
from onnxplain.bulk.plan import Block
from onnxplain.bulk.reading import Feeds, RowReader
from onnxplain.errors import ConversionChanged, InputError, OnnxplainError, UnsupportedModel
from onnxplain.explainer import Explainer
from onnxplain.explanation import Explanation
from onnxplain.inputs import Preprocessing
from onnxplain.inputs.settings import ModelSettings
from onnxplain.methods.notes import Note, Notes
from onnxplain.runtime.batch_size import FIXED

OF_THE_ROW = (InputError, ConversionChanged)  # a row's own trouble; anything else would befall all others too


@dataclass(frozen=True)
class Partition:
    """A block, explained. content: the file. errors: rows without an explanation; first_error: of the first of them.

    notes: of its rows, as `methods.notes.Notes` counts them.
    """

    number: int
    rows: int
    content: bytes
    errors: int = 0
    first_error: str = ""
    notes: Sequence[Mapping[str, Any]] = ()


class _Question(NamedTuple):
    """One row to explain. place: in its block."""

    place: int
    feeds: Feeds


class _Answer(NamedTuple):
    """One row, explained or not, and what the method notes of it."""

    row: Row
    notes: Sequence[Note]


class Worker:
    """Explains blocks of a job. explainer: of the job, where it is open already. Several threads need a worker each."""

    def __init__(self, job: BulkJob, explainer: Explainer | None = None):
        self.job = job
        self.explainer = explainer or job.open()
        self.explainer.subject.batch_rows = FIXED  # no clock may decide a byte
        inputs = self.explainer.subject.inputs
        pictures = job.pictures or Preprocessing(ModelSettings())
        self._reader = RowReader(inputs, pictures, job.columns)
        frozen = {s.shape[0] for s in inputs if s.shape and isinstance(s.shape[0], int) and s.shape[0] > 0}
        self._frozen = max(frozen, default=0)  # rows that every run must have; 0: any number

    def explain(self, block: Block) -> Partition:
        """All rows of a block. Raises OnnxplainError for what is wrong with the job rather than with a row."""
        rows: list[Row] = []
        questions: list[_Question] = []
        for piece in block.pieces:
            for index, feeds in enumerate(self._reader.read(piece), piece.start):
                error = str(feeds) if isinstance(feeds, InputError) else ""
                if not isinstance(feeds, InputError):
                    questions.append(_Question(len(rows), feeds))
                rows.append(Row(block.first + len(rows), piece.file.name, index, error))
        notes = Notes()
        for batch in self._batches(questions):
            for question, (answer, noted) in zip(batch, self._answers(rows, batch), strict=True):
                rows[question.place] = answer
                notes.add(noted)
        failed = [row.error for row in rows if row.error]
        content = FORMATS[self.job.format].encode(rows)
        return Partition(block.number, len(rows), content, len(failed), failed[0] if failed else "", notes.content())

    def _batches(self, questions: Sequence[_Question]) -> Iterator[list[_Question]]:
        """Neighbours of equal shapes, as many as one run takes."""
        size = min(self.job.batch, self._frozen) if self._frozen else self.job.batch
        batch: list[_Question] = []
        for question in questions:
            if batch and (len(batch) == size or _shapes(batch[0]) != _shapes(question)):
                yield batch
                batch = []
            batch.append(question)
        if batch:
            yield batch

    def _answers(self, rows: Sequence[Row], batch: Sequence[_Question]) -> list[_Answer]:
        """Of one run; where it fails, row by row, so that one's trouble is not the others'."""
        try:
            return self._run(rows, batch)
        except OF_THE_ROW as error:
            if len(batch) == 1:
                return [_Answer(_failed(rows[batch[0].place], error), ())]
            return [answer for question in batch for answer in self._answers(rows, [question])]

    def _run(self, rows: Sequence[Row], batch: Sequence[_Question]) -> list[_Answer]:
        filled = [*batch, *[batch[-1]] * (self._frozen - len(batch))]
        feeds = {
            name: np.concatenate([q.feeds[name] for q in filled]) if first.ndim else first
            for name, first in batch[0].feeds.items()
        }
        explanation = self.explainer.explain(feeds, self.job.targets)
        if explanation.samples != len(filled):
            raise UnsupportedModel(
                f"axis 0 of {explanation.explained} {list(explanation.scores.shape)} counts no samples in this model: "
                f"{len(filled)} rows became {explanation.samples}. Explain its files one at a time, without --engine."
            )
        return [_answer(rows[question.place], explanation, n) for n, question in enumerate(batch)]


def _answer(row: Row, explanation: Explanation, n: int) -> _Answer:
    """What an explanation says of its sample n."""
    of_targets = [k * explanation.samples + n for k in range(len(explanation.targets))]
    relevances = {name: [explanation.row(at, name) for at in of_targets] for name in explanation.relevances}
    errors = {
        name: [explanation.standard_error_row(at, name) for at in of_targets] for name in explanation.standard_errors
    }
    notes = [note for at in of_targets for note in explanation.row_notes.get(at, ())]
    answer = Row(
        row.row, row.path, row.index, "",
        tuple(t.names[n] if len(t.names) > 1 else t.name for t in explanation.targets),
        tuple(float(t.score[n if len(t.score) > 1 else 0]) for t in explanation.targets),
        np.asarray(explanation.scores[n], np.float32), _stacked(relevances), _stacked(errors),
        tuple(dict.fromkeys(note.said for note in notes)),
    )  # fmt: skip
    return _Answer(answer, notes)


def _stacked(rows: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    return {name: np.asarray(np.stack(arrays), np.float32) for name, arrays in rows.items()}


def _failed(row: Row, error: OnnxplainError) -> Row:
    return Row(row.row, row.path, row.index, " ".join(str(error).split()))


def _shapes(question: _Question) -> dict[str, tuple[int, ...]]:
    return {name: array.shape[1:] for name, array in question.feeds.items()}
