"""One compiled graph of a subject: compiled, opened, verified, written, and run for any number of rows and seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxplain.compile import Compiled, compile_graph
from onnxplain.compile.ledger import LEDGER
from onnxplain.compile.save import save
from onnxplain.composites import Bounds
from onnxplain.cpu_session import CpuSession
from onnxplain.errors import InputError
from onnxplain.frontend.verify import second
from onnxplain.graph import weight_files
from onnxplain.graph.outline import release, runtime
from onnxplain.graph.stored_graph import Ports
from onnxplain.inputs.targets import Target
from onnxplain.recipes import Recipe
from onnxplain.runtime import chunking, verification
from onnxplain.runtime.nonfinite import answer_error
from onnxplain.runtime.open import bytes_per_stream, nbytes_of_weights
from onnxplain.runtime.session import Array, Runs
from onnxplain.subject import Subject

VERIFIED = (
    1 << 25
)  # bytes of weights and of one stream's tensors; below, a verification takes some hundredths of a second
SEARCHES = 8  # of a graph, for where a NaN begins: each is a session and a run


class ExplanationGraph:
    """The graph of a one-pass recipe. Raises UnsupportedModel, UnsupportedOp, UsageError where there can be none."""

    def __init__(self, subject: Subject, recipe: Recipe, bounds: Bounds = None, compiled: Compiled | None = None):
        """compiled: the graph as it was compiled before, for such a subject, recipe and bounds."""
        self.subject, self.recipe = subject, recipe
        if compiled is None:
            propagation = recipe.propagation(bounds)
            compiled = compile_graph(subject.normalised, subject.resolved, propagation, subject.request)
            if bounds is None and (note := recipe.without_bounds):
                compiled.notes.append(note)
        self.compiled: Compiled = compiled
        subject.beside = max(subject.beside, self.bytes_per_stream)
        self.tails: dict[tuple[str, ...], Any] = {}  # `LayerTail`s, by the tensors they begin at
        self._searches = SEARCHES
        self._session: Runs | None = None

    @property
    def session(self) -> Runs:
        """The graph in onnxruntime; created when first used, and verified where that takes no time."""
        if self._session is None:
            graph = self.compiled.held
            session = self.subject.open(graph, self.recipe.digest)
            if self.subject.opener is None and nbytes_of_weights(graph) + self.bytes_per_stream <= VERIFIED:
                self.verify(users=lambda: session, batches=1)
            self._session = session
        return self._session

    @property
    def bytes_per_stream(self) -> int:
        """Upper estimate of the memory one more row takes, in bytes."""
        return bytes_per_stream(self.compiled.held)

    def row_axes(self) -> dict[str, int] | None:
        """The axis of every input and output that carries its rows; None: rows do not go apart.

        Proven on the graph: what is None must not be put into one batch with somebody else's rows.
        """
        forward = self.subject.row_axes()
        if forward is None or not self.compiled.streams:
            return None
        return {
            **forward,
            **dict.fromkeys(self.compiled.seeds, 0),
            **self.compiled.provenance["stream_axis"],
            LEDGER: 0,
        }

    def save(self, path: str | Path, put_aside: bool = False) -> None:
        """Write the graph; any onnxruntime runs it.

        put_aside: the larger weights are read from that file from now on, in place of memory; so it has to stay.
        """
        places = save(self.compiled.model, Path(path), self.subject.source.path)
        if put_aside:
            models = [self.compiled.model, self.subject.normalised.model]
            weight_files.put_aside(models, weight_files.File(Path(path)), places)

    def verify(
        self, path: str | Path | None = None, users: Callable[[], Runs] | None = None, batches: int = 2
    ) -> list[str]:
        """Compare what users run with the source and with the graph as written, forward and backward.

        Users run the file at `path`, else what `users` opens, else this graph's session. batches: 2 tries another
        batch size too, where the batch is open. Returns notes on relevances that are not finite. Raises
        ConversionChanged with the output that differs.
        """
        references, model = [self.subject.normalised.reference], self.compiled.model
        if batches > 1 and (other := second(self.subject.source, references[0])) is not None:
            references.append(other)
        asked = verification.questions(self.compiled, references)
        names = [str(value.name) for value in self.subject.source.model.graph.outputs]
        release(self.subject.source.model, self.subject.normalised.model, model)
        if path is None:
            opened = users or (lambda: self.session)
            return verification.verify(self.compiled, asked, names, opened, lambda: runtime(model))
        file = Path(path)
        return verification.verify(
            self.compiled, asked, names, lambda: CpuSession(file, optimise=True), lambda: CpuSession(file)
        )

    def run(self, feeds: Mapping[str, Array], seeds: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name. feeds: (N, …) by input; seeds: (S, …) by name in the graph. Raises NotFinite, InputError.

        S = N, or N = 1, or S = 1. More rows than fit in memory are run in chunks.
        """
        feeds = self.compared(feeds)
        outputs = self._compute(feeds, seeds)
        self.require_finite({**feeds, **seeds}, outputs)
        return outputs

    def run_whole(self, feeds: Mapping[str, Array], targets: Sequence[Target], values: Array) -> dict[str, Array]:
        """Every target of the explained tensor as one thing, a run for each; the targets lie along a new axis 0.

        Tensors that have an axis 0 of length one have the targets there.
        """
        key, feeds = next(iter(self.compiled.seeds)), self.compared(feeds)
        dtype = np.float64 if values.dtype == np.float64 else np.float32
        parts = []
        for target in targets:
            asked = {**feeds, key: target.seed.reshape(values.shape).astype(dtype)}
            parts.append(self.session.run(asked))
            self.require_finite(asked, parts[-1])
        return {
            name: (np.concatenate if array.shape[:1] == (1,) else np.stack)([part[name] for part in parts])
            for name, array in parts[0].items()
        }

    def run_targets(self, feeds: Mapping[str, Array], targets: Sequence[Target], scores: Array) -> dict[str, Array]:
        """Every target of every row; rows of the result are target-major."""
        rows = scores.shape[0] if scores.ndim else 1
        key = next(iter(self.compiled.seeds))
        dtype = np.float64 if scores.dtype == np.float64 else np.float32
        seeds = [np.broadcast_to(t.seed, scores.shape).astype(dtype) for t in targets]
        if rows == 1 and scores.ndim:
            return self.run(feeds, {key: np.concatenate(seeds)})
        parts = [self.run(feeds, {key: seed}) for seed in seeds]
        return chunking.concatenate(parts, self._row_axes())

    def require_finite(self, feeds: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        """Raise NotFinite for a score or relevance that is NaN or infinite, with the first tensor that is.

        feeds: seeds among them.
        """
        if (error := answer_error(self.compiled, feeds, outputs, self.search)) is not None:
            raise error

    def search(self) -> bool:
        """Whether to look for where a NaN began: some times of a graph's life, since each is a session and a run."""
        self._searches -= 1
        return self._searches >= 0

    def compared(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Feeds with every reference input: those that are not told are the inputs themselves, so nothing differs."""
        return {entry: feeds[source] for entry, source in self.compiled.references.items()} | dict(feeds)

    def _compute(self, feeds: Mapping[str, Array], seeds: Mapping[str, Array]) -> dict[str, Array]:
        if not self.compiled.streams and self._exact(feeds, seeds):
            self.subject.fitting(max((len(x) for x in feeds.values() if x.ndim), default=1), together=True)
            return self.session.run({**feeds, **seeds})
        rows = max((array.shape[0] for array in feeds.values() if array.ndim), default=1)
        streams = {seed.shape[0] if seed.ndim else 1 for seed in seeds.values()}
        count = max(streams)
        if len(streams - {1}) > 1 or (count != rows and 1 not in (count, rows)):
            raise InputError(
                f"{rows} input rows and {sorted(streams)} seeds: there is one seed a row, or one row, or one seed."
            )
        count = max(count, rows)
        seeds = {k: np.repeat(seed, count, 0) if seed.ndim and len(seed) < count else seed for k, seed in seeds.items()}
        size = count
        if self.compiled.streams:
            size = self.subject.fitting(count, self.bytes_per_stream)
        elif rows < count:
            size = 1
        parts = []
        for rows_of_chunk in chunking.chunks(count, size):
            part = {k: seed[rows_of_chunk] if seed.ndim and count > 1 else seed for k, seed in seeds.items()}
            x = {k: v[rows_of_chunk] for k, v in feeds.items()} if rows > 1 and size < count else feeds
            parts.append(self.session.run({**x, **part}))
        return chunking.concatenate(parts, self._row_axes())

    def _exact(self, feeds: Mapping[str, Array], seeds: Mapping[str, Array]) -> bool:
        """Whether the seeds have the very shapes of the explained tensors, whatever axis 0 of these means."""
        own = {name: array for name, array in feeds.items() if name not in self.compiled.references}
        forward = self.subject.forward(own, list(self.compiled.seeds.values()))
        for name, source in self.compiled.seeds.items():
            shape, seed = forward[source].shape, seeds[name]
            wanted = (*shape[:1], len(shape) - 1)[: 1 if len(shape) == 2 else 2] if name.endswith(".target") else shape
            if seed.shape != wanted:
                return False
        return True

    def _row_axes(self) -> dict[str, int | None]:
        axes: dict[str, int | None] = {LEDGER: 0}
        for out, axis in self.compiled.provenance["stream_axis"].items():
            axes[out] = axis if axis is not None else 0
        for name in self.session.outputs:
            axes.setdefault(name, 0 if _rows_of(self.compiled.ports, name) else None)
        return axes


def _rows_of(ports: Ports, name: str) -> bool:
    value = next(v for v in ports.outputs if v.name == name)
    return bool(value.shape is not None and len(value.shape) and not isinstance(value.shape[0], int))
