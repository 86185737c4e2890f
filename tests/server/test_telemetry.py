"""Laws of what is written down: logs, metrics, traces."""

from __future__ import annotations

import asyncio
import json
import logging

import grpc
import pytest
from intercepted import (
    COMPILE,
    EXPLAIN,
    LIVE,
    counted,
    eventually,
    intercepted,
    log,
    refused,
)
from prometheus_client import generate_latest

from onnxplain.server.guard import Guard
from onnxplain.server.rpc.interceptor import Interceptor
from onnxplain.server.telemetry.logs import NAME
from onnxplain.server.telemetry.metrics import Metrics
from onnxplain.server.telemetry.tracing import Tracing, tracing


def test_calls_are_logged_with_what_the_service_learned():
    async def main():
        with log() as stream:
            async with intercepted() as (_, channel, metrics):
                await channel.unary_unary(EXPLAIN)(b"x", metadata=[("x-request-id", "abc")])
                await refused(channel.unary_unary(EXPLAIN)(b"fail"))
                await channel.unary_unary(LIVE)(b"x")
                await eventually(lambda: counted(metrics, method="ServerLive") == 1)
        good, bad = [json.loads(line) for line in stream.getvalue().splitlines()]
        assert (
            good["event"] == "call" and good["request_id"] == "abc" and good["code"] == "OK" and good["model"] == "clf"
        )
        assert good["method"] == EXPLAIN and good["rows"] == 1 and good["ms"] > 0 and good["time"].endswith("Z")
        assert bad["code"] == "INVALID_ARGUMENT" and "no model" in bad["error"]

    asyncio.run(main())


EVIL = 'x\n2026-01-01T00:00:00Z INFO call code=OK\r\x1b[31m\u2028\u202e"} {" admin=yes ' + "y" * 10_000


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("name", [NAME, "onnxplain.sources", "grpc._cython.cygrpc"])
def test_no_value_can_forge_a_line(form, name):
    with log(form) as stream:
        logger = logging.getLogger(name)
        logger.warning(EVIL, extra={"fields": {"model": EVIL, "rows": 3, "none": None, "nan": float("nan")}})
        try:
            raise ValueError(EVIL)
        except ValueError:
            logger.exception("failed")
    lines = stream.getvalue().split("\n")[:-1]
    for line in lines:
        assert line.isprintable()
    if form == "json":
        first, second = map(json.loads, lines)
        assert len(first["model"]) <= 256 and first["rows"] == 3 and "none" not in first and first["nan"] == "nan"
        assert "ValueError" in second["trace"]
    else:
        records = [line for line in lines if not line.startswith("    | ")]
        assert len(records) == 2 and records[0].count(" admin=yes") == records[0].count(' {\\" admin=yes')


def test_calls_that_began_are_calls_that_ended():
    async def main():
        async with intercepted() as (_, channel, metrics):
            for _ in range(7):
                await channel.unary_unary(EXPLAIN)(b"x")
            for method in ("/nobody/Knows", "/onnxplain.v1.ExplainerService/Nothing"):
                error = await refused(channel.unary_unary(method)(b""))
                assert error.code() is grpc.StatusCode.UNIMPLEMENTED
            samples = [sample for family in metrics.registry.collect() for sample in family.samples]
            assert counted(metrics) == 7
            assert {s.labels["grpc_method"] for s in samples if "grpc_method" in s.labels} == {"Explain"}
            values = {s.name: s.value for s in samples if s.labels.get("grpc_method")}
            assert values["grpc_server_started_total"] == values["grpc_server_handling_seconds_count"] == 7

    asyncio.run(main())


def test_only_models_that_are_loaded_have_labels():
    metrics = Metrics()

    def observe(model):
        metrics.queue(model, 3, 100)
        metrics.run(model, 0.1, 0.2, 4)
        metrics.conserved(model, 1e-6)
        metrics.refused(model, "rows")
        metrics.request(model, True, "OK", 0.1)

    def models():
        samples = [s for family in metrics.registry.collect() for s in family.samples]
        return {s.labels["model"] for s in samples if "model" in s.labels}

    metrics.model_loaded("clf", 3)
    observe("clf")
    observe("never-heard-of")
    assert models() == {"clf", "clf.explain", ""}
    assert metrics.registry.get_sample_value("onnxplain_model_version", {"model": "clf"}) == 3
    metrics.model_gone("clf")
    metrics.model_gone("clf")
    observe("clf")
    assert models() == {""}


def test_triton_s_names_count_requests_rows_and_microseconds_by_the_name_that_clients_call():
    metrics = Metrics()
    metrics.model_loaded("clf", 3)
    metrics.run("clf", 0.5, 0.25, 8, requests=2)
    metrics.run("clf", 0.0, 1.0, 1, explains=True)
    metrics.request("clf", False, "OK", 2.0)
    metrics.request("clf", False, "OUT_OF_RANGE", 1.0)
    text = generate_latest(metrics.registry).decode()
    for line in (
        "nv_inference_request_success 1.0",
        "nv_inference_request_failure 1.0",
        "nv_inference_count 8.0",
        "nv_inference_exec_count 1.0",
        "nv_inference_request_duration_us 3e+06",
        "nv_inference_queue_duration_us 1e+06",
        "nv_inference_compute_infer_duration_us 500000.0",
    ):
        name, value = line.split()
        assert f'{name}{{model="clf",version="3"}} {value}' in text
    assert 'nv_inference_exec_count{model="clf.explain",version="3"} 1.0' in text


def test_a_span_per_call_under_the_callers():
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

    async def main():
        interceptor = Interceptor(Guard(Metrics(), tracing=Tracing(provider.get_tracer("test"))))
        async with intercepted(interceptor) as (_, channel, metrics):
            await channel.unary_unary(EXPLAIN)(b"x", metadata=[("traceparent", parent)])
            await refused(channel.unary_unary(EXPLAIN)(b"crash", metadata=[("traceparent", "nonsense")]))
            assert [r async for r in channel.unary_stream(COMPILE)(b"a b")] == [b"a", b"b"]
            await eventually(lambda: counted(metrics, "OK", "CompileGraph", "server_stream") == 1)

    asyncio.run(main())
    good, bad, stream = exporter.get_finished_spans()
    assert good.name == "onnxplain.v1.ExplainerService/Explain" and good.kind is trace.SpanKind.SERVER
    assert f"{good.parent.trace_id:032x}-{good.parent.span_id:016x}" == parent[3:-3]
    assert good.attributes["onnxplain.model"] == "clf" and good.attributes["rpc.grpc.status_code"] == 0
    assert bad.parent is None and bad.status.status_code is trace.StatusCode.ERROR
    assert bad.attributes["rpc.grpc.status_code"] == 13 and stream.attributes["onnxplain.rows"] == 1


def test_without_a_collector_nothing_is_traced(monkeypatch):
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    assert tracing() is None
