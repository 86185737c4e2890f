"""Laws of GET /metrics: what it says, to whom, and who cannot hold it up."""

from __future__ import annotations

import asyncio
import http.client
import socket
import ssl
import time
from contextlib import closing

import certificates
import grpc
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from running import MODELS, free_port, in_process_server
from service.rpc import explain, explain_request, infer, infer_request

from onnxplain import errors
from onnxplain.server.options import ServerOptions
from onnxplain.server.telemetry import endpoint
from onnxplain.server.telemetry.endpoint import CONNECTIONS, MetricsEndpoint, scrapers_token
from onnxplain.server.telemetry.metrics import Metrics
from onnxplain.server.tokens import Tokens
from onnxplain.sources import FileSource

ONE, TWO = "a-token-of-the-tests-0123456789", "another-token-of-the-tests-0123"


def scraped(port: int, context: ssl.SSLContext | None = None, token: str = "") -> tuple[int, str]:
    made = http.client.HTTPConnection if context is None else http.client.HTTPSConnection
    more = {} if context is None else {"context": context}
    with closing(made("localhost", port, timeout=10, **more)) as connection:
        connection.request("GET", "/metrics", headers={"Authorization": f"Bearer {token}"} if token else {})
        reply = connection.getresponse()
        return reply.status, reply.read().decode()


def test_metrics_are_served_until_stopped_and_the_process_is_among_them():
    metrics, port = Metrics(), free_port()
    metrics.sessions(12345)
    found = MetricsEndpoint(metrics.registry, "127.0.0.1", port)
    status, text = scraped(port)
    names = {family.name for family in text_string_to_metric_families(text)}
    assert status == 200 and "onnxplain_sessions_bytes 12345.0" in text
    assert {"process_resident_memory_bytes", "process_open_fds", "process_start_time_seconds", "python_info"} <= names
    with pytest.raises(errors.Unavailable, match="--metrics-port"):
        MetricsEndpoint(metrics.registry, "127.0.0.1", port)
    found.stop()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=1).close()


def test_a_token_is_asked_for_as_soon_as_the_file_names_the_scope(tmp_path):
    file = tmp_path / "tokens.toml"
    file.write_text(f'[tokens.a]\ntoken = "{ONE}"\nscopes = ["infer"]\n')
    file.chmod(0o600)
    port, metrics = free_port(), Metrics()
    found = MetricsEndpoint(metrics.registry, "127.0.0.1", port, admit=scrapers_token(Tokens(file)))
    assert scraped(port)[0] == 200
    found.stop()
    file.write_text(file.read_text() + f'[tokens.scraper]\ntoken = "{TWO}"\nscopes = ["metrics"]\n')
    found = MetricsEndpoint(metrics.registry, "127.0.0.1", port, admit=scrapers_token(Tokens(file)))
    assert scraped(port)[0] == 401
    assert scraped(port, token=ONE)[0] == 403 and "metrics" in scraped(port, token=ONE)[1]
    assert scraped(port, token=TWO)[0] == 200
    found.stop()


def test_the_server_s_certificate_is_shown_and_the_next_one_when_it_is_replaced(tmp_path):
    root, port = certificates.authority(), free_port()
    first, second = (certificates.signed(root, "localhost") for _ in range(2))
    cert, key = first.write(tmp_path, "server")
    context = ssl.create_default_context(cadata=root.pem.decode())
    context.verify_flags &= ~getattr(ssl, "VERIFY_X509_STRICT", 0)
    found = MetricsEndpoint(Metrics().registry, "127.0.0.1", port, tls=(cert, key, None))
    assert scraped(port, context)[0] == 200
    cert.write_text("nonsense")
    time.sleep(1.2)  # it looks twice a second
    assert scraped(port, context)[0] == 200  # by the last good one
    second.write(tmp_path, "server")
    time.sleep(1.2)
    with (
        socket.create_connection(("localhost", port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as tls,
    ):
        shown = ssl.DER_cert_to_PEM_cert(tls.getpeercert(True) or b"")
    assert shown.split() == second.pem.decode().split()
    found.stop()


def test_who_holds_the_line_holds_up_nobody_and_is_let_go(monkeypatch):
    monkeypatch.setattr(endpoint, "SECONDS", 1.0)
    port = free_port()
    found = MetricsEndpoint(Metrics().registry, "127.0.0.1", port)
    silent = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(3 * CONNECTIONS)]
    begun = time.monotonic()
    for connection in silent:
        with connection:
            try:
                assert connection.recv(1) == b""
            except ConnectionResetError:
                continue
    assert time.monotonic() - begun < 8
    assert scraped(port)[0] == 200
    found.stop()


def test_requests_are_counted_by_model_kind_and_code_in_this_process_and_in_workers():
    async def main(isolate: bool):
        options = ServerOptions(port=0, metrics_port=0, isolate=isolate)
        source = FileSource(MODELS / "iris_mlp" / "1" / "model.onnx")
        async with in_process_server(options, [source]) as server:
            (name,) = server.repository.names()
            async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
                x = {"X": np.ones((2, 4), np.float32)}
                await infer(channel)(infer_request(name, x))
                await infer(channel)(infer_request(f"{name}.explain", x))
                await explain(channel)(explain_request(name, x))
                with pytest.raises(grpc.aio.AioRpcError):
                    await explain(channel)(explain_request(name, x, "99"))

            def value(metric: str, **labels: str) -> float | None:
                return server.metrics.registry.get_sample_value(metric, {"model": name, **labels})

            counts = {
                (kind, code): value("onnxplain_requests_total", kind=kind, code=code)
                for kind, code in (("infer", "OK"), ("explain", "OK"), ("explain", "INVALID_ARGUMENT"))
            }
            assert counts == {("infer", "OK"): 1, ("explain", "OK"): 2, ("explain", "INVALID_ARGUMENT"): 1}
            assert value("onnxplain_request_seconds_count", kind="explain") == 3
            async with asyncio.timeout(5):  # a worker's reports come behind its answers
                while not (value("onnxplain_batch_rows_sum", kind="explain") or 0) >= 4:
                    await asyncio.sleep(0.01)
            assert value("onnxplain_batch_rows_sum", kind="infer") >= 2

    asyncio.run(main(False))
    asyncio.run(main(True))
