"""The child process of `--isolate`: an ordinary server of one model on a socket that only its parent can reach.

`python -P -m onnxplain.server.worker PARENT FOLDER`: PARENT's process id and a folder that PARENT removes. It imports
what it needs, waits for one line of orders on its standard input, confines itself, and only then looks at the model.
See `isolated.py` for the parent.
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
from onnxplain.server.handlers.local_model import LocalModel
from onnxplain.server.isolation import limits as limits
from onnxplain.server.isolation.messages import WorkerConfig, failed
from onnxplain.server.isolation.reports import Reports, ToldMetrics
from onnxplain.server.models.loaded import LoadedModel, ServerContext
from onnxplain.server.models.served import Served
from onnxplain.server.options import ServerOptions
from onnxplain.server.scheduling.scheduler import Scheduler
from onnxplain.server.scheduling.session_cache import SessionCache
from onnxplain.server.telemetry.logs import set_up
from onnxplain.server.telemetry.metrics import Metrics
from onnxplain.sources import Release, Resolved, Source

ANY_SIZE = 2**31 - 1  # of a message: the parent has checked, and has put chunks together
OPSET, IR_VERSION = 17, 8  # of the model that is loaded to warm up


class OneModel:
    """The source of the one model that was ordered."""

    def __init__(self, model: Resolved):
        self.name, self._model = model.name, model
        self.problems: dict[str, str] = {}

    def releases(self) -> Sequence[Release]:
        """The only release."""
        return [Release(self._model.name, self._model.version, "ordered")]

    def fetch(self, release: Release) -> Resolved:
        """Its files, which the parent's source has checked."""
        return self._model


async def serve(orders: WorkerConfig, reports: Reports) -> None:
    """Load, say that it is ready or why not, answer until SIGTERM."""
    outcome: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
    threads = ThreadPoolExecutor(THREADS, thread_name_prefix="onnxplain-think")

    async def load(source: Source, release: Release) -> Served:
        house = replace(server.house, options=orders.options, metrics=ToldMetrics(reports))
        try:
            served = LocalModel(await asyncio.to_thread(LoadedModel, source.fetch(release), house), threads)
        except Exception as error:
            outcome.set_result(error)
            raise
        outcome.set_result(None)
        return served

    server = Server(replace(orders.options, max_message_bytes=ANY_SIZE), [OneModel(orders.model)], load)
    await server.start()
    problem = await outcome
    if isinstance(problem, MemoryError):
        text = f"{orders.model.name}: it needs more memory than --isolate-memory gives it."
        problem = UnsupportedModel(text)
    if problem is not None:
        reports.say(failed(problem))
        await server.stop(0)
        return
    while not server.catalogue.ready:  # it is about to be told what `load` returned
        await asyncio.sleep(0.001)
    reports.say({"ready": os.getpid()})
    await server.serve()


def warm_up(folder: Path) -> None:
    """Load a model of ours: what is imported, built and found on the first use is there when the orders come."""
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
    house = ServerContext(options, scheduler, SessionCache(options.session_bytes), metrics)
    LoadedModel(Resolved(path, "warm", "1", ModelSettings()), house).close()
    path.unlink()
    scheduler.close()


def main(parent: int, folder: Path) -> None:
    """Live as described above."""
    limits.tie(parent)
    reports = Reports()
    logging.getLogger("onnxplain").setLevel(logging.CRITICAL)
    warm_up(folder)
    line = sys.stdin.buffer.readline()
    if not line:
        return  # a spare that was not needed
    threading.Thread(target=_end_with_parent, name="onnxplain-parent", daemon=True).start()
    set_up("json", logging.WARNING)  # the parent logs the calls
    try:
        orders = WorkerConfig.parse(line)
        limits.confine(orders.memory, PROVIDERS["cuda"] in providers(orders.options.provider))
        asyncio.run(serve(orders, reports))
    except Exception as error:
        reports.say(failed(error))
        raise SystemExit(1) from None


def _end_with_parent() -> None:
    """Where the system does not end us with the parent, the pipe from it does."""
    while os.read(0, 1):  # not sys.stdin: its lock, held here, would be waited for when the process exits
        pass
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
