"""One model file and what the caches know of it: its normal forms and its explanation graphs."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from onnxplain.compile import Compiled, Request
from onnxplain.composites import Bounds
from onnxplain.explanation_graph import ExplanationGraph
from onnxplain.graph.weight_files import Content
from onnxplain.prepared import named_arrays
from onnxplain.prepared.entry import CacheEntry, DamagedEntry, entry_name
from onnxplain.prepared.folder import GraphCache
from onnxplain.prepared.graph_parts import WeightIndex, put_together, take_apart
from onnxplain.prepared.key import graph_key, subject_key
from onnxplain.prepared.model_files import BESIDE, MODEL, ModelFile, OtherFiles
from onnxplain.prepared.restored_graph import RestoredGraph
from onnxplain.prepared.subject_entry import FORWARD, SOURCE, subject_about, subject_of
from onnxplain.recipes import Recipe
from onnxplain.runtime.session import Array, providers
from onnxplain.subject import Opener, Subject

T = TypeVar("T")
Problem = Callable[[Subject, Mapping[str, Any]], str | None]
LOG = logging.getLogger("onnxplain.graphs")
NORMAL, OWN = "normal", "own"  # stores: weights of the normal form that the model's file has not; of one graph
FORMS = 8  # normal forms of which it stays known where their weights lie; callers may ask for any number
GRAPH, CHECKS, WEIGHTS = "graph", "checks", "weights"


@dataclass
class _Kept:
    """What is known of one normal form: its entry while something restored needs it, and where weights lie."""

    stores: Mapping[str, Content] | None
    weights: Sequence[Any]
    more: Mapping[str, Any] | None


class PreparedModel:
    """What was found out about a model file before, by this process or another.

    caches: asked in order; the first that takes an entry keeps it. told_apart: what else of the caller's settings an
    entry is kept for. An entry that is damaged, or of other versions, counts as none.
    """

    def __init__(self, path: Path, caches: Sequence[GraphCache], provider: str = "auto", told_apart: Any = None):
        self.path, self.caches, self._provider, self._told_apart = path, caches, provider, told_apart
        self._kept: OrderedDict[str, _Kept] = OrderedDict()  # the one not asked for longest first
        self._lock = threading.Lock()
        self._file: ModelFile | None = None
        self._dropped: set[str] = set()

    # Normal forms

    def subject(
        self,
        request: Request,
        threads: int = 0,
        opener: Opener | None = None,
        problem: Problem | None = None,
    ) -> Subject | None:
        """The model made ready for a choice of tensors; None where it was not before.

        problem: why a restored one, with the JSON that was kept with it, is of no use here; None where it is.
        """
        if not self.caches:
            return None
        try:
            file = self._read()
        except OSError:
            return None  # `load` says what is wrong
        key = self._subject_key(file.sha256, request)

        def restore(entry: CacheEntry) -> Subject:
            stores = {MODEL: file.content, NORMAL: Content(entry.view(WEIGHTS)), **file.beside(entry.about["beside"])}
            graphs = {name: put_together(name, entry.about[name], entry, stores) for name in (SOURCE, FORWARD)}
            subject = subject_of(entry, graphs, self.path, request, self._provider, threads, opener)
            if problem is not None and (why := problem(subject, entry.about["more"])) is not None:
                raise DamagedEntry(f"it is not so on this machine: {why}")
            self._note(entry_name(key), _Kept(stores, entry.about["weights"], entry.about["more"]))
            return subject

        try:
            return self._restored(key, restore)
        finally:
            self._let_go()

    def known(self, subject: Subject) -> Mapping[str, Any] | None:
        """The JSON that was kept with a subject; None where it was made here."""
        kept = self._noted(entry_name(self._subject_key(subject.source.sha256, subject.request)))
        return None if kept is None else kept.more

    def keep_subject(self, subject: Subject, more: Mapping[str, Any]) -> bool:
        """Keep a model that was made ready; whether it could be. more: JSON."""
        if not self.caches:
            return False
        source, path = subject.source, self.path
        try:
            arrays = named_arrays.to_bytes(_flat(subject))
            file = self._read()
            if file.sha256 != source.sha256:
                raise ValueError("another file lies there by now")
            others = OtherFiles.of(file, source.model)
        except (OSError, TypeError, ValueError) as error:
            LOG.info("graph cache: %s is not kept: %s", path.name, error)
            self._let_go()
            return False
        index = WeightIndex(NORMAL)
        index.add_model(MODEL, file.content)
        for location, offset, weight in others.weights.values():
            index.add(BESIDE + location, offset, weight)
        about: dict[str, Any] = {**subject_about(subject), "beside": others.listed, "more": dict(more)}
        sections: dict[str, Any] = {"reference": [arrays], "outline": [source.outline]}
        forward = subject.forward_graph or subject.with_protected()
        for name, graph in ((SOURCE, source.held), (FORWARD, forward)):
            about[name], parts = take_apart(name, graph, index)
            sections |= parts
        about["weights"] = index.listing()
        entry = CacheEntry(self._subject_key(file.sha256, subject.request), about, {**sections, WEIGHTS: index.parts})
        self._note(entry.name, _Kept(None, about["weights"], None))
        self._let_go()
        return self._put(entry)

    # Explanation graphs

    def graph(self, subject: Subject, recipe: Recipe, bounds: Bounds) -> RestoredGraph | None:
        """The explanation graph of a recipe; None where it was not compiled before."""
        if not self.caches:
            return None
        key = self._graph_key(subject, recipe, bounds)

        def restore(entry: CacheEntry) -> RestoredGraph:
            stores = {**self._stores(subject), OWN: Content(entry.view(WEIGHTS))}
            about, stored = entry.about, put_together(GRAPH, entry.about[GRAPH], entry, stores)
            held: Any = stored  # a Compiled reads it when somebody looks at its model
            compiled = Compiled(held, seconds=0.0, **about["compiled"])
            seeds, answers = (named_arrays.from_bytes(entry.section(f"{CHECKS}.{side}")) for side in ("in", "out"))
            graph = ExplanationGraph(subject, recipe, bounds, compiled)
            return RestoredGraph(graph, about["more"], seeds, answers)

        return self._restored(key, restore)

    def keep_graph(
        self,
        graph: ExplanationGraph,
        bounds: Bounds,
        more: Mapping[str, Any],
        seeds: Mapping[str, Array],
        answers: Mapping[str, Array],
    ) -> bool:
        """Keep a graph that was compiled and verified; whether it could be. See `RestoredGraph`."""
        subject, compiled = graph.subject, graph.compiled
        kept = self._noted(entry_name(self._subject_key(subject.source.sha256, subject.request)))
        if kept is None:  # its normal form is not kept, so neither is what lies on that
            return False
        index = WeightIndex.listed(OWN, kept.weights)
        about_graph, sections = take_apart(GRAPH, compiled.held, index)
        known = ("seeds", "relevances", "streams", "provenance", "notes", "references")
        about = {
            GRAPH: about_graph, "more": dict(more), "compiled": {name: getattr(compiled, name) for name in known},
        }  # fmt: skip
        checks = {f"{CHECKS}.in": seeds, f"{CHECKS}.out": answers}
        sections |= {name: [named_arrays.to_bytes(arrays)] for name, arrays in checks.items()}
        key = self._graph_key(subject, graph.recipe, bounds)
        return self._put(CacheEntry(key, about, {**sections, WEIGHTS: index.parts}))

    def drop_graph(self, subject: Subject, recipe: Recipe, bounds: Bounds, why: str) -> None:
        """Forget a graph that does not answer here as it did where it was verified."""
        name = entry_name(self._graph_key(subject, recipe, bounds))
        LOG.warning("graph cache: %s of %s: %s; it is made anew", recipe.title, self.path.name, why)
        self._dropped.add(name)
        for cache in self.caches:
            cache.drop(name)

    # Inside

    def _subject_key(self, sha256: str, request: Request) -> dict[str, Any]:
        return subject_key(sha256, request, providers(self._provider), self._told_apart)

    def _graph_key(self, subject: Subject, recipe: Recipe, bounds: Bounds) -> dict[str, Any]:
        sha256 = subject.source.sha256
        return graph_key(sha256, subject.request, recipe, bounds, providers(self._provider), self._told_apart)

    def _stores(self, subject: Subject) -> Mapping[str, Content]:
        """What graphs of a subject have their weights in; of one that was not restored, out of the cache."""
        name = entry_name(self._subject_key(subject.source.sha256, subject.request))
        kept = self._noted(name)
        if kept is None or kept.stores is None:
            self.subject(replace(subject.request))
            kept = self._noted(name)
        if kept is None or kept.stores is None:
            raise DamagedEntry("the normal form it lies on is not there")
        return kept.stores

    def _read(self) -> ModelFile:
        if self._file is None:
            self._file = ModelFile.read(self.path)
        return self._file

    def _let_go(self) -> None:
        """Of the file's bytes, where nothing restored has its weights in them: else they have memory of their own."""
        with self._lock:
            if all(kept.stores is None for kept in self._kept.values()):
                self._file = None

    def _note(self, name: str, kept: _Kept) -> None:
        with self._lock:
            self._kept[name] = kept
            self._kept.move_to_end(name)
            while len(self._kept) > FORMS:
                self._kept.popitem(last=False)

    def _noted(self, name: str) -> _Kept | None:
        with self._lock:
            if name in self._kept:
                self._kept.move_to_end(name)
            return self._kept.get(name)

    def _restored(self, key: Mapping[str, Any], restore: Callable[[CacheEntry], T]) -> T | None:
        name = entry_name(key)
        for cache in self.caches:
            content = None if name in self._dropped else cache.get(name)
            if content is None:
                continue
            try:
                return restore(CacheEntry.decode(content, key))
            except DamagedEntry as error:
                LOG.warning("graph cache: entry %s of %s is left out: %s", name[:16], self.path.name, error)
        return None

    def _put(self, entry: CacheEntry) -> bool:
        parts = entry.encode()
        return any(cache.put(entry.name, parts) for cache in self.caches)


def _flat(subject: Subject) -> dict[str, Any]:
    """Feeds and outputs of the run that the normal form was verified on, under names that tell them apart."""
    reference = subject.normalised.reference
    feeds = {f"feeds/{name}": array for name, array in reference.feeds.items()}
    return {**feeds, **{f"outputs/{name}": array for name, array in reference.outputs.items()}}
