"""Triton's metrics, for dashboards and autoscalers that know them, where they mean the same here.

Labels: model, the name that clients call it by (`M` for answers, `M.explain` for explanations by whatever protocol);
version, the newest that is served. All count up from the start; times are microseconds, summed over requests.

    nv_inference_request_success        requests that were answered
    nv_inference_request_failure        requests that ended with an error, whosever fault it was
    nv_inference_count                  rows that ran: a batch of n is n
    nv_inference_exec_count             runs: a batch of n is one
    nv_inference_request_duration_us    from taking a request to its answer or error
    nv_inference_queue_duration_us      waiting for a run
    nv_inference_compute_infer_duration_us  in runs; each request of a shared one has all of it
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

MICRO = 1e6  # of a second
NAMES = {
    "nv_inference_request_success": "Requests that were answered.",
    "nv_inference_request_failure": "Requests that ended with an error.",
    "nv_inference_count": "Rows that ran.",
    "nv_inference_exec_count": "Runs.",
    "nv_inference_request_duration_us": "Microseconds from taking requests to their ends.",
    "nv_inference_queue_duration_us": "Microseconds that requests waited for a run.",
    "nv_inference_compute_infer_duration_us": "Microseconds of requests in runs.",
}


@dataclass
class _Sums:
    """Of one model and version, in the order of NAMES."""

    success: float = 0
    failure: float = 0
    rows: float = 0
    runs: float = 0
    request_us: float = 0
    queue_us: float = 0
    compute_us: float = 0


class TritonNames(Collector):
    """The counters as they stand. prometheus_client's own would end their names with _total."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, str], _Sums] = {}
        self._lock = threading.Lock()

    def request(self, model: str, version: str, ok: bool, seconds: float) -> None:
        """A request ended."""
        with self._lock:
            sums = self._sums.setdefault((model, version), _Sums())
            sums.success += ok
            sums.failure += not ok
            sums.request_us += MICRO * seconds

    def run(self, model: str, version: str, waited: float, ran: float, rows: int, requests: int) -> None:
        """A run ended. waited: mean of its requests, seconds; ran: seconds."""
        with self._lock:
            sums = self._sums.setdefault((model, version), _Sums())
            sums.rows += rows
            sums.runs += 1
            sums.queue_us += MICRO * waited * requests
            sums.compute_us += MICRO * ran * requests

    def forget(self, model: str) -> None:
        """All versions of one model."""
        with self._lock:
            for key in [key for key in self._sums if key[0] == model]:
                del self._sums[key]

    def collect(self) -> Iterator[Metric]:
        """One metric a name."""
        with self._lock:
            rows = [(labels, list(vars(sums).values())) for labels, sums in self._sums.items()]
        for place, (name, text) in enumerate(NAMES.items()):
            metric = Metric(name, text, "unknown")
            for (model, version), sums in rows:
                metric.add_sample(name, {"model": model, "version": version}, sums[place])
            yield metric
