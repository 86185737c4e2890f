"""Looped methods at work: one sample of one target at a time, its points cut to what fits in memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from onnxplain.composites import Bounds
from onnxplain.errors import Cancelled, InputError, NotFinite, UsageError
from onnxplain.explanation_graph import ExplanationGraph
from onnxplain.inputs.background import NO_BACKGROUND, Background
from onnxplain.inputs.targets import Target
from onnxplain.loop_answers import LoopAnswers, LoopNotes
from onnxplain.methods.estimate import Estimate
from onnxplain.methods.registry import Looped, OnePass
from onnxplain.methods.tensors import Tensors
from onnxplain.runtime import chunking
from onnxplain.runtime.batch_size import FIXED, BatchSize
from onnxplain.runtime.finite import Holes
from onnxplain.runtime.session import Array
from onnxplain.subject import Subject
from onnxplain.trees import TreeScore

TREE_ROWS = 1024  # that a method over trees gets at once; progress and cancellation wait for them
OF_POINTS, OF_RELEVANCE = (6, 24), (12, 48)  # copies of a point in float32: for each row of a run, and for all together
Progress = Callable[[int, int], bool | None]
"""`(done, total)` in looks at the model, after each run.

Raising in it ends the explanation; True ends it early, with the answer of what was looked at.
"""


class Loop:
    """`methods.run.Run` over a subject.

    graph, base: what answers `relevance`, and the method it is compiled of; None for a forward-only method. attributed:
    the float inputs that move. bounds: see `Run`. How points are run:

    * stacked, many to a run, along axis 0, where the graph proves that it carries the batch (`proven`);
    * one by one in their batch, the other rows as they are, where rows are samples and nothing is proven;
    * one by one as the whole input, for a single row or where axis 0 counts no samples (`samples` False).
    """

    def __init__(
        self,
        subject: Subject,
        graph: ExplanationGraph | None,
        explained: str,
        attributed: Sequence[str],
        base: OnePass | None,
        bounds: Bounds = None,
        samples: bool = True,
        proven: bool = False,
        progress: Progress | None = None,
        background: Background | None = None,
    ):
        self.per_unit, self.derivative = base is not None and base.per_unit, base is not None and base.derivative
        self.samples, self.bounds = samples, bounds
        self._subject, self._graph, self._explained = subject, graph, explained
        self._attributed, self._proven, self._progress = list(attributed), proven, progress
        self._background = background
        self._specs = {spec.name: spec for spec in subject.inputs}
        self._feeds: dict[str, Array] = {}
        self._shape: tuple[int, ...] = ()
        self._row, self._rows = 0, 1
        self._stacked = self._whole = False
        self._fixed: int | None = None
        self._jobs, self._job, self._together, self._planned = 1, 0, 1, 0  # together: jobs that are done as one
        self.answers: Array = np.zeros(0)  # of the rows that a method over trees has
        self._notes = LoopNotes()
        self._sizes, self._early = BatchSize(FIXED), False

    def relevances(
        self, method: Looped, options: Mapping[str, Any], feeds: Mapping[str, Array], targets: Sequence[Target],
        values: Array,
    ) -> LoopAnswers:  # fmt: skip
        """What the method answers for every target of every row, by attributed tensor.

        values: of the explained tensor. Raises NotFinite, and InputError for an input that has not a row for each
        sample.
        """
        self._feeds, self._shape = dict(feeds), values.shape
        self._rows = values.shape[0] if self.samples and values.ndim else 1
        rows_of = {name: len(feeds[name]) if feeds[name].ndim else -1 for name in self._attributed}
        each = all(rows == self._rows for rows in rows_of.values())
        self._stacked = self.samples and self._proven and each
        self._whole = not self._stacked and self._rows == 1
        if not self._stacked and not self._whole and not each:
            name = next(name for name, rows in rows_of.items() if rows != self._rows)
            raise InputError(
                f"{name} {list(feeds[name].shape)} has not one row for each of {self._rows} samples, and method "
                f"{method.name} moves each sample by itself: explain one at a time, or attribute to other inputs."
            )
        lengths = {(self._specs[name].shape or (None,))[0] for name in self._attributed} if self._stacked else set()
        self._fixed = next((length for length in lengths if isinstance(length, int)), None)
        self._jobs = self._rows * len(targets)
        self._sizes = self._subject.batch_size(f"{method.name} {sorted(options.items())!r}")
        errors: list[Tensors] = []
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is an error below
            answers = self._of_trees(method, options, targets, values) if method.of_trees else []
            for target in targets if not method.of_trees else ():
                for row in range(self._rows):
                    self._row, self._job, self._planned = row, len(answers), 0
                    answer = method.function(self, self._point(), self._seed(target), **options)
                    if isinstance(answer, Estimate):
                        errors.append(answer.standard_error)
                        answer = answer.relevance
                    answers.append(answer)
        found = self._joined(answers)
        for name, array in found.items():
            if (holes := Holes.of(array)) is not None:
                raise NotFinite(
                    f"the relevance of {name} by {method.name} is no answer: {holes}. Every look at the model was "
                    "finite: what the method makes of them is beyond the range of their type."
                )
        said, of_rows = self._notes.texts(method.name, self._jobs), self._notes.of_rows(method.name)
        return LoopAnswers(found, self._joined(errors) if errors else {}, said, of_rows)

    def _of_trees(
        self, method: Looped, options: Mapping[str, Any], targets: Sequence[Target], values: Array
    ) -> list[Tensors]:
        """As `relevances`, many rows at once: no point is run, so none needs a place in a run."""
        answers = []
        for target in targets:
            seeds = np.asarray(target.seed, np.float64)
            for part in chunking.chunks(self._rows, TREE_ROWS):
                if self._whole:
                    x, seed, self.answers = self._point(), seeds.reshape(1, -1), values.reshape(1, -1)
                else:
                    x = Tensors({name: _real(self._feeds[name][part]) for name in self._attributed})
                    seed, self.answers = seeds if len(seeds) == 1 else seeds[part], values[part]
                self._together = part.stop - part.start
                answers.append(method.function(self, x, seed, **options))
                self._job += self._together
                if self._progress is not None:
                    self._progress(self._job, self._jobs)
        return answers

    # What methods call

    @cached_property
    def trees(self) -> TreeScore:
        """See `TreeRun`. Raises UnsupportedModel where the explained tensor is no sum of trees."""
        return self._subject.trees(self._explained, {n: self._feeds[n].shape[1:] for n in self._attributed})

    @property
    def background(self) -> Tensors:
        """See `Run`. Raises InputError for rows of another shape than the sample's."""
        if self._background is None:
            raise UsageError(NO_BACKGROUND)
        if not self.samples:
            raise UsageError("a background has rows, and axis 0 of these inputs does not count samples.")
        beside = self._background.beside
        return Tensors({name: _real(beside(name, self._feeds[name])) for name in self._attributed})

    def batches(self, count: int, enough: int | None = None, what: str = "looks") -> Iterator[slice]:
        """See `Run`. Raises Cancelled where progress ends early what has no answer yet."""
        before, self._planned, done = self._planned, self._planned + count, 0
        most = self._most(count)
        while done < count:
            begun = time.perf_counter()
            part = slice(done, done + (self._fixed or self._sizes.rows(count - done, most)))
            yield part
            done = part.stop
            self._sizes.took(done - part.start, time.perf_counter() - begun, most)
            if self._progress is None:
                continue
            whole = self._job * self._planned + before
            self._early |= self._progress(whole + done, self._jobs * self._planned) is True
            if self._early and enough is None and done < count:
                raise Cancelled(f"ended early, at {done} of {count} {what}: this method has no answer before the last.")
            if self._early and enough is not None and enough <= done < count:
                self.note(f"ended early, at {done} of {count} {what}")
                return

    def forward(self, points: Tensors) -> Array:
        """See `Run`."""
        parts = []
        for feeds, rows in self._runs(points):
            values = self._subject.forward(feeds, [self._explained])[self._explained]
            if (holes := Holes.of(values)) is not None:
                raise NotFinite(
                    f"the score {self._explained} at a point that the method looks at is no answer: {holes}."
                )
            parts.append(self._own(values, rows))
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
            outputs = graph.run(feeds, {key: self._seeds(seed, rows)})
            for out, source in graph.compiled.relevances.items():
                if source in parts:
                    parts[source].append(self._own(outputs[out], rows, self._leads(source)))
        return Tensors({name: np.concatenate(arrays) for name, arrays in parts.items()})

    def note(self, text: str, figure: float | None = None) -> None:
        """See `Run`."""
        self._notes.add(text, figure, range(self._job, self._job + self._together))

    # Inside

    def _joined(self, answers: Sequence[Tensors]) -> dict[str, Array]:
        return {name: np.concatenate([np.asarray(answer[name]) for answer in answers]) for name in self._attributed}

    def _leads(self, name: str) -> bool:
        """Whether a whole input has an axis 0 of length one, which then is that of the points."""
        return self._feeds[name].shape[:1] == (1,)

    def _own(self, array: Array, rows: int, leads: bool = False) -> Array:
        """Of a run's output what belongs to its points, (points, …)."""
        if self._stacked:
            return array[:rows]
        if self._whole:
            return array if leads else array[None]
        return array[self._row : self._row + 1]

    def _point(self) -> Tensors:
        """One sample of the attributed inputs, float32 or float64."""
        point = {}
        for name in self._attributed:
            array = self._feeds[name]
            if not self._whole:
                array = array[self._row : self._row + 1]
            elif not self._leads(name):
                array = array[None]
            point[name] = _real(array)
        return Tensors(point)

    def _seed(self, target: Target) -> Array:
        """(1, …the explained tensor's axes behind the samples); of a whole input (…all its axes)."""
        seed = np.asarray(target.seed).astype(self._seed_type)
        if self._whole:
            return seed.reshape(self._shape)
        return seed[min(self._row, len(seed) - 1)][None] if seed.ndim else seed

    def _seeds(self, seed: Array, rows: int) -> Array:
        """For one run."""
        if self._whole:
            return seed
        if self._stacked:
            return np.repeat(seed[:1], max(rows, self._fixed or 0), 0)
        seeds = np.zeros(self._shape, seed.dtype)
        seeds[self._row] = seed[0]
        return seeds

    @cached_property
    def _point_bytes(self) -> int:
        return sum(self._feeds[name].nbytes // self._rows for name in self._attributed)

    @property
    def _seed_type(self) -> Any:
        if self._graph is None:
            return np.float64
        value = next(v for v in self._graph.compiled.ports.inputs if v.name in self._graph.compiled.seeds)
        return np.float64 if value.dtype is not None and value.dtype.numpy() == np.float64 else np.float32

    def _most(self, count: int) -> int:
        """Rows of a run that fit in memory; one where points are not stacked."""
        if not self._stacked:
            return self._subject.fitting(self._rows, together=True) // self._rows
        copies, totals = OF_RELEVANCE if self._graph is not None else OF_POINTS
        held = totals * self._point_bytes + 4 * self._jobs * self._point_bytes
        own = None if self._graph is None else self._graph.bytes_per_stream
        return self._fixed or self._subject.fitting(count, own, copies * self._point_bytes, held)

    def _runs(self, points: Tensors) -> Iterator[tuple[dict[str, Array], int]]:
        """Feeds of each run, and how many of its rows are points: a fixed batch is filled up with the last."""
        count = len(next(iter(points.values())))
        for part in chunking.chunks(count, self._fixed or self._most(count)):
            rows = part.stop - part.start
            feeds = {
                name: array if name in points else self._companion(name, max(rows, self._fixed or 0))
                for name, array in self._feeds.items()
            }
            for name, array in points.items():
                feeds[name] = self._placed(name, array[part])
            yield feeds, rows

    def _companion(self, name: str, held: int) -> Array:
        """An input that does not move, for a run of `held` rows."""
        array, shape = self._feeds[name], self._specs[name].shape
        if not self._stacked or not array.ndim or not shape:
            return array
        open_rows = not isinstance(shape[0], int) or shape[0] == self._fixed
        if len(array) == self._rows and open_rows:
            return np.repeat(array[self._row : self._row + 1], held, 0)
        return array

    def _placed(self, name: str, points: Array) -> Array:
        """Points as one run is fed them, in the input's type. Raises NotFinite where it cannot hold them."""
        before = self._feeds[name]
        if self._stacked:
            if self._fixed and len(points) < self._fixed:
                points = np.concatenate([points, np.repeat(points[-1:], self._fixed - len(points), 0)])
            moved = points.astype(before.dtype)
        elif self._whole:
            moved = np.asarray(points if self._leads(name) else points[0]).astype(before.dtype)
        else:
            moved = before.copy()
            moved[self._row] = points[0]
        if (holes := Holes.of(moved)) is not None:
            raise NotFinite(
                f"a point that the method makes of {name} ({before.dtype}) is none: {holes}. Its baseline or noise is "
                "beyond the range of the input's type."
            )
        return moved


def _real(array: Array) -> Array:
    """In float64 if it is, else in float32."""
    return array if array.dtype == np.float64 else array.astype(np.float32)
