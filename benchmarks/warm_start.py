"""How long a model takes to open out of the graph cache, beside bare onnxruntime sessions of the same graphs.

    python benchmarks/warm_start.py [MODEL] [--rounds N]

MODEL: a folder of a repository, models/mobilenet_v2 by default. In each round, one after the other in this process:
onnxruntime alone creates the sessions that the service has (of the model's file; of that, the normal form and the
explanation graph) and runs them; the service opens the model out of its cache. Medians over the rounds, and ratios of
what was measured in one round.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TypeVar

import onnxruntime

from onnxplain.prepared import FolderCache
from onnxplain.runtime.open import session_parts
from onnxplain.server.models.context import ServerContext
from onnxplain.server.models.loaded import ExplainQuery, LoadedModel
from onnxplain.server.options import ServerOptions
from onnxplain.server.scheduling.queue import ModelQueue
from onnxplain.server.scheduling.scheduler import Scheduler
from onnxplain.server.scheduling.session_cache import SessionCache
from onnxplain.server.telemetry.metrics import Metrics
from onnxplain.sources import DirectorySource

ROUNDS = 15
T = TypeVar("T")


def bare(path: str) -> onnxruntime.InferenceSession:
    """A session as anybody opens one."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def each(make: Callable[[T], object], things: Iterable[T]) -> list[object]:
    """All of them, so that none is gone before the last is there."""
    return [make(thing) for thing in things]


class Contest:
    """Times of each contender, by round."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def time(self, name: str, work: Callable[[], T]) -> T:
        """Do it, and note how long it took."""
        gc.collect()
        begun = time.perf_counter()
        result = work()
        self.seconds.setdefault(name, []).append(time.perf_counter() - begun)
        return result

    def ratio(self, name: str, to: str) -> float:
        """Median over the rounds of one time over another of the same round."""
        return statistics.median(a / b for a, b in zip(self.seconds[name], self.seconds[to], strict=True))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, default=Path("models/mobilenet_v2"))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    asked = parser.parse_args()
    options = ServerOptions(provider="cpu")
    scheduler, metrics, contest = Scheduler(), Metrics(), Contest()
    source = DirectorySource(asked.model.parent)
    resolved = source.fetch(next(r for r in source.releases() if r.name == asked.model.name))
    with tempfile.TemporaryDirectory() as folder:
        cache = FolderCache(Path(folder) / "graphs")

        def opened() -> LoadedModel:
            return LoadedModel(
                resolved, ServerContext(options, scheduler, SessionCache(2**40), metrics, graph_cache=cache)
            )

        begun = time.perf_counter()
        cold = opened()
        print(f"cold: {1e3 * (time.perf_counter() - begun):.0f} ms, made, verified and kept")
        recipe = cold.recipe.one_pass
        variant = cold.variant(recipe)
        graphs = {"normal": cold.subject.with_protected(), "explanation": variant.explainer.compiled.model}
        files = [str(resolved.path)]
        for name, graph in graphs.items():
            content, _ = session_parts(graph)
            files.append(str(Path(folder) / f"{name}.onnx"))
            Path(files[-1]).write_bytes(content)
        feeds = {name: x[:1] for name, x in cold.subject.normalised.reference.feeds.items()}
        cold.close()
        del cold, variant, graphs, graph
        for _ in range(asked.rounds):
            session = contest.time("bare: the model's session", partial(bare, files[0]))
            contest.time("bare: one run of it", partial(session.run, None, feeds))
            contest.time("bare: all three sessions", partial(each, bare, files))
            session = None
            model = contest.time("warm: opened, can answer ModelInfer", opened)
            queues = (model.variant(recipe).forward_queue, model.variant(recipe).queue)
            contest.time("warm: then the sessions of Explain", partial(each, ModelQueue.session, queues))
            question = ExplainQuery(feeds, ["predicted"])
            contest.time("warm: then the first Explain", partial(model.explain, question))
            contest.time("warm: the second Explain", partial(model.explain, question))
            model.close()
            model = queues = None
    scheduler.close()
    both = [a + b for a, b in zip(*list(contest.seconds.values())[3:5], strict=True)]
    contest.seconds["warm: opened with the sessions of Explain"] = both
    for name, seconds in contest.seconds.items():
        print(f"{1e3 * statistics.median(seconds):8.1f} ms  {name}")
    infer = contest.ratio("warm: opened, can answer ModelInfer", "bare: the model's session")
    explain = contest.ratio("warm: opened with the sessions of Explain", "bare: all three sessions")
    print(f"{infer:.2f} x bare: until ModelInfer can be answered; {explain:.2f} x bare: until Explain can be")


if __name__ == "__main__":
    main()
