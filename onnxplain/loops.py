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
from onnxplain.inner_tensors import InnerTensors
from onnxplain.inputs.background import Background
from onnxplain.inputs.targets import Target
from onnxplain.loop_answers import LoopAnswers, LoopNotes
from onnxplain.methods.estimate import Estimate
from onnxplain.methods.registry import Looped, OnePass
from onnxplain.methods.tensors import Tensors
from onnxplain.point_runs import PointRuns, real
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
    the float inputs that move: where inner tensors do, subject and graph are cut there. bounds: of the model's input,
    see `Run`. answered: what the method answers for, if not what moves. channels, columns, labels: see `Run`. How
    points are run:

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
        answered: Sequence[str] = (),
        channels: Mapping[str, int] | None = None,
        inner: InnerTensors | None = None,
        columns: Mapping[str, Sequence[str]] | None = None,
        labels: Sequence[str] = (),
    ):
        self.per_unit, self.derivative = base is not None and base.per_unit, base is not None and base.derivative
        self.samples, self._bounds, self._inner = samples, bounds, inner
        self.bounds = None if inner is not None and inner.inputs else bounds
        self.channels, self.columns, self.labels = dict(channels or {}), dict(columns or {}), labels
        self.explained, self.head = explained, subject.resolved.heads.get(explained, "")
        self._subject, self._graph = subject, graph
        self._attributed, self._proven, self._progress = list(attributed), proven, progress
        self._answered, self._background = list(answered) or self._attributed, background
        self._feeds: Mapping[str, Array] = {}
        self._shape: tuple[int, ...] = ()
        self._runs: PointRuns
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
        self._runs = PointRuns(
            self._subject.inputs, self._feeds, self._attributed, values.shape, self.samples, self._proven, method.name
        )
        self._jobs = self._runs.rows * len(targets)
        self._sizes = self._subject.batch_size(f"{method.name} {sorted(options.items())!r}")
        errors: list[Tensors] = []
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is an error below
            answers = self._of_trees(method, options, targets, values) if method.of_trees else []
            for target in targets if not method.of_trees else ():
                for row in range(self._runs.rows):
                    self._runs.row, self._job, self._planned = row, len(answers), 0
                    seed = self._runs.seed(target, self._seed_type)
                    answer = method.function(self, self._runs.point(), seed, **options)
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
        said, of_rows = self._notes.texts(method.name, self._runs.rows, self._jobs), self._notes.of_rows(method.name)
        return LoopAnswers(found, self._joined(errors) if errors else {}, said, of_rows)

    def _of_trees(
        self, method: Looped, options: Mapping[str, Any], targets: Sequence[Target], values: Array
    ) -> list[Tensors]:
        """As `relevances`, many rows at once: no point is run, so none needs a place in a run."""
        answers = []
        for target in targets:
            seeds = np.asarray(target.seed, np.float64)
            for part in chunking.chunks(self._runs.rows, TREE_ROWS):
                if self._runs.whole:
                    x, seed, self.answers = self._runs.point(), seeds.reshape(1, -1), values.reshape(1, -1)
                else:
                    x = Tensors({name: real(self._feeds[name][part]) for name in self._attributed})
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
        return self._subject.trees(self.explained, {n: self._feeds[n].shape[1:] for n in self._attributed})

    @property
    def background(self) -> Tensors | None:
        """See `Run`. Raises InputError for rows of another shape than the sample's.

        Of inner tensors that move their values there.
        """
        if self._background is None:
            return None
        if self._inner is not None and self._inner.inputs:
            if not self._runs.stacked:
                raise InputError("a background has rows, and axis 0 of what moves is not known to count samples.")
            rows = self._background.beside(self._inner.feeds, self.samples)
            return Tensors(self._inner.of_rows(rows, self._runs.fixed or FIXED)).map(real)
        return Tensors(self._background.beside({n: self._feeds[n] for n in self._attributed}, self.samples)).map(real)

    def batches(self, count: int, enough: int | None = None, what: str = "looks") -> Iterator[slice]:
        """See `Run`. Raises Cancelled where progress ends early what has no answer yet."""
        before, self._planned, done = self._planned, self._planned + count, 0
        most = self._most(count)
        while done < count:
            begun = time.perf_counter()
            left, fixed = count - done, self._runs.fixed
            part = slice(done, done + (min(fixed, left) if fixed else self._sizes.rows(left, most)))
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
        for feeds, rows in self._fed(points):
            values = self._subject.forward(feeds, [self.explained])[self.explained]
            if (holes := Holes.of(values)) is not None:
                raise NotFinite(
                    f"the score {self.explained} at a point that the method looks at is no answer: {holes}."
                )
            parts.append(self._runs.own(values, rows, moved=False))
        return np.concatenate(parts)

    def outputs(self, points: Tensors) -> Iterator[Mapping[str, Array]]:
        """See `Run`."""
        axes, names, runs = self._subject.row_axes() or {}, self._subject.session.outputs, self._runs
        together = runs.stacked and all(axes.get(name) == 0 for name in names)
        for feeds, rows in runs.feeds(points, self._most(len(next(iter(points.values())))) if together else 1):
            found = self._subject.forward(feeds)
            for row in range(rows):
                at = row if runs.stacked else runs.row
                alone = runs.whole or (runs.stacked and not together)
                yield found if alone else {name: array[at : at + 1] for name, array in found.items()}

    def score(self, points: Tensors, seed: Array) -> Array:
        """See `Run`."""
        values = self.forward(points).astype(np.float64)
        return np.asarray((values * seed.reshape(-1, *values.shape[1:])).reshape(len(values), -1).sum(1))

    def relevance(self, points: Tensors, seed: Array, references: Tensors | None = None) -> Tensors:
        """See `Run`. Raises NotFinite, and UsageError in a forward-only method."""
        graph = self._graph
        if graph is None:
            raise UsageError("a forward-only method has no base, and asks for its relevance.")
        (key,) = graph.compiled.seeds
        parts: dict[str, list[Array]] = {name: [] for name in self._answered}
        for (feeds, rows), (compared, _) in zip(self._fed(points), self._fed(references or points), strict=True):
            if references is not None:
                feeds |= {entry: compared[source] for entry, source in graph.compiled.references.items()}
            outputs = graph.run(feeds, {key: self._runs.seeds(seed, rows)})
            for out, source in graph.compiled.relevances.items():
                if source in parts:
                    parts[source].append(self._runs.own(outputs[out], rows))
        return Tensors({name: np.concatenate(arrays) for name, arrays in parts.items()})

    def layer(self, points: Tensors) -> Tensors:
        """See `Run`. Raises NotFinite."""
        if self._inner is None or self._inner.inputs:
            return points
        parts: dict[str, list[Array]] = {name: [] for name in self._answered}
        for feeds, rows in self._fed(points):
            for name, values in self._inner.read(feeds).items():
                parts[name].append(real(self._runs.own(_finite(name, values), rows)))
        return Tensors({n: np.concatenate(arrays) if arrays else points[n] for n, arrays in parts.items()})

    def where_inputs_are(self, made: Callable[[Tensors, Bounds], Tensors]) -> Tensors:
        """See `Run`. Raises UsageError where the inputs move themselves, or are no numbers."""
        if self._inner is None or not self._inner.inputs:
            raise UsageError(
                "the inputs move themselves: a baseline at the input is for an inner tensor (--attribute-to)."
            )
        if not self._inner.floats:
            raise UsageError("a baseline at the input needs float inputs, and there is none: give the layer's own.")
        runs = PointRuns(
            self._inner.inputs, self._inner.feeds, self._inner.floats, self._shape, self.samples, self._proven, "this"
        )
        runs.row = self._runs.row
        ((feeds, rows),) = runs.feeds(made(runs.point(), self._bounds), runs.fixed or 1)
        found = self._inner.read(feeds)
        return Tensors({name: real(runs.own(_finite(name, found[name]), rows)) for name in self._attributed})

    def note(self, text: str, figure: float | None = None) -> None:
        """See `Run`."""
        self._notes.add(text, figure, range(self._job, self._job + self._together))

    # Inside

    def _joined(self, answers: Sequence[Tensors]) -> dict[str, Array]:
        return {name: np.concatenate([np.asarray(answer[name]) for answer in answers]) for name in answers[0]}

    @property
    def _seed_type(self) -> type[np.floating]:
        if self._graph is None:
            return np.float64
        value = next(v for v in self._graph.compiled.ports.inputs if v.name in self._graph.compiled.seeds)
        return np.float64 if value.dtype is not None and value.dtype.numpy() == np.float64 else np.float32

    def _most(self, count: int) -> int:
        """Rows of a run that fit in memory; one where points are not stacked."""
        runs, subject = self._runs, self._subject
        if not runs.stacked:
            return subject.fitting(runs.rows, together=True) // runs.rows
        copies, totals = OF_RELEVANCE if self._graph is not None else OF_POINTS
        point = sum(self._feeds[name].nbytes // runs.rows for name in self._attributed)
        own = None if self._graph is None else self._graph.bytes_per_stream
        return runs.fixed or subject.fitting(count, own, copies * point, (totals + 4 * self._jobs) * point)

    def _fed(self, points: Tensors) -> Iterator[tuple[dict[str, Array], int]]:
        """Feeds of each run, and how many of its rows are points."""
        return self._runs.feeds(points, self._most(len(next(iter(points.values())))))


def _finite(name: str, values: Array) -> Array:
    if (holes := Holes.of(values)) is not None:
        raise NotFinite(f"{name} at a point that the method looks at is no answer: {holes}.")
    return values
