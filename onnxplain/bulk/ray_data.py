"""Blocks over a Ray cluster: Ray Data streams them through actors, each of which opens the explainer once.

Blocks go out and files come back as bytes; the process that asked writes them. So no machine needs the results'
folder, and an actor that dies leaves nothing half written: Ray starts another and gives it the block anew.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Generator, Sequence
from typing import Any

from onnxplain.bulk.explaining import Partition, Worker
from onnxplain.bulk.job import BulkJob
from onnxplain.bulk.plan import Block
from onnxplain.errors import OnnxplainError, Unavailable, UsageError
from onnxplain.explainer import Explainer

OBJECT_STORE = 256 << 20  # bytes of a cluster made for one run: partitions pass through, none stays


class _Actor:
    """A worker in Ray's hands. Errors come back as rows: Ray would wrap them, and try again what fails for good."""

    def __init__(self, job: bytes):
        self._job = job
        self._worker: Worker | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        answers: list[Partition | OnnxplainError] = []
        try:
            if self._worker is None:
                self._worker = Worker(pickle.loads(self._job))
            answers += [self._worker.explain(pickle.loads(block)) for block in batch["block"]]
        except OnnxplainError as error:
            answers = [error]
        return {"answer": [pickle.dumps(answer) for answer in answers]}


def on_ray(
    job: BulkJob, explainer: Explainer, blocks: Sequence[Block], workers: int
) -> Generator[Partition, None, None]:
    """Actors of the cluster at RAY_ADDRESS, else of one made on this machine for as long as it takes."""
    ray = require_ray()
    began = not ray.is_initialized()
    if began:
        _connect(ray, job, workers)
    try:
        cpus = int(ray.cluster_resources().get("CPU", 1))
        per_actor = max(1, job.threads)
        gpus = 1 if job.provider == "cuda" else 0
        workers = workers or max(1, min(len(blocks), cpus // per_actor))
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)  # how far it is, we tell
        items = [{"block": pickle.dumps(block)} for block in blocks]
        answers = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            _Actor,
            fn_constructor_args=(pickle.dumps(job),),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(workers, len(items))),
            num_cpus=per_actor,
            **({"num_gpus": gpus} if gpus else {}),
        )
        for row in answers.iter_rows():
            answer = pickle.loads(row["answer"])
            if isinstance(answer, OnnxplainError):
                raise answer
            yield answer
    except ray.exceptions.RayError as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise Unavailable(f"Ray gave up: {lines[-1][:300]} What is done is kept; go on by --resume.") from error
    finally:
        if began:
            ray.shutdown()


def require_ray() -> Any:
    """The package. Raises UsageError where it is not installed."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UsageError("--engine ray needs Ray, which is not installed: pip install 'onnxplain[ray]'.") from error
    return ray


def _connect(ray: Any, job: BulkJob, workers: int) -> None:
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what is wrong arrives as an exception
    try:
        if os.environ.get("RAY_ADDRESS"):
            ray.init(log_to_driver=False, logging_level="ERROR")
            return
        cpus = {"num_cpus": workers * max(1, job.threads)} if workers else {}
        ray.init(
            address="local", include_dashboard=False, object_store_memory=OBJECT_STORE,
            log_to_driver=False, logging_level="ERROR", **cpus,
        )  # fmt: skip
    except (ConnectionError, RuntimeError, OSError) as error:
        raise Unavailable(f"no Ray cluster: {' '.join(str(error).split())[:300]}") from error
