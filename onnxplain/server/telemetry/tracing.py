"""Spans for OpenTelemetry, where it is installed (onnxplain[telemetry]) and somebody collects them."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

LOG = logging.getLogger(__name__)
ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
EXPORTER = "opentelemetry.exporter.otlp.proto.grpc.trace_exporter"
EXPORT_SECONDS = 5  # that a collector has for a batch
SPANS = 2048  # that wait; those beyond are dropped
NAMED = ("model", "version", "rows", "recipe")  # fields of a call that become attributes
CLIENT_FAULTS = {"INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "OUT_OF_RANGE", "ALREADY_EXISTS"}
CLIENT_FAULTS |= {"PERMISSION_DENIED", "UNAUTHENTICATED", "RESOURCE_EXHAUSTED", "CANCELLED", "ABORTED", "OK"}
Metadata = Iterable[tuple[str, str | bytes]]


class Tracing:
    """Makes one span per call. tracer: of OpenTelemetry's SDK. close: sends what is left."""

    def __init__(self, tracer: Tracer, close: Callable[[], None] = lambda: None):
        self._tracer, self.close = tracer, close

    def start(self, service: str, method: str, metadata: Metadata, request_id: str) -> Span:
        """A span of the server, child of the caller's `traceparent` if the metadata has one."""
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        headers = {key: str(value) for key, value in metadata if key in ("traceparent", "tracestate")}
        return self._tracer.start_span(
            f"{service}/{method}",
            context=TraceContextTextMapPropagator().extract(headers),
            kind=SpanKind.SERVER,
            attributes={
                "rpc.system": "grpc",
                "rpc.service": service,
                "rpc.method": method,
                "onnxplain.request_id": request_id,
            },
        )

    def end(self, span: Span, code: str, number: int, fields: dict[str, object]) -> None:
        """Close a span with the call's code and what the service learned."""
        from opentelemetry.trace import StatusCode

        span.set_attribute("rpc.grpc.status_code", number)
        for key in NAMED:
            value = fields.get(key)
            if value is not None:
                span.set_attribute(f"onnxplain.{key}", value if isinstance(value, int) else str(value)[:256])
        if code not in CLIENT_FAULTS:  # of a server only what is its own fault is an error, say the conventions
            span.set_status(StatusCode.ERROR, code)
        span.end()


def tracing() -> Tracing | None:
    """Spans go to the provider that the embedding program set, else to $OTEL_EXPORTER_OTLP_ENDPOINT, else nowhere."""
    wanted = any(os.environ.get(name) for name in ENDPOINTS)
    wanted = wanted and os.environ.get("OTEL_SDK_DISABLED", "").lower() != "true"
    if not wanted and "opentelemetry.trace" not in sys.modules:  # nobody can have set one; the import takes its time
        return None
    try:
        from opentelemetry import trace
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        if wanted:
            LOG.warning("no traces are sent: run pip install 'onnxplain[telemetry]'")
        return None
    provider = trace.get_tracer_provider()
    if isinstance(provider, TracerProvider):
        return Tracing(provider.get_tracer("onnxplain"))
    if not wanted:
        return None
    try:
        exporter = importlib.import_module(EXPORTER).OTLPSpanExporter(timeout=EXPORT_SECONDS)
    except ImportError:
        LOG.warning("no traces are sent: run pip install 'onnxplain[telemetry]'")
        return None
    name = os.environ.get("OTEL_SERVICE_NAME", "onnxplain")
    # The server closes it in bounded time; at Python's exit it would wait for a collector that hangs.
    own = TracerProvider(resource=Resource.create({"service.name": name}), shutdown_on_exit=False)
    own.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=SPANS))
    return Tracing(own.get_tracer("onnxplain"), own.shutdown)
