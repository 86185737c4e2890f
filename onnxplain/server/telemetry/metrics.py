"""What the server counts, for Prometheus."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from onnxplain.server.telemetry.labelled import Labelled
from onnxplain.server.telemetry.triton_names import TritonNames

# Seconds: from an echo to the longest call that --max-request-seconds lets through.
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
ERRORS = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0)
CALL = ("grpc_type", "grpc_service", "grpc_method")


KINDS = ("infer", "explain")
PER_KIND = ("model", "kind")


class Metrics:
    """All counters of one server, in a registry of their own.

    Labels are bounded: methods that the server has, and models that are loaded (`model_loaded`). What is observed of
    any other model is dropped, so no client can grow the registry by asking for names.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        to = self.registry
        self.started = Counter("grpc_server_started_total", "Calls that began.", CALL, registry=to)
        self.handled = Counter("grpc_server_handled_total", "Calls that ended.", (*CALL, "grpc_code"), registry=to)
        self.handling = Histogram(
            "grpc_server_handling_seconds", "From a call's first byte to its end.", CALL, registry=to, buckets=SECONDS
        )
        self._requests = Labelled(
            Counter(
                "onnxplain_requests_total", "Requests of a model that ended.", ("model", "kind", "code"), registry=to
            )
        )
        self._request_seconds = Labelled(
            Histogram(
                "onnxplain_request_seconds",
                "From a request of a model to its answer or error.",
                PER_KIND,
                registry=to,
                buckets=SECONDS,
            )
        )
        self._rows = Labelled(Gauge("onnxplain_queue_rows", "Rows that wait or run.", ("model",), registry=to))
        self._bytes = Labelled(
            Gauge("onnxplain_queue_bytes", "Bytes of requests that wait or run.", ("model",), registry=to)
        )
        self._queued = Labelled(
            Histogram(
                "onnxplain_queue_seconds", "Time a run waited for its turn.", PER_KIND, registry=to, buckets=SECONDS
            )
        )
        self._computed = Labelled(
            Histogram(
                "onnxplain_compute_seconds", "Time of a run in onnxruntime.", PER_KIND, registry=to, buckets=SECONDS
            )
        )
        self._batch = Labelled(Histogram("onnxplain_batch_rows", "Rows of a run.", PER_KIND, registry=to, buckets=ROWS))
        self._conservation = Labelled(
            Histogram(
                "onnxplain_conservation_error",
                "|arrived and absorbed relevance - explained score| / |score|, where an explanation asked for it.",
                ("model",),
                registry=to,
                buckets=ERRORS,
            )
        )
        self._version = Labelled(
            Gauge("onnxplain_model_version", "Newest version that is served.", ("model",), registry=to)
        )
        self._refused = Labelled(
            Counter("onnxplain_admission_refused_total", "Requests turned away.", ("model", "reason"), registry=to)
        )
        self._loads = Counter("onnxplain_model_loads_total", "Loads of models.", ("result",), registry=to)
        self._sessions = Gauge("onnxplain_sessions_bytes", "Bytes of open sessions, about.", registry=to)
        self._budget = Gauge("onnxplain_sessions_budget_bytes", "What open sessions may hold.", registry=to)
        self._lazy = Gauge("onnxplain_models_bytes", "Bytes of lazy models in memory, about.", registry=to)
        self._evictions = Labelled(
            Counter(
                "onnxplain_model_evictions_total",
                "Lazy models put out of memory to make room.",
                ("model",),
                registry=to,
            )
        )
        self._client_bytes = Labelled(
            Gauge("onnxplain_client_bytes", "Bytes held of what clients send and get.", ("kind",), registry=to)
        )
        self._restarts = Counter("onnxplain_worker_restarts_total", "Child processes started again.", registry=to)
        ProcessCollector(registry=to)
        PlatformCollector(registry=to)
        GCCollector(registry=to)
        self._triton = TritonNames()
        to.register(self._triton)
        self._models: dict[str, str] = {}  # -> newest version
        self._reasons: set[str] = set()
        self._codes: set[str] = set()
        self._lock = threading.Lock()  # so that a late observation does not bring a forgotten model back
        for result in ("ok", "failed"):
            self._loads.labels(result)

    def method(self, grpc_type: str, service: str, method: str) -> MethodCounts:
        """The counters of one method that the server has."""
        return MethodCounts(self, (grpc_type, service, method))

    def model_loaded(self, model: str, version: int) -> None:
        """From now on this model is counted; its version is shown."""
        with self._lock:
            self._models[model] = str(version)
            self._version.labels(model).set(version)

    def newest_version(self, model: str, version: int) -> None:
        """The newest version of a loaded model that is served, whichever was loaded last."""
        with self._lock:
            if model in self._models:
                self._models[model] = str(version)
                self._version.labels(model).set(version)

    def model_gone(self, model: str) -> None:
        """Forget a model that is no longer served."""
        per_kind = (self._queued, self._computed, self._batch, self._request_seconds)
        with self._lock:
            self._models.pop(model, None)
            for explains in (False, True):
                self._triton.forget(_name(model, explains))
                for histogram in per_kind:
                    histogram.remove(model, KINDS[explains])
                for code in self._codes:
                    self._requests.remove(model, KINDS[explains], code)
            for gauge in (self._rows, self._bytes, self._version):
                gauge.remove(model)
            self._conservation.remove(model)
            self._evictions.remove(model)
            for reason in self._reasons:
                self._refused.remove(model, reason)

    def load(self, ok: bool) -> None:
        """A version was loaded, or could not be."""
        self._loads.labels("ok" if ok else "failed").inc()

    def queue(self, model: str, rows: int, nbytes: int) -> None:
        """How much of a model's work is in the server now."""
        with self._lock:
            if model in self._models:
                self._rows.labels(model).set(rows)
                self._bytes.labels(model).set(nbytes)

    def run(
        self, model: str, waited: float, ran: float, rows: int, requests: int = 1, explains: bool | float = False
    ) -> None:
        """A run ended: mean seconds in the queue, seconds in onnxruntime, rows and requests that shared it.

        explains: it was of an explanation graph.
        """
        with self._lock:
            if model in self._models:
                kind = KINDS[bool(explains)]
                self._queued.labels(model, kind).observe(waited)
                self._computed.labels(model, kind).observe(ran)
                self._batch.labels(model, kind).observe(rows)
                name, version = _name(model, bool(explains)), self._models[model]
                self._triton.run(name, version, waited, ran, rows, requests)

    def request(self, model: str, explains: bool, code: str, seconds: float) -> None:
        """A request of a model ended with a code of gRPC. explains: an explanation was asked for."""
        with self._lock:
            if model in self._models:
                self._codes.add(code)
                self._requests.labels(model, KINDS[explains], code).inc()
                self._request_seconds.labels(model, KINDS[explains]).observe(seconds)
                self._triton.request(_name(model, explains), self._models[model], code == "OK", seconds)

    def conserved(self, model: str, error: float) -> None:
        """The conservation error of an explanation."""
        with self._lock:
            if model in self._models:
                self._conservation.labels(model).observe(error)

    def refused(self, model: str, reason: str) -> None:
        """A request was turned away; reason: a word of ours, such as rows, bytes, deadline, draining."""
        with self._lock:
            self._reasons.add(reason)
            self._refused.labels(model if model in self._models else "", reason).inc()

    def held(self, kind: str, nbytes: int) -> None:
        """What is held of clients' data; kind: of MemoryLedger's."""
        with self._lock:
            self._client_bytes.labels(kind).set(nbytes)

    def count_dropped_lines(self, count: Callable[[], int]) -> None:
        """Show how many lines of the log could not be written."""
        self.registry.register(_Counted("onnxplain_log_lines_dropped", "Lines of the log that were lost.", count))

    def sessions(self, nbytes: int) -> None:
        """What the open sessions hold."""
        self._sessions.set(nbytes)

    def sessions_budget(self, nbytes: int) -> None:
        """What the open sessions may hold."""
        self._budget.set(nbytes)

    def models_held(self, nbytes: int) -> None:
        """What lazy models hold."""
        self._lazy.set(nbytes)

    def evicted(self, model: str) -> None:
        """A lazy model was put out of memory."""
        with self._lock:
            if model in self._models:
                self._evictions.labels(model).inc()

    def restarted(self) -> None:
        """A worker process died and was started again."""
        self._restarts.inc()


def _name(model: str, explains: bool) -> str:
    """What clients of the Open Inference Protocol call it."""
    return f"{model}.explain" if explains else model


class _Counted(Collector):
    """A counter whose value is asked for."""

    def __init__(self, name: str, text: str, count: Callable[[], int]):
        self._name, self._text, self._count = name, text, count

    def collect(self) -> Iterator[Metric]:
        """Its one sample."""
        yield CounterMetricFamily(self._name, self._text, self._count())


class MethodCounts:
    """What is counted of one method, its labels looked up once."""

    __slots__ = ("_codes", "_handled", "_labels", "handling", "started")

    def __init__(self, metrics: Metrics, labels: tuple[str, str, str]) -> None:
        self.started = metrics.started.labels(*labels)
        self.handling = metrics.handling.labels(*labels)
        self._handled, self._labels = metrics.handled, labels
        self._codes: dict[str, Counter] = {}

    def ended(self, code: str, seconds: float) -> None:
        """A call ended with a code, so many seconds after it began."""
        counter = self._codes.get(code)
        if counter is None:
            counter = self._codes[code] = self._handled.labels(*self._labels, code)
        counter.inc()
        self.handling.observe(seconds)
