"""Looped methods at work: one sample of one target at a time, its points cut to what fits in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from onnxplain.errors import UsageError
from onnxplain.explanation_graph import ExplanationGraph
from onnxplain.inputs.targets import Target
from onnxplain.methods.registry import Looped
from onnxplain.methods.tensors import Tensors
from onnxplain.runtime import chunking
from onnxplain.runtime.session import Array
from onnxplain.subject import Subject

ROWS = 32  # of one run at most: larger ones are no faster, and progress and cancellation wait for a run to end
Progress = Callable[[int, int], None]
"""`(done, total)` in looks at the model, after each run; raising in it ends the explanation."""


class Loop:
    """`methods.run.Run` over a subject.

    graph: what answers `relevance`; None for a forward-only method. attributed: the float inputs that move. whole:
    whether axis 0 of the inputs counts no samples, so that a point is the whole of them and runs alone.
    """

    def __init__(
        self,
        subject: Subject,
        graph: ExplanationGraph | None,
        explained: str,
        attributed: Sequence[str],
        per_unit: bool,
        whole: bool = False,
        progress: Progress | None = None,
    ):
        self.per_unit = per_unit
        self._subject, self._graph, self._explained = subject, graph, explained
        self._attributed, self._whole, self._progress = list(attributed), whole, progress
        specs = {spec.name: spec for spec in subject.inputs}
        first = {spec.shape[0] for name in attributed if (spec := specs[name]).shape}
        self._fixed = None if whole else next((length for length in first if isinstance(length, int)), None)
        self._moves_along = {  # inputs with an open axis 0 have a row for each point
            name for name, spec in specs.items() if spec.shape and (self._fixed or not isinstance(spec.shape[0], int))
        }
        self._others: dict[str, Array] = {}
        self._shape: tuple[int, ...] = ()
        self._jobs, self._job, self._planned = 1, 0, 0

    def relevances(
        self, method: Looped, options: Mapping[str, Any], feeds: Mapping[str, Array], targets: Sequence[Target],
        scores: Array,
    ) -> dict[str, Array]:  # fmt: skip
        """What the method answers for every target of every row, by attributed tensor; rows are target-major."""
        rows, self._shape = 1 if self._whole or not scores.ndim else scores.shape[0], scores.shape
        self._jobs = rows * len(targets)
        answers: list[Tensors] = []
        for target in targets:
            for row in range(rows):
                self._job, self._planned = len(answers), 0
                answers.append(method.function(self, self._point(feeds, row), self._seed(target, row), **options))
        found = {}
        for name in self._attributed:
            parts = [np.asarray(answer[name]) for answer in answers]
            if self._whole and feeds[name].shape[:1] == (1,):
                parts = [part[0] for part in parts]
            found[name] = np.concatenate(parts)
        return found

    # What methods call

    def batches(self, count: int) -> Iterator[slice]:
        """See `Run`."""
        before, self._planned = self._planned, self._planned + count
        for part in chunking.chunks(count, self._size(count)):
            yield part
            if self._progress is not None:
                done = self._job * self._planned + before + part.stop
                self._progress(done, self._jobs * self._planned)

    def forward(self, points: Tensors) -> Array:
        """See `Run`."""
        parts = []
        for feeds, rows in self._runs(points):
            values = self._subject.forward(feeds, [self._explained])[self._explained]
            parts.append(values[None] if self._whole else values[:rows])
        return np.concatenate(parts)

    def score(self, points: Tensors, seed: Array) -> Array:
        """See `Run`."""
        values = self.forward(points).astype(np.float64)
        return np.asarray((values * seed.reshape(-1, *values.shape[1:])).reshape(len(values), -1).sum(1))

    def relevance(self, points: Tensors, seed: Array) -> Tensors:
        """See `Run`. Raises NotFinite, and UsageError in a forward-only method."""
        graph = self._graph
        if graph is None:
            raise UsageError("a forward-only method has no base, and asks for its relevance.")
        (key,) = graph.compiled.seeds
        parts: dict[str, list[Array]] = {name: [] for name in self._attributed}
        for feeds, rows in self._runs(points):
            asked = seed if self._whole else np.repeat(seed[:1], max(rows, self._fixed or 0), 0)
            outputs = graph.run(feeds, {key: asked})
            for out, source in graph.compiled.relevances.items():
                if source not in parts:
                    continue
                parts[source].append(outputs[out][None] if self._whole else outputs[out][:rows])
        return Tensors({name: np.concatenate(arrays) for name, arrays in parts.items()})

    # Inside

    def _point(self, feeds: Mapping[str, Array], row: int) -> Tensors:
        """One sample of the attributed inputs, float32 or float64; the other inputs are kept for every run."""
        self._others = {
            name: array[row : row + 1] if name in self._moves_along and not self._whole and array.ndim else array
            for name, array in feeds.items()
            if name not in self._attributed
        }
        return Tensors(
            {name: _wide(feeds[name][None] if self._whole else feeds[name][row : row + 1]) for name in self._attributed}
        )

    def _seed(self, target: Target, row: int) -> Array:
        seed = np.asarray(target.seed)
        wide = self._wide_scores
        if self._whole:
            return seed.reshape(self._shape).astype(wide)
        return seed[min(row, len(seed) - 1)][None].astype(wide) if seed.ndim else seed.astype(wide)

    @property
    def _wide_scores(self) -> Any:
        if self._graph is None:
            return np.float64
        value = next(v for v in self._graph.compiled.model.graph.inputs if v.name in self._graph.compiled.seeds)
        return np.float64 if value.dtype is not None and value.dtype.numpy() == np.float64 else np.float32

    def _size(self, count: int) -> int:
        if self._whole:
            return 1
        if self._fixed:
            return self._fixed
        held = 2 * self._graph.bytes_per_stream if self._graph is not None else 1  # forward and backward of each row
        return min(ROWS, chunking.rows_per_run(held, count))

    def _runs(self, points: Tensors) -> Iterator[tuple[dict[str, Array], int]]:
        """Feeds of each run, and how many of its rows are points: a fixed batch is filled up with the last."""
        count = len(next(iter(points.values())))
        kinds = {spec.name: spec.dtype for spec in self._subject.inputs}
        for part in chunking.chunks(count, self._size(count)):
            rows = part.stop - part.start
            feeds = {}
            for name, array in points.items():
                moved = array[part][0] if self._whole else array[part]
                if self._fixed and rows < self._fixed:
                    moved = np.concatenate([moved, np.repeat(moved[-1:], self._fixed - rows, 0)])
                feeds[name] = moved.astype(kinds[name])
            held = max(rows, self._fixed or 0)
            for name, array in self._others.items():
                along = name in self._moves_along and not self._whole and array.ndim
                feeds[name] = np.repeat(array, held, 0) if along else array
            yield feeds, rows


def _wide(array: Array) -> Array:
    return array if array.dtype == np.float64 else array.astype(np.float32)
