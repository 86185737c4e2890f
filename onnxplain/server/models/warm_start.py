"""A model out of the graph cache in place of compiling it, and into the cache what was compiled."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from onnxplain.composites import Bounds
from onnxplain.errors import OnnxplainError, Unavailable
from onnxplain.prepared import FolderCache, GraphCache, PreparedModel, RestoredGraph
from onnxplain.prepared.machine import cpu_kind
from onnxplain.prepared.restored_graph import source_difference
from onnxplain.runtime.session import PROVIDERS, Array, Session
from onnxplain.server.models.context import ServerContext
from onnxplain.server.models.probe import probe_seeds
from onnxplain.server.models.variant import Variant
from onnxplain.server.scheduling.queue import ModelQueue
from onnxplain.server.telemetry.logs import event
from onnxplain.sources import ResolvedModel
from onnxplain.subject import Subject

LOG = logging.getLogger("onnxplain.server")


def prepared_model(source: ResolvedModel, context: ServerContext, max_rows: int) -> PreparedModel:
    """What is known of a model: in the server's own cache, and in the one that came with its repository."""
    told_apart = {"shares_runs": max_rows > 1, "explain": list(source.settings.output.explain)}
    caches: list[GraphCache] = [] if context.graph_cache is None else [context.graph_cache]
    if source.graphs is not None:
        try:
            caches.append(FolderCache(source.graphs, read_only=True))
        except OnnxplainError as error:
            event(LOG, logging.WARNING, "graphs beside the models are left out", reason=str(error))
    return PreparedModel(source.path, caches, context.options.provider, told_apart)


def keep_subject(prepared: PreparedModel, subject: Subject, queue: ModelQueue, notes: list[str]) -> None:
    """Keep a model with what its queue may do. queue: of the model as its file says."""
    prepared.keep_subject(subject, {"axes": queue.axes, "notes": notes, "cpu": cpu_kind()})


def adopt_forward(queue: ModelQueue, subject: Subject, known: Mapping[str, Any]) -> str | None:
    """Let the model's queue do what it may; why it may not: it answers otherwise here than where it was verified.

    Opens its session; on another kind of machine runs it: a row of the reference where rows go apart, else all of it.
    """
    queue.axes, reference = known["axes"], subject.normalised.reference
    session = queue.session()
    if _alike(session, known["cpu"]):
        return None
    outputs = session.run(_question(queue, reference.feeds))
    rows = {name: reference.outputs[name] for name in outputs}
    if queue.axes is not None:
        rows = {name: queue.part(name, array, slice(0, 1)) for name, array in rows.items()}
    return source_difference(reference, rows, outputs)


def keep_variant(prepared: PreparedModel, variant: Variant, bounds: Bounds) -> None:
    """Keep a compiled recipe with what its queues may do, and what it answers to one question."""
    explainer, queue = variant.explainer, variant.queue
    forward_axes = variant.forward_queue.axes
    more = {"axes": queue.axes, "forward_axes": forward_axes, "notes": variant.notes, "cpu": cpu_kind()}
    feeds = _question(queue, explainer.subject.normalised.reference.feeds)
    seeds = probe_seeds(explainer, variant.forward_queue, feeds)
    prepared.keep_graph(explainer.graph, bounds, more, seeds, queue.session().run({**feeds, **seeds}))


def adopt_variant(variant: Variant, restored: RestoredGraph, distrust: Callable[[str], None]) -> None:
    """Let the queues do what they may. When its session opens on another kind of machine, it must answer as it did.

    distrust: told why, if it does not; whoever waits for the session then gets Unavailable.
    """
    variant.notes[:] = restored.more["notes"]
    variant.queue.axes, variant.forward_queue.axes = restored.more["axes"], restored.more["forward_axes"]

    def check(session: Session) -> None:
        if _alike(session, restored.more["cpu"]):
            return
        feeds = _question(variant.queue, variant.explainer.subject.normalised.reference.feeds)
        if (why := restored.difference(session.run({**feeds, **restored.seeds}))) is not None:
            distrust(why)
            raise Unavailable(f"the explanation graph answers otherwise on this machine ({why}); it is made anew.")

    variant.queue.check = check


def _alike(session: Session, cpu: str) -> bool:
    """Whether a session runs the very kernels that were verified: on the CPU alone, and on one of that kind."""
    return set(session.providers) == {PROVIDERS["cpu"]} and cpu != "" and cpu == cpu_kind()


def _question(queue: ModelQueue, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """The first row where rows go apart, else all."""
    return {name: x[:1] if queue.axes is not None and x.ndim else x for name, x in feeds.items()}
