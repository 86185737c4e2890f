"""A model version in this process: its sessions, its explainers, and what it takes to answer."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from weakref import WeakSet

import numpy as np
import onnx_ir as ir

from onnxplain.compile import Request
from onnxplain.coverage import Coverage, coverage
from onnxplain.errors import ConversionChanged, OnnxplainError, UnsupportedModel
from onnxplain.explainer import Ask, Explainer
from onnxplain.explanation import Explanation
from onnxplain.exports.batching import counted
from onnxplain.inputs import Preprocessing
from onnxplain.recipes import Recipe, named
from onnxplain.runtime.open import bytes_per_stream, nbytes_of_weights, open_session, serialised
from onnxplain.runtime.session import Array, Session
from onnxplain.server.models.ports import Port, ports
from onnxplain.server.options import ServerOptions
from onnxplain.server.scheduling.admission import AdmissionControl
from onnxplain.server.scheduling.queue import ModelQueue, separable
from onnxplain.server.scheduling.scheduler import Outputs, Scheduler
from onnxplain.server.scheduling.session_cache import SessionCache
from onnxplain.server.telemetry.metrics import Metrics
from onnxplain.sources import Resolved
from onnxplain.subject import Subject

VARIANTS = 24  # compiled recipes kept per model
SUBJECTS = 4  # normal forms kept per model: one for each choice of explained and attributed tensors
PROBE_ROWS = 3


@dataclass
class ServerContext:
    """What all models share: slots, the shelf of sessions, options, counters."""

    options: ServerOptions
    scheduler: Scheduler
    shelf: SessionCache
    metrics: Metrics


@dataclass
class Variant:
    """An explainer, and the lane its graph runs in."""

    explainer: Explainer
    lane: ModelQueue
    forward: ModelQueue
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    _digest: str = ""

    def digest(self) -> str:
        """sha256 of the compiled graph's bytes, in hex; found when first asked for."""
        if not self._digest:
            self._digest = hashlib.sha256(serialised(self.explainer.compiled.model)).hexdigest()
        return self._digest

    @cached_property
    def recipe_digest(self) -> str:
        """The recipe's digest."""
        return self.explainer.recipe.digest

    @cached_property
    def ports(self) -> tuple[list[Port], list[Port]]:
        """Inputs and outputs of the compiled graph."""
        graph = self.explainer.compiled.model.graph
        return ports(v for v in graph.inputs if v.name not in graph.initializers), ports(graph.outputs)


@dataclass(frozen=True)
class Question:
    """What a client wants to know. recipe None: the model's default."""

    feeds: Mapping[str, Array]
    asks: Sequence[Ask]
    recipe: Recipe | None = None
    request: Request | None = None


class LoadedModel:
    """One version of one model. Loading runs it; what cannot be loaded raises and leaves nothing behind."""

    def __init__(self, resolved: Resolved, house: ServerContext):
        self.name, self.version, self.settings = resolved.name, resolved.version, resolved.settings
        self.house = house
        self.notes: list[str] = []
        serving = self.settings.serving
        options = house.options
        self.max_rows = serving.max_batch_rows or options.rows_per_batch
        if serving.dynamic_batching is False:
            self.max_rows = 1
        self.gate = AdmissionControl(
            serving.queue_rows or options.queue_rows, options.queue_bytes, self.name, house.metrics
        )
        pictures = Preprocessing.of(self.settings)
        self.labels = tuple(pictures.labels())
        self._lock = threading.RLock()
        self._variants: OrderedDict[tuple[object, ...], Variant] = OrderedDict()
        self._subjects: OrderedDict[tuple[object, ...], Subject] = OrderedDict()
        self._busy: dict[object, tuple[threading.Lock, int]] = {}
        self._opened: WeakSet[ModelQueue] = WeakSet()  # those of recipes that failed as well
        self._coverage: Coverage | None = None
        self._path = resolved.path
        self.request = Request(explain=tuple(self.settings.output.explain))
        self.subject = self._load_subject(self.request)
        self.bounds = pictures.bounds(self.subject.inputs)
        self.forward = self._forward_lane()
        self.recipe = Recipe.of(self.settings.defaults, "[defaults]") if self.settings.defaults else Recipe()
        self.why_not = ""  # why the default recipe cannot be had
        try:
            self._warm()
        except BaseException:
            self.close()
            raise

    # What it is

    @property
    def key(self) -> str:
        """name/version."""
        return f"{self.name}/{self.version}"

    def coverage(self) -> Coverage:
        """What every method would do with this model; found once."""
        with self._single("coverage"):
            if self._coverage is None:
                s = self.subject
                self._coverage = coverage(s.normalised, s.resolved, s.request)
        return self._coverage

    # Answers

    def infer(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> Future[Outputs]:
        """The model's own outputs."""
        return self.forward.submit(feeds, outputs)

    def explain(self, question: Question) -> tuple[Explanation, Variant]:
        """The reasons; blocks in line, for threads. The same numbers as `Explainer.explain` gives offline."""
        variant = self.variant(question.recipe or self.default(), question.request)
        return variant.explainer.explain(question.feeds, question.asks), variant

    def default(self) -> Recipe:
        """The default recipe. Raises UnsupportedModel where the model cannot be explained by it."""
        if self.why_not:
            raise UnsupportedModel(
                f"{self.name}: the default recipe {self.recipe.title} is not possible: {self.why_not}"
            )
        return self.recipe

    def made(self, recipe: Recipe, request: Request | None = None) -> Variant | None:
        """A compiled recipe that is there already."""
        with self._lock:
            return self._variants.get((recipe, self._whole(request)))

    def variant(self, recipe: Recipe, request: Request | None = None) -> Variant:
        """A compiled recipe; compiled once however many ask, the ones not used for longest are forgotten."""
        request = self._whole(request)
        key = (recipe, request)
        with self._single(key):
            with self._lock:
                found = self._variants.get(key)
                if found is not None:
                    self._variants.move_to_end(key)
                    return found
            variant = self._compile(recipe, request)
            with self._lock:
                self._variants[key] = variant
                old = self._variants.popitem(last=False)[1] if len(self._variants) > VARIANTS else None
            if old is not None:
                self.house.shelf.drop(old.lane)
        return variant

    def close(self) -> None:
        """Put every session away."""
        with self._lock:
            self._variants.clear()
            self._subjects.clear()
            lanes = list(self._opened)
        for lane in lanes:
            self.house.shelf.drop(lane)

    def lanes(self) -> dict[str, ModelQueue]:
        """Every lane by what it answers: "" the model itself, else the recipe's title."""
        with self._lock:
            found = {v.explainer.recipe.title: v.lane for v in self._variants.values()}
        return {"": self.forward, **found}

    # Inside

    def _warm(self) -> None:
        """Run everything a first request would need."""
        feeds = self.subject.normalised.reference.feeds
        self.forward.session().run(feeds)
        rows = self._probe_rows()
        self._together(self.forward, self.subject.row_axes(), rows, self.notes)
        try:
            self.variant(self.recipe)
        except OnnxplainError as error:
            self.why_not = str(error)
            if self.settings.defaults:
                raise
        for name in self.settings.serving.recipes:
            self.variant(named(name))

    def _compile(self, recipe: Recipe, request: Request) -> Variant:
        begun = time.perf_counter()
        subject = self._subject(request)
        if subject.request != request:
            subject = replace(subject, request=request)
        explainer = Explainer(
            subject, recipe, bounds=self.bounds, labels=self.labels, kind=self.settings.output.kind,
        )  # fmt: skip
        lane, forward = explainer.session, subject.session
        assert isinstance(lane, ModelQueue) and isinstance(forward, ModelQueue)
        variant = Variant(explainer, lane, forward, list(explainer.notes))
        try:
            self._verify(variant)
        except BaseException:
            self.house.shelf.drop(lane)
            raise
        if self.max_rows > 1 and (axes := explainer.row_axes()) is not None:
            rows = self._probe_rows()
            self._together(forward, subject.row_axes(), rows, variant.notes)
            seeds = self._probe_seeds(explainer, forward, rows)
            self._together(lane, axes, {**rows, **seeds}, variant.notes)
        variant.seconds = time.perf_counter() - begun
        return variant

    def _together(
        self, lane: ModelQueue, axes: Mapping[str, int] | None, rows: Mapping[str, Array], notes: list[str]
    ) -> None:
        """Let a lane put requests into one run, if that is proven on the graph and holds for a probe."""
        if self.max_rows < 2 or axes is None or counted(self.subject.normalised.model.graph):
            return
        lane.axes = axes
        if not separable(lane, rows):
            lane.axes = None
            notes.append("rows answer differently in a batch than alone: requests are not put together")

    def _verify(self, variant: Variant) -> None:
        """The graph in its lane must answer as the model did when it was normalised, and as without optimisation."""
        try:
            variant.notes += variant.explainer.verify(users=variant.lane.session)
        except ConversionChanged as error:
            raise ConversionChanged(f"{self.name}: {error}") from error

    def _probe_rows(self) -> dict[str, Array]:
        """Some rows that differ, from the sample of normalisation."""
        rng = np.random.default_rng(0)
        rows = {}
        for name, array in self.subject.normalised.reference.feeds.items():
            if not array.ndim:
                rows[name] = array
                continue
            many = np.concatenate([array[:1]] * PROBE_ROWS)
            if many.dtype.kind == "f":
                many = many + (0.1 * rng.standard_normal(many.shape)).astype(many.dtype)
            rows[name] = many
        return rows

    def _probe_seeds(self, explainer: Explainer, forward: ModelQueue, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """A seed at the highest score of each row, as clients send them."""
        seeds = {}
        for key, source in explainer.compiled.seeds.items():
            scores = feeds[source] if source in feeds else forward.session().run(feeds, [source])[source]
            if explainer.subject.request.seed == "index":
                shape = (len(scores), scores.ndim - 1) if scores.ndim > 2 else scores.shape[:1]
                seeds[key] = np.zeros(shape, np.int64)
                continue
            seed = np.zeros(scores.shape, np.float64 if scores.dtype == np.float64 else np.float32)
            if scores.ndim == 0 or not scores.size:
                seed[...] = 1
            else:
                flat = seed.reshape(len(seed), -1)
                flat[np.arange(len(seed)), scores.reshape(len(seed), -1).argmax(1)] = 1
            seeds[key] = seed
        return seeds

    def _load_subject(self, request: Request) -> Subject:
        options = self.house.options
        subject = Subject.of(self._path, request, options.provider, options.threads_per_run, self._open)
        subject.pin()
        _ = subject.session  # made here, where nobody else can be making it
        with self._lock:
            self._subjects[(request.explain, request.head, request.attribute_to, request.keep)] = subject
        return subject

    def _subject(self, request: Request) -> Subject:
        """The model made ready for a choice of tensors: those named must survive normalisation."""
        key = (request.explain, request.head, request.attribute_to, request.keep)
        with self._single(("subject", key)):
            with self._lock:
                found = self._subjects.get(key)
                if found is not None:
                    self._subjects.move_to_end(key)
                    return found
            subject = self._load_subject(request)
            with self._lock:
                while len(self._subjects) > SUBJECTS:
                    oldest = next(iter(self._subjects))
                    if self._subjects[oldest] is self.subject:
                        self._subjects.move_to_end(oldest)
                        continue
                    del self._subjects[oldest]
        return subject

    def _whole(self, request: Request | None) -> Request:
        """A client's request over the model's own settings."""
        if request is None:
            return self.request
        return request if request.explain else replace(request, explain=self.request.explain)

    def _open(self, model: ir.Model, role: str) -> ModelQueue:
        names = [str(value.name) for value in model.graph.outputs]
        options = self.house.options
        held = nbytes_of_weights(model) + self.max_rows * (bytes_per_stream(model) if role != "forward" else 0)
        return self._lane(lambda: open_session(model, options.provider, options.threads_per_run), names, held)

    def _forward_lane(self) -> ModelQueue:
        """The model as its file says, not its normal form: answers are those of plain onnxruntime."""
        model, options = self.subject.source.model, self.house.options
        names = [str(value.name) for value in model.graph.outputs]
        return self._lane(
            lambda: open_session(model, options.provider, options.threads_per_run), names, nbytes_of_weights(model)
        )

    def _lane(self, open_it: Callable[[], Session], outputs: list[str], nbytes: int) -> ModelQueue:
        house = self.house
        lane = ModelQueue(house.scheduler, house.shelf, open_it, outputs, nbytes, self.max_rows, self._observed)
        self._opened.add(lane)
        return lane

    def _observed(self, waited: float, computed: float, rows: int) -> None:
        self.house.metrics.run(self.name, waited, computed, rows)

    @contextmanager
    def _single(self, key: object) -> Iterator[None]:
        """One at a time for each key."""
        with self._lock:
            lock, users = self._busy.get(key, (threading.Lock(), 0))
            self._busy[key] = (lock, users + 1)
        try:
            with lock:
                yield
        finally:
            with self._lock:
                lock, users = self._busy.pop(key)
                if users > 1:
                    self._busy[key] = (lock, users - 1)
