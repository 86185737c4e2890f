"""A bulk run as a whole: what is not there yet is explained and written, until all is."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from math import prod
from pathlib import Path

from onnxplain.bulk.dataset import Dataset
from onnxplain.bulk.executors import EXECUTORS
from onnxplain.bulk.job import BulkJob
from onnxplain.bulk.partition import require
from onnxplain.bulk.plan import Plan
from onnxplain.explainer import Explainer
from onnxplain.inputs import InputSpec

PARTITION_BYTES = 32 << 20  # of relevance, about
MOST_ROWS = 1024
UNKNOWN = 64  # what an open length counts as


@dataclass(frozen=True)
class Summary:
    """What a run did. resumed: partitions that were there already. first_errors: of some of the rows that failed.

    notes: what is to be known of all rows, then what the method noted of some, each once, with how many rows.
    """

    rows: int
    errors: int
    partitions: int
    resumed: int
    first_errors: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def rows_per_partition(inputs: list[InputSpec], batch: int) -> int:
    """Whole batches that make a partition of a handy size; by the declared shapes alone, so the same every time."""
    each = sum(4 * prod(n if isinstance(n, int) and n > 0 else UNKNOWN for n in (s.shape or ())[1:]) for s in inputs)
    rows = max(1, min(MOST_ROWS, PARTITION_BYTES // max(1, each)))
    return max(1, rows // batch) * batch


def explain_all(
    job: BulkJob, explainer: Explainer, plan: Plan, folder: Path, engine: str = "local", workers: int = 0,
    resume: bool = False, progress: Callable[[int, int], None] | None = None,
) -> Summary:  # fmt: skip
    """Explain every row of the plan into a folder, see `Dataset`. explainer: the job's.

    progress: told how many partitions of how many are there. Raises UsageError for a folder of another run,
    OnnxplainError for what is wrong with all rows; a row's own trouble becomes its row's `error`.
    """
    require(job.format)
    about = {**job.content(), "inputs": plan.digest, "rows": plan.rows, "partitions": len(plan.blocks)}
    dataset = Dataset.begin(folder, about, resume)
    missing = [block for block in plan.blocks if dataset.entry(block.number) is None]
    there = len(plan.blocks) - len(missing)
    if missing:
        with closing(EXECUTORS[engine](job, explainer, missing, workers)) as partitions:
            for done, partition in enumerate(partitions, there + 1):
                dataset.add(partition)
                if progress is not None:
                    progress(done, len(plan.blocks))
    manifest = dataset.finish(explainer.notes)
    errors, notes = tuple(manifest["first_errors"]), tuple(manifest["notes"])
    return Summary(manifest["rows"], manifest["errors"], len(plan.blocks), there, errors, notes)
