"""Laws of every HTTP endpoint: the guard, the limits and the faults of the gRPC method it stands for."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
import json
import re
import shutil
import socket
import ssl
import threading
import time

import numpy as np
import pytest
from certificates import authority, signed
from intercepted import SECRET
from over_http import served
from running import MODELS
from service.nets import any_length, store
from service.nets import work as work_model
from service.process import eventually

import onnxplain.errors
from onnxplain.errors import OnnxplainError, Unavailable
from onnxplain.server import grpc_status
from onnxplain.server.http import connection
from onnxplain.server.http.errors import STATUS, error_reply
from onnxplain.server.http.pages import EVERYTHING
from onnxplain.server.options import ServerOptions
from onnxplain.server.tokens import METHOD_SCOPES
from onnxplain.sources import DirectorySource

WORK = "/v2/models/work/infer"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name, make in (("work", work_model), ("any_length", any_length)):
        store(make(), folder, name)
    shutil.copytree(MODELS / "iris_mlp", folder / "iris_mlp", ignore=shutil.ignore_patterns("samples"))
    return DirectorySource(folder)


@pytest.fixture(scope="module")
def rest(models):
    with served([models]) as server:
        yield server


@pytest.fixture(scope="module")
def guarded(models, tmp_path_factory):
    file = tmp_path_factory.mktemp("tokens") / "tokens.toml"
    digest = hashlib.sha256(SECRET.encode()).hexdigest()
    file.write_text(f'[tokens.ann]\nsha256 = "{digest}"\nscopes = ["infer"]\n')
    with served([models], token_file=file) as server:
        yield server


def work(steps: int) -> dict:
    x = np.ones((1, 1, 256), np.float32)
    return {
        "inputs": [
            {"name": "x", "datatype": "FP32", "shape": [1, 1, 256], "data": x.tolist()},
            {"name": "steps", "datatype": "INT64", "shape": [], "data": steps},
        ]
    }


def address(endpoint) -> str:
    return re.sub(r"\{version\}", "1", re.sub(r"\{model\}", "iris_mlp", endpoint.path))


def handled(rest, method: str, code: str) -> float:
    labels = {"grpc_type": "http", "grpc_service": "inference.GRPCInferenceService", "grpc_method": method}
    registry = rest.server.metrics.registry
    return registry.get_sample_value("grpc_server_handled_total", {**labels, "grpc_code": code}) or 0.0


def errors(base=OnnxplainError):
    yield base
    for found in base.__subclasses__():
        yield from errors(found)


def head(port, verb, path, *lines):
    connected = socket.create_connection(("127.0.0.1", port), timeout=20)
    connected.sendall("\r\n".join([f"{verb} {path} HTTP/1.1", "host: here", *lines, "", ""]).encode())
    return connected


@pytest.mark.parametrize("endpoint", EVERYTHING, ids=lambda e: f"{e.verb} {e.path}")
def test_every_endpoint_stands_for_a_method_with_a_scope(endpoint):
    assert endpoint.name in METHOD_SCOPES and endpoint.summary
    assert len([e for e in EVERYTHING if (e.verb, e.path) == (endpoint.verb, endpoint.path)]) == 1


@pytest.mark.parametrize("endpoint", EVERYTHING, ids=lambda e: f"{e.verb} {e.path}")
def test_every_endpoint_asks_for_its_scope_before_it_reads(guarded, endpoint):
    scope = METHOD_SCOPES[endpoint.name]
    with head(guarded.port, endpoint.verb, address(endpoint), "content-length: 1000000") as connected:
        if endpoint.body:
            status = connected.recv(100).split()[1]
            assert status == b"401"
    answer = guarded.ask(endpoint.verb, address(endpoint))
    if scope is None:
        assert answer.status in (200, 303)
        return
    assert answer.status == 401 and answer.headers["www-authenticate"] == "Bearer"
    answer = guarded.ask(endpoint.verb, address(endpoint), headers={"authorization": f"Bearer {SECRET}"})
    assert (answer.status == 403) == (scope != "infer")


@pytest.mark.parametrize("status", sorted({error.status for error in errors()} | set(STATUS) - {"OK"}))
def test_every_fault_has_its_status(status):
    error = OnnxplainError("one line")
    error.status = status
    reply = error_reply(error)
    assert reply.status == STATUS[status] >= 400
    body = json.loads(reply.body)
    assert body["error"] == "one line" and body["code"] == status
    told = grpc_status.status_of(error)
    assert len(body["details"]) == len(told.details)
    assert ("retry-after" in reply.headers) == any("RetryInfo" in detail.type_url for detail in told.details)


def test_what_nobody_expected_is_told_by_its_log_id_only(caplog):
    reply = error_reply(RuntimeError("secret at /home/somebody/key.pem"))
    assert reply.status == 500 and b"secret" not in reply.body
    assert re.search(rb"log id ([0-9a-f]{16})", reply.body)[1].decode() in str(caplog.records[0].fields)


def test_every_error_class_is_one_that_http_knows():
    assert {error.status for error in errors()} <= set(STATUS)
    assert onnxplain.errors.Busy.status == "RESOURCE_EXHAUSTED" and STATUS["RESOURCE_EXHAUSTED"] == 429


def test_addresses_and_verbs_that_there_are_not(rest):
    for path in ("/v3", "/v2/", "/v2/models//ready", "/v2/models/a/b/c", "/v2/models/%2e%2e%2f/ready", "/%00"):
        assert rest.ask("GET", path).status == 404
    answer = rest.ask("DELETE", "/v2/models/iris_mlp")
    assert answer.status == 405 and answer.headers["allow"] == "GET, HEAD"


def test_what_is_no_request_is_told_as_json(rest):
    with socket.create_connection(("127.0.0.1", rest.port), timeout=10) as connected:
        connected.sendall(b"no request at all\r\n\r\n")
        top, _, body = connected.makefile("rb").read().partition(b"\r\n\r\n")
    assert b" 400 " in top and json.loads(body)["code"] == "INVALID_ARGUMENT"


def test_a_request_keeps_its_id_and_is_counted(rest):
    before = handled(rest, "ServerMetadata", "OK")
    assert rest.ask("GET", "/v2", headers={"x-request-id": "mine-7"}).headers["x-request-id"] == "mine-7"
    assert rest.ask("GET", "/v2", headers={"x-request-id": "no id\x7f"}).headers["x-request-id"] != "no id"
    after = handled(rest, "ServerMetadata", "OK")
    assert after == before + 2


def test_the_clients_time_is_kept(rest):
    began = time.monotonic()
    answer = rest.ask("POST", WORK, work(10**6), {"x-request-timeout": "0.3"})
    assert answer.status == 504 and time.monotonic() - began < 10
    assert rest.ask("POST", WORK, work(1), {"x-request-timeout": "20"}).status == 200
    for wrong in ("-1", "x", "nan", "inf", "0"):
        assert rest.ask("POST", WORK, work(1), {"x-request-timeout": wrong}).status == 400


def test_the_servers_time_is_kept_for_body_and_work(models):
    with served([models], max_request_seconds=0.5) as server:
        assert server.ask("POST", WORK, work(10**6)).status == 504
        with head(server.port, "POST", WORK, "content-length: 10") as connected:
            connected.sendall(b"{")
            began = time.monotonic()
            assert connected.recv(100).split()[1] == b"504" and time.monotonic() - began < 10


def test_a_client_that_goes_away_takes_its_work_with_it(rest):
    before, body = handled(rest, "ModelInfer", "CANCELLED"), json.dumps(work(10**6)).encode()
    admission = {s.name: s for s in rest.server.repository.served()}["work"].model.admission
    with head(rest.port, "POST", WORK, f"content-length: {len(body)}") as connected:
        connected.sendall(body)
        assert eventually(lambda: admission.rows > 0, 10)
    assert eventually(lambda: admission.rows == 0, 10)
    assert eventually(lambda: handled(rest, "ModelInfer", "CANCELLED") == before + 1, 5)


def test_bodies_have_a_limit_by_what_they_say_and_by_what_they_are(models):
    with served([models], max_message_bytes=20_000) as server:
        with head(server.port, "POST", WORK, "content-length: 20001") as connected:
            assert connected.recv(100).split()[1] == b"413"
        with head(server.port, "POST", WORK, "transfer-encoding: chunked") as connected:
            connected.sendall(b"4000\r\n" + b" " * 0x4000 + b"\r\n" + b"4000\r\n" + b" " * 0x4000 + b"\r\n")
            assert connected.recv(100).split()[1] == b"413"
        answer = server.ask("POST", WORK, b" " * 6000)
        assert answer.status == 413 and "binary" in answer.error
        assert server.server.memory.nbytes == 0


@pytest.mark.parametrize("way", ["blanks in front", "a head that is said and not there", "packed", "another coding"])
def test_what_becomes_of_a_body_is_booked_however_it_is_written(models, way):
    """Numbers of JSON take many times their bytes as objects, and what is packed takes more than came."""
    with served([models], max_message_bytes=1_000_000) as server:
        memory = server.server.memory
        memory.budget = 1_000_000
        content, headers, path = b"[" + b"0," * 90_000 + b"0]", {}, WORK
        if way == "blanks in front":
            content = b" \n" * 100 + content
        elif way == "another coding":
            content = content[:80_000].decode().encode("utf-16")
        elif way == "packed":
            memory.budget = 200_000
            content, headers = gzip.compress(b"\0" * 900_000), {"content-encoding": "gzip"}
        else:
            headers = {"inference-header-content-length": "0"}
            path = f"/v1/models/{WORK.split('/')[3]}:predict"
        answer = server.ask("POST", path, content, headers)
        if way == "another coding":
            assert answer.status == 400 and "not JSON" in answer.error
        else:
            assert answer.status == 429 and "--memory-budget" in answer.error
        assert eventually(lambda: memory.nbytes == 0, 5)


def test_bodies_that_come_slowly_do_not_add_up(models):
    with served([models], max_message_bytes=100_000) as server:
        memory = server.server.memory
        memory.budget = 150_000
        with head(server.port, "POST", WORK, "content-length: 90000") as waiting:
            waiting.sendall(b" " * 80_000)
            assert eventually(lambda: memory.nbytes == 80_000, 5)
            answer = server.ask("POST", WORK, b" " * 75_000)
            assert answer.status == 429 and int(answer.headers["retry-after"]) >= 1
        assert eventually(lambda: memory.nbytes == 0, 5)
        assert server.ask("POST", WORK, work(1)).status == 200
        assert eventually(lambda: memory.nbytes == 0, 5)  # the reply is booked until it is sent


@pytest.mark.parametrize("sent", [b"", b"POST / HTTP/1.1\r\nhost: he", b"x"])
def test_a_connection_that_says_nothing_is_closed(rest, monkeypatch, sent):
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.3)
    with socket.create_connection(("127.0.0.1", rest.port), timeout=10) as connected:
        connected.sendall(sent)
        with contextlib.suppress(ConnectionResetError):
            assert connected.recv(10) == b""


def test_a_body_that_nobody_reads_does_not_hold_a_connection(guarded, monkeypatch):
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.3)
    with head(guarded.port, "POST", WORK, "content-length: 1000000") as connected:
        assert connected.recv(1000).split()[1] == b"401"
        began = time.monotonic()
        with pytest.raises(OSError):
            while time.monotonic() - began < 10:
                connected.sendall(b" ")
                time.sleep(0.05)


def test_connections_are_bounded(models):
    with served([models], max_connections=3) as rest, contextlib.ExitStack() as several:
        for _ in range(3):
            several.enter_context(socket.create_connection(("127.0.0.1", rest.port)))
        fourth = several.enter_context(socket.create_connection(("127.0.0.1", rest.port), timeout=10))
        top, _, body = fourth.makefile("rb").read().partition(b"\r\n\r\n")
        assert b" 503 " in top and json.loads(body)["code"] == "UNAVAILABLE"
        assert f"content-length: {len(body)}".encode() in top
        several.close()
        assert eventually(lambda: rest.ask("GET", "/v2").status == 200, 5)


def test_a_reader_that_reads_nothing_is_cut_off(models):
    """An answer of 40 MB, of which the client takes none."""
    with served([models], max_request_seconds=5.0) as server:
        shape = [1, 5_000_000]
        top = json.dumps(
            {
                "inputs": [
                    {"name": "x", "datatype": "FP32", "shape": shape, "parameters": {"binary_data_size": 20_000_000}}
                ],
                "parameters": {"binary_data_output": True},
            }
        ).encode()
        path, length = "/v2/models/any_length/infer", len(top) + 20_000_000
        lines = [f"content-length: {length}", f"inference-header-content-length: {len(top)}"]
        with head(server.port, "POST", path, *lines) as connected:
            connected.sendall(top + bytes(20_000_000))
            assert eventually(lambda: not server.server.http.connections, 40)


def test_pages_of_others_may_not_act(models):
    with served([models]) as server:
        for origin, status in (
            ("https://evil.example", 403),
            ("null", 403),
            ("http://[", 403),
            (f"http://127.0.0.1:{server.port}", 200),
        ):
            assert server.ask("POST", WORK, work(1), {"origin": origin}).status == status
        assert "access-control-allow-origin" not in server.ask("GET", "/v2", headers={"origin": "https://a.b"}).headers
    with served([models], http_cors=("https://good.example",)) as server:
        answer = server.ask("POST", WORK, work(1), {"origin": "https://good.example"})
        assert answer.status == 200 and answer.headers["access-control-allow-origin"] == "https://good.example"
        assert server.ask("POST", WORK, work(1), {"origin": "https://evil.example"}).status == 403
        asked = {"origin": "https://good.example", "access-control-request-method": "POST"}
        asked["access-control-request-headers"] = "authorization,content-type"
        assert server.ask("OPTIONS", WORK, headers=asked).status == 200


@pytest.mark.parametrize("origin", ["*", "https://a.example/", "a.example", "https://A.example", "null"])
def test_an_origin_that_no_browser_sends_is_refused_at_the_start(origin):
    with pytest.raises(onnxplain.errors.UsageError, match="--http-cors"):
        ServerOptions(http_cors=(origin,))
    ServerOptions(http_cors=("https://a.example", "http://[::1]:8080", "http://localhost:3000"))


def test_drain_refuses_new_work_and_finishes_what_is_answered(models):
    with served([models]) as server:
        found = []
        thread = threading.Thread(target=lambda: found.append(server.ask("POST", WORK, work(4000))))
        thread.start()
        admission = {s.name: s for s in server.server.repository.served()}["work"].model.admission
        assert eventually(lambda: admission.rows > 0, 10)
        server.loop.call_soon_threadsafe(server.server._guard.calls.drain)
        assert eventually(lambda: server.server._guard.draining, 5)
        answer = server.ask("POST", WORK, work(1))
        assert answer.status == 503 and int(answer.headers["retry-after"]) >= 1
        assert server.ask("GET", "/v2/health/live").status == 200
        asyncio.run_coroutine_threadsafe(server.server.http.stop(20), server.loop).result(30)
        thread.join(30)
        assert found[0].status == 200
        with pytest.raises(OSError):
            server.ask("GET", "/v2")


def test_a_second_signal_ends_what_is_answered(models):
    with served([models]) as server:
        found = []

        def ask():
            try:
                found.append(server.ask("POST", WORK, work(10**6)).status)
            except OSError:
                found.append("cut")

        thread = threading.Thread(target=ask)
        thread.start()
        admission = {s.name: s for s in server.server.repository.served()}["work"].model.admission
        assert eventually(lambda: admission.rows > 0, 10)
        stopping = asyncio.run_coroutine_threadsafe(server.server.http.stop(60), server.loop)
        time.sleep(0.3)
        asyncio.run_coroutine_threadsafe(server.server.http.stop(0), server.loop).result(10)
        stopping.result(10)
        thread.join(10)
        assert found in (["cut"], [503])


def test_small_answers_are_sent_at_once(rest):
    """Nagle's algorithm would keep the second packet of each for 40 ms."""
    with socket.create_connection(("127.0.0.1", rest.port)):
        state = rest.server.http._server.server_state
        assert eventually(lambda: state.connections, 5)
        for connected in list(state.connections):
            raw = connected.transport.get_extra_info("socket")
            assert raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_taken_port_is_said(models, rest):
    with pytest.raises(onnxplain.errors.InputError, match="--http-port"), served([models], http_port=rest.port):
        pass


def test_tls_with_certificates_that_are_replaced(models, tmp_path):
    ca = authority("ours")
    cert, key = signed(ca, "localhost").write(tmp_path, "server")
    (tmp_path / "ca.pem").write_bytes(ca.pem)
    mine = signed(ca, "client.example").write(tmp_path, "client")

    def shown(port, own=None):
        context = ssl.create_default_context(cafile=tmp_path / "ca.pem")
        if own:
            context.load_cert_chain(*own)
        raw = socket.create_connection(("127.0.0.1", port), timeout=10)
        with raw, context.wrap_socket(raw, server_hostname="localhost") as secure:
            secure.sendall(b"GET /v2/models/iris_mlp HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
            return secure.makefile("rb").read().split()[1], secure.getpeercert()["serialNumber"]

    with served([models], tls_cert=cert, tls_key=key) as server:
        status, first = shown(server.port)
        assert status == b"200" and shown(server.port)[1] == first
        signed(ca, "localhost").write(tmp_path, "server")
        status, second = shown(server.port)
        assert status == b"200" and second != first
        cert.write_text("rubbish")
        assert shown(server.port)[1] == second
    cert, key = signed(ca, "localhost").write(tmp_path, "server")
    with served([models], tls_cert=cert, tls_key=key, tls_ca=tmp_path / "ca.pem") as server:
        assert shown(server.port, mine)[0] == b"200"
        with pytest.raises((OSError, ValueError, IndexError)):  # a client learns of it when it reads
            shown(server.port)


def test_unavailable_is_worth_another_try():
    assert error_reply(Unavailable("loading")).headers["retry-after"] == "1"
