"""Models as the service opens them, with a graph cache and without."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from nets import MODELS, net, normal

from onnxplain.compile import Request
from onnxplain.inputs.settings import ModelSettings
from onnxplain.prepared import FolderCache
from onnxplain.recipes import Recipe
from onnxplain.server.models.context import ServerContext
from onnxplain.server.models.loaded import ExplainQuery, LoadedModel
from onnxplain.server.options import ServerOptions
from onnxplain.server.scheduling.scheduler import Scheduler
from onnxplain.server.scheduling.session_cache import SessionCache
from onnxplain.server.telemetry.metrics import Metrics
from onnxplain.sources import DirectorySource, ResolvedModel


def tokens() -> onnx.ModelProto:
    """ids (N, T) of a vocabulary of 9 -> (N, 3)."""
    return net(
        """g (int64[N, T] ids) => (float[N, 3] y) {
            e = Gather (table, ids)
            m = ReduceMean <keepdims = 0> (e, one)
            y = MatMul (m, w)
        }""",
        table=normal(9, 4),
        one=np.array([1]),
        w=normal(4, 3, seed=1),
    )


def whole() -> onnx.ModelProto:
    """x (2, 3) -> (1, 4): its rows are one thing, so seeds come one by one."""
    return net(
        "g (float[2, 3] x) => (float[1, 4] y) { f = Reshape (x, shape) h = MatMul (f, w) y = Relu (h) }",
        shape=np.array([1, 6]),
        w=normal(6, 4),
    )


def weighty(folder: Path, scale: float = 1.0) -> Path:
    """x (N, 128) -> (N, 64) with its weights in another file, in a repository's form."""
    model = net("g (float[N, 128] x) => (float[N, 64] y) { h = MatMul (x, w) y = Relu (h) }", w=scale * normal(128, 64))
    path = folder / "1" / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    (path.parent / "w.bin").unlink(missing_ok=True)
    onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    return path


def resolved(model: str | Path) -> ResolvedModel:
    """One of models/ by its name, or a file."""
    if isinstance(model, Path):
        return ResolvedModel(model, "m", "1", ModelSettings())
    source = DirectorySource(MODELS)
    return source.fetch(next(release for release in source.releases() if release.name == model))


@contextmanager
def opened(model: str | Path | ResolvedModel, cache: FolderCache | None, **options: object) -> Iterator[LoadedModel]:
    """A model as the service opens it."""
    scheduler, own = Scheduler(), ServerOptions(provider="cpu", **options)
    context = ServerContext(own, scheduler, SessionCache(own.session_bytes), Metrics(), graph_cache=cache)
    loaded = LoadedModel(model if isinstance(model, ResolvedModel) else resolved(model), context)
    try:
        yield loaded
    finally:
        loaded.close()
        scheduler.close()


def answers(loaded: LoadedModel, recipe: Recipe | None = None, request: Request | None = None) -> dict[str, object]:
    """Everything that a client can see of a model: its answer, the reasons, what is said of both."""
    feeds = {name: x[:1] if x.ndim else x for name, x in loaded.subject.normalised.reference.feeds.items()}
    if loaded.subject.row_axes() is None:
        feeds = dict(loaded.subject.normalised.reference.feeds)
    names = loaded.forward_queue.outputs
    found: dict[str, object] = {f"out {n}": x for n, x in loaded.infer(feeds, names).result(60).outputs.items()}
    explanation, variant, _ = loaded.explain(ExplainQuery(feeds, ["predicted", "1"], recipe, request))
    for kind in ("relevances", "outputs", "kept"):
        found |= {f"{kind} {name}": array for name, array in getattr(explanation, kind).items()}
    found |= {"ledger": explanation.ledger, "scores": explanation.scores, "notes": explanation.notes}
    found |= {"provenance": explanation.provenance, "graph": variant.digest, "ports": variant.signature}
    found |= {"axes": variant.queue.axes, "more axes": variant.forward_queue.axes, "warnings": variant.notes}
    return found | {"own axes": loaded.forward_queue.axes, "own notes": loaded.notes, "inputs": loaded.subject.inputs}


def same(one: dict[str, object], other: dict[str, object]) -> None:
    """Bit for bit."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, np.ndarray):
            assert value.dtype == other[name].dtype and value.tobytes() == other[name].tobytes(), name
        else:
            assert value == other[name], name
