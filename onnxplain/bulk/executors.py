"""Who explains the blocks: threads of this process, or actors of a Ray cluster. Each yields partitions as they come."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from onnxplain.bulk.explaining import Partition, Worker
from onnxplain.bulk.job import BulkJob
from onnxplain.bulk.plan import Block
from onnxplain.bulk.ray_data import on_ray
from onnxplain.explainer import Explainer
from onnxplain.machine import cpus

AHEAD = 1  # blocks that wait beside each worker's own, so that none is idle and little is held

# (job, its explainer here, blocks, workers; 0: as many as there are CPUs for) -> partitions, in any order
Executor = Callable[[BulkJob, Explainer, Sequence[Block], int], Generator[Partition, None, None]]


def here(job: BulkJob, explainer: Explainer, blocks: Sequence[Block], workers: int) -> Generator[Partition, None, None]:
    """Threads that share the explainer's sessions: onnxruntime runs without Python's lock."""
    workers = workers or max(1, cpus() // max(1, job.threads))
    own, opening, opened = threading.local(), threading.Lock(), threading.Event()

    def explain(block: Block) -> Partition:
        if not hasattr(own, "worker"):
            own.worker = Worker(job, explainer)
        worker: Worker = own.worker
        if opened.is_set():
            return worker.explain(block)
        with opening:  # the first rows open the sessions that all share
            partition = worker.explain(block)
            if partition.errors < partition.rows:
                opened.set()
            return partition

    left = iter(blocks)
    with ThreadPoolExecutor(workers, thread_name_prefix="onnxplain-bulk") as pool:
        going: set[Future[Partition]] = set()
        try:
            going |= {pool.submit(explain, block) for block in itertools.islice(left, workers + AHEAD)}
            while going:
                done, going = wait(going, return_when=FIRST_COMPLETED)
                going |= {pool.submit(explain, block) for block in itertools.islice(left, len(done))}
                yield from (future.result() for future in done)
        finally:
            for future in going:
                future.cancel()


EXECUTORS: dict[str, Executor] = {"local": here, "ray": on_ray}
