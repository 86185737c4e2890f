"""The worker process of `--isolate`: an ordinary server of one model on a socket that only its parent can reach.

`python -P -m onnxplain.server.worker PARENT FOLDER`: PARENT's process id and a folder that PARENT removes. It imports
what it needs, waits for its WorkerConfig (one line on its standard input), confines itself, and only then looks at the
model. See `isolation/process.py` for the parent.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

from onnxplain.errors import UnsupportedModel
from onnxplain.inputs.settings import ModelSettings
from onnxplain.runtime.session import PROVIDERS, providers
from onnxplain.server.app import THREADS, Server
from onnxplain.server.going_down import run
from onnxplain.server.handlers.local_model import LocalModel
from onnxplain.server.isolation import limits
from onnxplain.server.isolation.messages import WorkerConfig, failure_report
from onnxplain.server.isolation.reports import ReportedMetrics, ReportPipe
from onnxplain.server.models.context import ServerContext
from onnxplain.server.models.loaded import LoadedModel
from onnxplain.server.models.served import Served
from onnxplain.server.options import ServerOptions
from onnxplain.server.scheduling.scheduler import Scheduler
from onnxplain.server.scheduling.session_cache import SessionCache
from onnxplain.server.telemetry.logs import set_up
from onnxplain.server.telemetry.metrics import Metrics
from onnxplain.sources import ModelSource, Release, ResolvedModel

ANY_SIZE = 2**31 - 1  # of a message: the parent has checked, and has put chunks together
OPSET, IR_VERSION = 17, 8  # of the model that is loaded to warm up


class SingleModelSource:
    """The source of the one model of the config."""

    def __init__(self, model: ResolvedModel):
        self.name, self._model = model.name, model
        self.problems: dict[str, str] = {}

    def releases(self) -> Sequence[Release]:
        """The only release."""
        return [Release(self._model.name, self._model.version, "given")]

    def fetch(self, release: Release) -> ResolvedModel:
        """Its files, which the parent's source has checked."""
        return self._model


async def serve(config: WorkerConfig, reports: ReportPipe) -> None:
    """Load, say that it is ready or why not, answer until SIGTERM."""
    outcome: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
    threads = ThreadPoolExecutor(THREADS, thread_name_prefix="onnxplain-explain")

    async def load(source: ModelSource, release: Release) -> Served:
        context = replace(server.context, options=config.options, metrics=ReportedMetrics(reports))
        try:
            served = LocalModel(await asyncio.to_thread(LoadedModel, source.fetch(release), context), threads)
        except Exception as error:
            outcome.set_result(error)
            raise
        outcome.set_result(None)
        return served

    server = Server(replace(config.options, max_message_bytes=ANY_SIZE), [SingleModelSource(config.model)], load)
    await server.start()
    problem = await outcome
    if isinstance(problem, MemoryError):
        text = f"{config.model.name}: it needs more memory than --isolate-memory gives it."
        problem = UnsupportedModel(text)
    if problem is not None:
        reports.send(failure_report(problem))
        await server.stop(0)
        return
    while not server.repository.ready:  # it is about to get what `load` returned
        await asyncio.sleep(0.001)
    reports.send({"ready": os.getpid()})
    await server.serve()


def warm_up(folder: Path) -> None:
    """Load a model of ours: what is imported, built and found on the first use is there when the config comes."""
    weight = numpy_helper.from_array(np.full((2, 1, 3, 3), 0.1, np.float32), "w")
    head = numpy_helper.from_array(np.full((2, 3), 0.1, np.float32), "v")
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("GlobalAveragePool", ["b"], ["c"]),
            helper.make_node("Flatten", ["c"], ["d"]),
            helper.make_node("Gemm", ["d", "v"], ["y"]),
        ],
        "warm",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
        [weight, head],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    options, metrics = ServerOptions(provider="cpu", port=0, metrics_port=0), Metrics()
    scheduler = Scheduler()
    path = folder / "warm.onnx"
    save(model, path)
    context = ServerContext(options, scheduler, SessionCache(options.session_bytes), metrics)
    LoadedModel(ResolvedModel(path, "warm", "1", ModelSettings()), context).close()
    path.unlink()
    scheduler.close()


def main(parent: int, folder: Path) -> None:
    """Live as described above."""
    limits.tie(parent)
    reports = ReportPipe()
    logging.getLogger("onnxplain").setLevel(logging.CRITICAL)
    warm_up(folder)
    line = sys.stdin.buffer.readline()
    if not line:
        return  # a spare that was not needed
    threading.Thread(target=_end_with_parent, name="onnxplain-parent", daemon=True).start()
    set_up("json", logging.WARNING)  # the parent logs the calls
    try:
        config = WorkerConfig.decode(line)
        limits.confine(config.memory, PROVIDERS["cuda"] in providers(config.options.provider))
        config.options.begin_environment()
        run(serve(config, reports))
    except Exception as error:
        reports.send(failure_report(error))
        raise SystemExit(1) from None


def _end_with_parent() -> None:
    """Where the system does not end us with the parent, the pipe from it does."""
    while os.read(0, 1):  # not sys.stdin: its lock, held here, would be waited for when the process exits
        pass
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
