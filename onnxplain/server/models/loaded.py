"""A model version in this process: its sessions, its explainers, and what it takes to answer."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial, reduce
from typing import Any
from weakref import WeakSet

from onnxplain.compile import Request
from onnxplain.coverage import Coverage, coverage
from onnxplain.errors import OnnxplainError, UnsupportedModel
from onnxplain.explainer import Explainer
from onnxplain.graph.stored_graph import ports_of
from onnxplain.inputs import Preprocessing
from onnxplain.prepared.model import Problem
from onnxplain.recipes import Recipe, named
from onnxplain.runtime.open import Graph, nbytes_of_graphs, nbytes_of_session, nbytes_of_weights, open_session
from onnxplain.runtime.session import Array, Session
from onnxplain.server.models.context import ServerContext
from onnxplain.server.models.explain_query import ExplainQuery, ExplainResult
from onnxplain.server.models.keyed_lock import KeyedLock
from onnxplain.server.models.probe import probe_rows, share_runs
from onnxplain.server.models.served import Progress
from onnxplain.server.models.variant import Variant
from onnxplain.server.models.variant_cache import VariantCache
from onnxplain.server.models.warm_start import (
    adopt_forward,
    adopt_variant,
    keep_subject,
    keep_variant,
    prepared_model,
)
from onnxplain.server.scheduling.admission import AdmissionControl
from onnxplain.server.scheduling.queue import ModelQueue, collected_reports
from onnxplain.server.scheduling.ticket import RunReport, RunResult
from onnxplain.sources import ResolvedModel
from onnxplain.subject import Subject

SUBJECTS = 4  # normal forms kept per model: one for each choice of explained and attributed tensors


class LoadedModel:
    """One version of one model. Loading runs it; what cannot be loaded raises and leaves nothing behind."""

    def __init__(self, source: ResolvedModel, context: ServerContext):
        self.name, self.version, self.settings = source.name, source.version, source.settings
        self.context = context
        self.notes: list[str] = []
        serving = self.settings.serving
        options = context.options
        self.max_rows = serving.max_batch_rows or options.rows_per_batch
        if serving.dynamic_batching is False:
            self.max_rows = 1
        self.admission = AdmissionControl(
            serving.queue_rows or options.queue_rows, options.queue_bytes, self.name, context.metrics, context.memory
        )
        self.pictures = pictures = Preprocessing.of(self.settings)
        self.labels = tuple(pictures.labels())
        self._lock = threading.RLock()
        self.variants = VariantCache(options.session_bytes // 2, self._free)
        self._subjects: OrderedDict[tuple[object, ...], Subject] = OrderedDict()
        self._making = KeyedLock()
        self._opened: WeakSet[ModelQueue] = WeakSet()  # those of recipes that failed as well
        self._coverage: Coverage | None = None
        self._path = source.path
        self.request = Request(explain=tuple(self.settings.output.explain))
        self._prepared = prepared_model(source, context, self.max_rows)
        self.subject = self._load_subject(self.request, self._adopt)
        self.bounds, self.background = pictures.bounds(self.subject.inputs), pictures.background(self.subject.inputs)
        if self._prepared.known(self.subject) is None:
            self.forward_queue = self._open_forward_queue(self.subject)
        self.recipe = Recipe.of(self.settings.defaults, "[defaults]") if self.settings.defaults else Recipe()
        self.default_recipe_problem = ""  # why the default recipe cannot be compiled
        try:
            self._warm_up()
        except BaseException:
            self.close()
            raise

    # What it is

    @property
    def key(self) -> str:
        """name/version."""
        return f"{self.name}/{self.version}"

    @property
    def nbytes(self) -> int:
        """Memory that it holds now, about: weights that graphs share once, the graphs, open sessions."""
        with self._lock:
            graphs = [graph for s in self._subjects.values() for graph in (s.source.held, s.normalised.held)]
            graphs += [variant.explainer.compiled.held for variant in self.variants.variants()]
            queues = list(self._opened)
        rows = 0 if self.background is None else self.background.nbytes
        return rows + nbytes_of_graphs(graphs) + self.context.session_cache.nbytes_of(queues)

    def coverage(self) -> Coverage:
        """What every method would do with this model; found once."""
        with self._making.holding("coverage"):
            if self._coverage is None:
                self._coverage = coverage(self.subject.normalised, self.subject.resolved, self.subject.request)
        return self._coverage

    # What it answers

    def infer(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> Future[RunResult]:
        """The model's own outputs."""
        return self.forward_queue.submit(feeds, outputs)

    def explain(
        self, query: ExplainQuery, progress: Progress | None = None, variant: Variant | None = None
    ) -> ExplainResult:
        """The reasons; blocks, for threads. The same numbers as `Explainer.explain` offline. variant: the query's."""
        recipe = query.recipe or self.default_recipe(query.request)
        variant = variant or self.variant(recipe.opened, query.request)
        with collected_reports() as reports:
            explanation = variant.over(recipe).explain(query.feeds, query.asks, progress)
        return ExplainResult(explanation, variant, reduce(RunReport.then, reports, RunReport()))

    def default_recipe(self, request: Request | None = None) -> Recipe:
        """The default recipe. Raises UnsupportedModel where it cannot explain what the model's settings explain.

        request: of a client; where it explains or attributes to other tensors, compiling says what is possible.
        """
        if self.default_recipe_problem and self._with_defaults(request) == self.request:
            raise UnsupportedModel(
                f"{self.name}: the default recipe {self.recipe.title} is not possible: {self.default_recipe_problem}"
            )
        return self.recipe

    def variant_key(self, recipe: Recipe, request: Request | None = None) -> tuple[Recipe, Request]:
        """A client's recipe and request over the model's own settings. UsageError for one over a base."""
        if recipe.base is not None:
            recipe.require_graph()
        return recipe, self._with_defaults(request)

    def variant(self, recipe: Recipe, request: Request | None = None, keep: bool = False) -> Variant:
        """A compiled recipe, compiled here and now, as loading does. keep: it stays as long as the model does.

        Raises UsageError as `variant_key` does. Calls ask by `requested_variant`.
        """
        key = self.variant_key(recipe, request)
        with self._making.holding(key):
            variant = self.variants.get(key)
            if variant is None:
                variant = self._compile(*key)
                self.variants.put(key, variant, keep)
        return variant

    def close(self) -> None:
        """Put every session away."""
        self.variants.close()
        with self._lock:
            self._subjects.clear()
            queues = list(self._opened)
        for queue in queues:
            self.context.session_cache.drop(queue)

    def queues(self) -> dict[str, ModelQueue]:
        """Every queue by what it answers: "" the model itself, else the recipe's title."""
        by_title = {v.explainer.recipe.title: v.queue for v in self.variants.variants() if not v.forward_only}
        return {"": self.forward_queue, **by_title}

    # Inside

    def _warm_up(self) -> None:
        """Run everything a first request would need; of what was prepared before, the model alone."""
        if (known := self._prepared.known(self.subject)) is not None:
            self.notes += known["notes"]
        else:
            feeds = self.subject.normalised.reference.feeds
            self.forward_queue.session().run(feeds)
            share_runs(self.forward_queue, self.subject, self.subject.row_axes(), probe_rows(feeds), self.notes)
            keep_subject(self._prepared, self.subject, self.forward_queue, self.notes)
        try:
            self.variant(self.recipe.opened, keep=True)
        except OnnxplainError as error:
            self.default_recipe_problem = str(error)
            if self.settings.defaults:
                raise
        for name in self.settings.serving.recipes:
            self.variant(named(name).opened, keep=True)

    def _compile(self, recipe: Recipe, request: Request) -> Variant:
        begun = time.perf_counter()
        subject = self._subject(request)
        subject = subject if subject.request == request else replace(subject, request=request)
        restored = None if recipe.looped else self._prepared.graph(subject, recipe, self.bounds)
        explainer = Explainer(
            subject, recipe, bounds=self.bounds, labels=self.labels, kind=self.settings.output.kind,
            graph=None if restored is None else restored.graph, columns=self.pictures.columns(subject.inputs),
            background=self.background if recipe.background != "none" else None,
        )  # fmt: skip
        queue, forward_queue = (subject if recipe.looped else explainer).session, subject.session
        assert isinstance(queue, ModelQueue) and isinstance(forward_queue, ModelQueue)
        variant = Variant(explainer, queue, forward_queue, list(explainer.notes), self.background)
        if restored is not None:
            adopt_variant(variant, restored, lambda why: self._distrust(variant, why))
        elif not recipe.looped:  # else it is forward-only: there is no graph, and its runs are those of the model
            try:
                variant.verify(self.name)
                keep_variant(self._prepared, variant, self.bounds)
            except BaseException:
                self.context.session_cache.drop(queue)
                raise
        variant.seconds = time.perf_counter() - begun
        return variant

    def _distrust(self, variant: Variant, why: str) -> None:
        """A recipe out of the cache answers otherwise here: whoever asks next has it compiled."""
        self._prepared.drop_graph(variant.explainer.subject, variant.explainer.recipe, self.bounds, why)
        self.variants.discard(variant)

    def _free(self, variant: Variant) -> None:
        """A variant was dropped and nobody uses it: its session goes, and its subject's where no other has that."""
        if variant.queue is not variant.forward_queue:
            self.context.session_cache.drop(variant.queue)
        with self._lock:
            subjects = [subject.session for subject in self._subjects.values()]
        others = [other.forward_queue for other in self.variants.variants()]
        if variant.forward_queue not in (*subjects, *others):
            self.context.session_cache.drop(variant.forward_queue)

    def _adopt(self, subject: Subject, known: Mapping[str, Any]) -> str | None:
        """Serve a model as it was prepared; why that is not right on this machine."""
        self.forward_queue = self._open_forward_queue(subject)
        if (why := adopt_forward(self.forward_queue, subject, known)) is not None:
            self.context.session_cache.drop(self.forward_queue)
        return why

    def _load_subject(self, request: Request, adopt: Problem | None = None) -> Subject:
        options = self.context.options
        subject = self._prepared.subject(request, options.threads_per_run, self._open, adopt)
        if subject is None:
            subject = Subject.of(
                self._path, request, options.provider, options.threads_per_run, self._open,
                unexplained=request == self.request,
            )  # fmt: skip
            subject.pin()
        _ = subject.session  # made here, where nobody else can be making it
        with self._lock:
            self._subjects[(request.explain, request.head, request.attribute_to, request.keep)] = subject
        return subject

    def _subject(self, request: Request) -> Subject:
        """The model made ready for a choice of tensors: those named must survive normalisation."""
        key = (request.explain, request.head, request.attribute_to, request.keep)
        with self._making.holding(("subject", key)):
            with self._lock:
                cached = self._subjects.get(key)
                if cached is not None:
                    self._subjects.move_to_end(key)
                    return cached
            subject = self._load_subject(request)
            if self._prepared.known(subject) is None:
                keep_subject(self._prepared, subject, self.forward_queue, self.notes)
            with self._lock:
                while len(self._subjects) > SUBJECTS:
                    oldest = next(iter(self._subjects))
                    if self._subjects[oldest] is self.subject:
                        self._subjects.move_to_end(oldest)
                        continue
                    del self._subjects[oldest]
        return subject

    def _with_defaults(self, request: Request | None) -> Request:
        """A client's request over the model's own settings."""
        if request is None:
            return self.request
        return request if request.explain else replace(request, explain=self.request.explain)

    def _open(self, graph: Graph, role: str) -> ModelQueue:
        names = [str(value.name) for value in ports_of(graph).outputs]
        options = self.context.options
        explains, provider, threads = role != "forward", options.provider, options.threads_per_run
        held = nbytes_of_session(graph, self.max_rows if explains else 0)
        return self._open_queue(lambda: open_session(graph, provider, threads), names, held, explains)

    def _open_forward_queue(self, subject: Subject) -> ModelQueue:
        """The model as its file says, not its normal form: answers are those of plain onnxruntime."""
        graph, options = subject.source.held, self.context.options
        names = [str(value.name) for value in ports_of(graph).outputs]
        made = partial(open_session, graph, options.provider, options.threads_per_run)
        return self._open_queue(made, names, nbytes_of_weights(graph))

    def _open_queue(
        self, open_graph: Callable[[], Session], outputs: list[str], nbytes: int, explains: bool = False
    ) -> ModelQueue:
        scheduler, cache = self.context.scheduler, self.context.session_cache
        observe = partial(self.context.metrics.run, self.name, explains=explains)
        queue = ModelQueue(scheduler, cache, open_graph, outputs, nbytes, self.max_rows, observe)
        with self._lock:
            self._opened.add(queue)
        return queue
