"""Laws of the guard: who may call, how a call ends, what clients are told and what is written down."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import io
import json
import logging
import os
import socket
import threading
import time
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from guarded import COLLECT, COMPILE, EXPLAIN, LIVE, STREAM, Echo, serving

from onnxplain import errors
from onnxplain.errors import Busy, Cancelled, Denied, Expired, InputError, OnnxplainError, Unauthenticated
from onnxplain.server import faults, tokens
from onnxplain.server.call import Call
from onnxplain.server.interceptor import Guard
from onnxplain.server.logs import NAME, set_up
from onnxplain.server.metrics import Metrics
from onnxplain.server.tokens import METHOD_SCOPES, SCOPES, Tokens, read_tokens, scope_of
from onnxplain.server.tracing import Tracing, tracing
from onnxplain.v1 import explainer_pb2
from onnxplain.wire import inference

ROOT = "/srv/models"
SECRET = "a-token-of-the-tests-0123456789"


def descendants(kind: type) -> list[type]:
    return [kind, *(deeper for child in kind.__subclasses__() for deeper in descendants(child))]


ERRORS = [kind for kind in descendants(OnnxplainError) if kind.__module__ == errors.__name__]


def make(kind: type, text: str) -> OnnxplainError:
    return kind("model", text, ["a"]) if kind is errors.UnknownName else kind(text)


def details(status: status_pb2.Status) -> dict[str, object]:
    """Details by the short name of their message."""
    found = {}
    for packed in status.details:
        kind = packed.TypeName().rpartition(".")[2]
        found[kind] = getattr(error_details_pb2, kind).FromString(packed.value)
    return found


@asynccontextmanager
async def guarded(guard: Guard | None = None, parse=None):
    """(echo, channel, metrics) of a server with our guard."""
    metrics = Metrics()
    echo = Echo()
    guard = guard or Guard(metrics, roots=[ROOT])
    async with serving(guard, echo.handlers(parse)) as address, grpc.aio.insecure_channel(address) as channel:
        yield echo, channel, guard._metrics


def counted(metrics: Metrics, code: str = "OK", method: str = "Explain", kind: str = "unary") -> float:
    service = "inference.GRPCInferenceService" if method == "ServerLive" else "onnxplain.v1.ExplainerService"
    labels = {"grpc_type": kind, "grpc_service": service, "grpc_method": method, "grpc_code": code}
    return metrics.registry.get_sample_value("grpc_server_handled_total", labels) or 0.0


async def refused(call) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def eventually(claim) -> None:
    """A client hears of the end before the server has written it down."""
    for _ in range(200):
        if claim():
            return
        await asyncio.sleep(0.01)
    assert claim()


@contextmanager
def log(form: str = "json"):
    stream = io.StringIO()
    loggers = [logging.getLogger(name) for name in ("onnxplain", "grpc")]
    before = [(one, one.level, one.propagate, list(one.handlers)) for one in loggers]
    set_up(form, logging.INFO, stream)
    try:
        yield stream
    finally:
        for one, level, propagate, handlers in before:
            one.level, one.propagate, one.handlers = level, propagate, handlers
            one.manager._clear_cache()


@pytest.fixture
def token_file(tmp_path):
    path = tmp_path / "tokens.toml"

    def write(text: str, mode: int = 0o600) -> Path:
        fresh = tmp_path / "new.toml"
        fresh.write_text(text)
        fresh.chmod(mode)
        fresh.replace(path)
        return path

    return write


# --- scopes and tokens


def every_method() -> list[str]:
    services = [
        inference.pool.FindServiceByName(inference.SERVICE),
        *explainer_pb2.DESCRIPTOR.services_by_name.values(),
        *health_pb2.DESCRIPTOR.services_by_name.values(),
        *reflection_pb2.DESCRIPTOR.services_by_name.values(),
    ]
    return [f"/{service.full_name}/{method.name}" for service in services for method in service.methods]


@pytest.mark.parametrize("method", every_method())
def test_every_method_of_every_service_has_a_scope(method):
    assert method in METHOD_SCOPES and METHOD_SCOPES[method] in (None, *SCOPES)


def test_a_method_that_is_not_listed_needs_the_most():
    assert scope_of("/grpc.channelz.v1.Channelz/GetServers") == "admin"


def test_a_token_lets_in_for_its_scopes_only(token_file):
    digest = hashlib.sha256(SECRET.encode()).hexdigest()
    path = token_file(
        f'[tokens.ann]\nsha256 = "{digest}"\nscopes = ["infer", "explain"]\n', 0o644
    )  # a digest may be read

    async def main():
        async with guarded(Guard(Metrics(), Tokens(path))) as (echo, channel, metrics):
            explain, compile_ = channel.unary_unary(EXPLAIN), channel.unary_stream(COMPILE)
            none = await refused(explain(b"x"))
            assert none.code() is grpc.StatusCode.UNAUTHENTICATED and "Bearer" in none.details()
            assert await explain(b"x", metadata=[("authorization", f"Bearer {SECRET}")]) == b"x"
            assert await explain(b"x", metadata=[("authorization", f"bearer  {SECRET}")]) == b"x"
            assert echo.calls[0].caller.name == "ann"
            for bad in (f"Bearer {SECRET}x", "Bearer ", SECRET, f"Basic {SECRET}", ""):
                error = await refused(explain(b"x", metadata=[("authorization", bad)]))
                assert error.code() is grpc.StatusCode.UNAUTHENTICATED
            twice = [("authorization", f"Bearer {SECRET}")] * 2
            assert (await refused(explain(b"x", metadata=twice))).code() is grpc.StatusCode.UNAUTHENTICATED
            denied = await refused(compile_(b"x", metadata=[("authorization", f"Bearer {SECRET}")]).read())
            assert denied.code() is grpc.StatusCode.PERMISSION_DENIED
            assert "'export'" in denied.details() and "infer, explain" in denied.details()
            assert await channel.unary_unary(LIVE)(b"probe") == b"probe"
            assert len(echo.calls) == 3 and counted(metrics, "UNAUTHENTICATED") >= 5

    asyncio.run(main())


def test_a_stranger_is_turned_away_before_his_message_is_read(token_file):
    path = token_file(f'[tokens.ann]\ntoken = "{SECRET}"\nscopes = ["explain"]\n')
    parsed = []

    async def main():
        async with guarded(Guard(Metrics(), Tokens(path)), parse=lambda raw: parsed.append(raw) or raw) as (
            _,
            channel,
            _m,
        ):
            error = await refused(channel.unary_unary(EXPLAIN)(bytes(32 * 2**20)))
            assert error.code() is grpc.StatusCode.UNAUTHENTICATED and not parsed

    asyncio.run(main())


def test_tokens_follow_their_file_and_the_last_good_ones_stay(token_file, monkeypatch, caplog):
    monkeypatch.setattr(tokens, "LOOK_SECONDS", 0.0)
    table = Tokens(token_file(f'[tokens.ann]\ntoken = "{SECRET}"\nscopes = ["infer"]\n'))
    token_file("[tokens.ann")
    assert table.caller([f"Bearer {SECRET}"]).name == "ann"
    assert "stay as they were" in caplog.text
    token_file(f'[tokens.bob]\ntoken = "{SECRET}2"\nscopes = ["admin"]\n')
    assert table.caller([f"Bearer {SECRET}2"]).name == "bob"
    with pytest.raises(Unauthenticated):
        table.caller([f"Bearer {SECRET}"])
    table.path.unlink()
    assert table.caller([f"Bearer {SECRET}2"]).name == "bob"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_tokens_that_others_can_read_are_refused(token_file, mode):
    with pytest.raises(InputError, match="chmod 600"):
        read_tokens(token_file(f'[tokens.ann]\ntoken = "{SECRET}"\nscopes = ["infer"]\n', mode))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x = 1",
        "[tokens]",
        "[tokens.a]\nscopes = ['infer']",
        f"[tokens.a]\ntoken = '{SECRET}'",
        f"[tokens.a]\ntoken = '{SECRET}'\nscopes = ['root']",
        f"[tokens.a]\ntoken = '{SECRET}'\nscopes = []",
        f"[tokens.a]\ntoken = '{SECRET}'\nsha256 = '{'0' * 64}'\nscopes = ['infer']",
        "[tokens.a]\ntoken = 'short'\nscopes = ['infer']",
        "[tokens.a]\ntoken = 'with spaces in the middle'\nscopes = ['infer']",
        "[tokens.a]\nsha256 = 'abc'\nscopes = ['infer']",
        "[tokens.a]\nsha256 = 7\nscopes = ['infer']",
        f"[tokens.a]\ntoken = '{SECRET}'\nscopes = ['infer']\nextra = 1",
        f"[tokens.a]\ntoken = '{SECRET}'\nscopes = ['infer']\n[tokens.b]\ntoken = '{SECRET}'\nscopes = ['infer']",
    ],
)
def test_a_wrong_token_file_is_one_line_that_never_shows_a_token(token_file, text):
    with pytest.raises(InputError) as caught:
        read_tokens(token_file(text))
    assert "\n" not in str(caught.value) and SECRET not in str(caught.value)


def test_require_names_what_the_caller_has():
    with pytest.raises(Denied, match=r"'admin'; it has: infer, explain"):
        tokens.Caller("ann", frozenset({"explain", "infer"})).require("admin")


# --- errors


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_every_error_has_its_code_and_its_details_and_no_path(kind):
    error = make(kind, f"cannot use {ROOT}/clf/1/model.onnx or '/home/me/my data/x' or\n/usr/lib/y").at(
        "inputs[0].shape"
    )
    status = faults.status_of(error, [ROOT])
    assert status.code == grpc.StatusCode[kind.status].value[0]
    assert status.message.isprintable()
    for secret in (ROOT, "/home", "my data/", "/usr"):
        assert secret not in str(status)
    found = details(status)
    match kind.status:
        case "INVALID_ARGUMENT":
            assert found["BadRequest"].field_violations[0].field == "inputs[0].shape"
        case "NOT_FOUND":
            assert found["ResourceInfo"].resource_type == "model"
        case "FAILED_PRECONDITION":
            assert len(found["PreconditionFailure"].violations) == 1
        case "UNAVAILABLE":
            assert found["RetryInfo"].retry_delay.ToTimedelta().total_seconds() == faults.RETRY_SECONDS
        case _:
            assert "ErrorInfo" not in found


def test_busy_says_when_to_come_back_and_nothing_where_that_never_helps():
    assert details(faults.status_of(Busy("full", retry=0.25)))["RetryInfo"].retry_delay.ToMilliseconds() == 250
    assert not faults.status_of(Busy("too large for any time", retry=0.0)).details


def test_a_model_that_is_blocked_has_one_violation_per_node_as_many_as_fit():
    error = errors.UnsupportedOp("no rule for 2 nodes")
    error.violations = {"/layer1/Conv": "no rule", "/layer2/Det": "no derivative"}
    found = details(faults.status_of(error))["PreconditionFailure"].violations
    assert [(v.subject, v.description) for v in found] == list(error.violations.items())
    error.violations = {f"node{i}": "no rule " * 20 for i in range(1000)}
    status = faults.status_of(error)
    assert 1 < len(details(status)["PreconditionFailure"].violations) < 1000
    assert status.ByteSize() <= faults.DETAILS_BYTES


@pytest.mark.parametrize("character", ["a", "é", "漢", "🦊", "%", "\x00", "\udc80", "\u2028", "\u202e", "\n"])
def test_any_text_reaches_the_client_as_one_bounded_line(character):
    async def main():
        async def fail(request, context):
            raise InputError("x" + character * 5000).at(character * 5000)

        handlers = {"Explain": grpc.unary_unary_rpc_method_handler(fail)}
        handler = grpc.method_handlers_generic_handler("onnxplain.v1.ExplainerService", handlers)
        async with serving(Guard(Metrics()), [handler]) as address, grpc.aio.insecure_channel(address) as channel:
            error = await refused(channel.unary_unary(EXPLAIN)(b""))
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert len(error.details()) <= faults.TEXT and error.details().isprintable()
            raw = dict(error.trailing_metadata())[faults.DETAILS]
            assert status_pb2.Status.FromString(raw).message == error.details()

    asyncio.run(main())


@pytest.mark.parametrize(
    "text, left",
    [
        ("node /layer1/layer1.0/conv1/Conv has no rule", None),
        ("models:/clf/3 and clf@champion and 1/2", None),
        ("read /srv/models/clf/1/model.onnx.", "read clf/1/model.onnx."),
        ("/srv/models is empty", "is empty"),
        ("/srv/models2/x stays under its own name", None),
        ("file:///srv/models/clf/1/model.onnx", "clf/1/model.onnx"),
        ("open('/tmp/a b/c.onnx')", "open('c.onnx')"),
        ("no /etc/passwd, no /proc/self/environ; (/usr/lib/x.so:1)", "no passwd, no environ; (x.so:1)"),
        ("config=/home/me/.onnxplain/x", "config=x"),
        (r"C:\Users\me\x.onnx is gone", "x.onnx is gone"),
    ],
)
def test_paths_of_this_machine_are_removed_and_names_of_nodes_are_not(text, left):
    kept = faults.scrub(text, [ROOT])
    if left is None:  # nothing of this machine in it, wherever the tests run
        assert kept == text or text.split("/")[1] in os.listdir("/")
    else:
        assert kept == left


def test_an_unexpected_error_is_an_id_that_is_in_the_log():
    async def main():
        with log() as stream:
            async with guarded() as (_, channel, metrics):
                error = await refused(channel.unary_unary(EXPLAIN)(b"crash"))
        assert error.code() is grpc.StatusCode.INTERNAL
        status = status_pb2.Status.FromString(dict(error.trailing_metadata())[faults.DETAILS])
        log_id = details(status)["ErrorInfo"].metadata["log_id"]
        assert error.details() == f"internal error; log id {log_id}" == status.message
        entry = next(e for e in map(json.loads, stream.getvalue().splitlines()) if e.get("log_id") == log_id)
        assert "secret at" in entry["trace"] and "RuntimeError" in entry["trace"]
        assert counted(metrics, "INTERNAL") == 1

    asyncio.run(main())


def test_bytes_that_are_no_message_are_the_clients_fault():
    async def main():
        parse = explainer_pb2.ExplainRequest.FromString
        async with guarded(parse=parse) as (_, channel, metrics):
            error = await refused(channel.unary_unary(EXPLAIN)(b"\xff\xff\xff"))
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT and counted(metrics, "INVALID_ARGUMENT") == 1

    asyncio.run(main())


def test_the_errors_of_a_task_group_keep_their_code():
    assert faults.code_of(ExceptionGroup("", [InputError("x")])) == "INVALID_ARGUMENT"
    assert faults.code_of(ExceptionGroup("", [InputError("x"), ValueError()])) == "INTERNAL"


# --- how calls go and end


def test_all_four_kinds_answer_and_fail_alike():
    async def main():
        async with guarded() as (_, channel, metrics):
            assert await channel.unary_unary(EXPLAIN)(b"a") == b"a"
            assert [reply async for reply in channel.unary_stream(COMPILE)(b"a b")] == [b"a", b"b"]
            written = channel.unary_stream("/onnxplain.v1.ExplainerService/ListRecipes")
            assert [reply async for reply in written(b"a b")] == [b"a", b"b"]
            assert await channel.stream_unary(COLLECT)(iter([b"a", b"b"])) == b"ab"
            assert [reply async for reply in channel.stream_stream(STREAM)(iter([b"a", b"b"]))] == [b"a", b"b"]
            for call in (
                channel.unary_unary(EXPLAIN)(b"fail"),
                channel.unary_stream(COMPILE)(b"fail").read(),
                written(b"fail").read(),
                channel.stream_unary(COLLECT)(iter([b"fail"])),
                channel.stream_stream(STREAM)(iter([b"fail"])).read(),
            ):
                error = await refused(call)
                assert error.code() is grpc.StatusCode.INVALID_ARGUMENT and "no model named 'x'" in error.details()
            for method, kind in (
                ("Explain", "unary"),
                ("CompileGraph", "server_stream"),
                ("GetExplainability", "client_stream"),
                ("ExplainStream", "bidi_stream"),
            ):
                await eventually(lambda m=method, k=kind: counted(metrics, "INVALID_ARGUMENT", m, k) == 1)
                assert counted(metrics, "OK", method, kind) == 1

    asyncio.run(main())


def test_what_a_handler_aborts_itself_is_counted_as_that():
    async def main():
        async with guarded() as (_, channel, metrics):
            error = await refused(channel.unary_unary(EXPLAIN)(b"abort"))
            assert (error.code(), error.details()) == (grpc.StatusCode.DATA_LOSS, "mine")
            await eventually(lambda: counted(metrics, "DATA_LOSS") == 1)

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["unary", "server_stream", "client_stream", "bidi_stream"])
def test_a_cancelled_call_ends_its_handler_and_its_work(kind):
    async def main():
        async with guarded() as (echo, channel, metrics):
            call, method = {
                "unary": lambda: (channel.unary_unary(EXPLAIN)(b"sleep"), "Explain"),
                "server_stream": lambda: (channel.unary_stream(COMPILE)(b"sleep"), "CompileGraph"),
                "client_stream": lambda: (channel.stream_unary(COLLECT)(iter([b"sleep"])), "GetExplainability"),
                "bidi_stream": lambda: (channel.stream_stream(STREAM)(iter([b"sleep"])), "ExplainStream"),
            }[kind]()
            waiting = asyncio.ensure_future(call.read() if kind in ("server_stream", "bidi_stream") else _wait(call))
            await eventually(lambda: echo.calls)
            call.cancel()
            await asyncio.wait([waiting])
            waiting.exception() if not waiting.cancelled() else None
            await eventually(lambda: counted(metrics, "CANCELLED", method, kind) == 1)
            assert echo.cancelled == 1 and echo.stopped == echo.calls and echo.calls[0].stopped
            with pytest.raises(Cancelled):
                echo.calls[0].check()

    asyncio.run(main())


async def _wait(call):
    return await call


def test_the_clients_deadline_ends_the_handler_and_counts_as_a_deadline():
    async def main():
        async with guarded() as (echo, channel, metrics):
            error = await refused(channel.unary_unary(EXPLAIN)(b"sleep", timeout=0.1))
            assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            await eventually(lambda: counted(metrics, "DEADLINE_EXCEEDED") == 1)
            assert echo.cancelled == 1 and echo.stopped
            with pytest.raises(Expired):
                echo.calls[0].check()

    asyncio.run(main())


@pytest.mark.parametrize("timeout", [None, 20])
@pytest.mark.parametrize("method", [EXPLAIN, COMPILE])
def test_the_server_has_a_deadline_of_its_own(timeout, method):
    async def main():
        async with guarded(Guard(Metrics(), max_request_seconds=0.1)) as (echo, channel, _):
            call = (
                channel.unary_unary(EXPLAIN)(b"sleep", timeout=timeout)
                if method == EXPLAIN
                else channel.unary_stream(COMPILE)(b"sleep", timeout=timeout).read()
            )
            error = await refused(call)
            assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and "--max-request-seconds" in error.details()
            assert echo.cancelled == 1 and echo.calls[0].stopped

    asyncio.run(main())


def test_a_message_that_never_comes_has_a_time_limit_too():
    async def main():
        async with guarded(Guard(Metrics(), max_request_seconds=0.1)) as (echo, channel, metrics):
            silent = channel.stream_unary(EXPLAIN)()  # for the server this method takes one message
            error = await refused(silent)
            assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and not echo.calls
            assert counted(metrics, "DEADLINE_EXCEEDED") == 1

    asyncio.run(main())


def test_of_many_calls_those_not_cancelled_are_answered_and_nothing_is_left():
    async def main():
        async with guarded() as (echo, channel, metrics):
            explain = channel.unary_unary(EXPLAIN)

            async def one(number):
                call = explain(b"sleep" if number % 2 else b"x")
                if number % 2:
                    await asyncio.sleep(0.001 * (number % 40))
                    call.cancel()
                try:
                    return await call
                except asyncio.CancelledError:
                    return None

            answers = await asyncio.gather(*(one(number) for number in range(300)))
            assert answers.count(b"x") == 150 == counted(metrics)

            def began():
                labels = ("unary", "onnxplain.v1.ExplainerService", "Explain")
                return metrics.started.labels(*labels)._value.get()

            await eventually(lambda: began() == 150 + counted(metrics, "CANCELLED"))
            await eventually(lambda: echo.cancelled == len(echo.stopped))

    asyncio.run(main())


def test_draining_refuses_new_work_and_lets_old_work_and_probes_go_on():
    async def main():
        guard = Guard(Metrics())
        async with guarded(guard) as (_echo, channel, metrics):
            stream = channel.stream_stream(STREAM)()
            await stream.write(b"1")
            assert await stream.read() == b"1"
            guard.draining = True
            error = await refused(channel.unary_unary(EXPLAIN)(b"x"))
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            status = status_pb2.Status.FromString(dict(error.trailing_metadata())[faults.DETAILS])
            assert "RetryInfo" in details(status)
            assert await channel.unary_unary(LIVE)(b"x") == b"x"
            await stream.write(b"2")
            assert await stream.read() == b"2"
            await stream.done_writing()
            assert metrics.registry.get_sample_value(
                "onnxplain_admission_refused_total", {"model": "", "reason": "draining"}
            )

    asyncio.run(main())


def test_health_can_be_watched_longer_than_a_request_may_take():
    async def main():
        servicer = health.aio.HealthServicer()
        await servicer.set("", health_pb2.HealthCheckResponse.SERVING)
        server = grpc.aio.server(interceptors=[Guard(Metrics(), max_request_seconds=0.05)])
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            watch = stub.Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            await asyncio.sleep(0.2)
            await servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            assert (await stub.Check(health_pb2.HealthCheckRequest())).status
            missing = await refused(stub.Check(health_pb2.HealthCheckRequest(service="nothing")))
            assert missing.code() is grpc.StatusCode.NOT_FOUND
            listed = await refused(stub.List(health_pb2.HealthListRequest()))
            assert listed.code() is grpc.StatusCode.UNIMPLEMENTED
            watch.cancel()
        await server.stop(None)

    asyncio.run(main())


@pytest.mark.parametrize(
    "given, kept", [("req-1.A_z", True), ("x" * 65, False), ("a b", False), ("a=1", False), ("", False)]
)
def test_a_plain_request_id_is_kept_and_any_other_replaced(given, kept):
    async def main():
        async with guarded() as (echo, channel, _):
            call = channel.unary_unary(EXPLAIN)(b"x", metadata=[("x-request-id", given)])
            await call
            found = echo.calls[0].request_id
            assert (found == given) is kept and found and len(found) <= 64
            assert dict(await call.trailing_metadata())["x-request-id"] == found

    asyncio.run(main())


# --- Call


def test_stopping_calls_back_once_also_those_who_come_late():
    call, heard = Call(), []
    call.on_stop(lambda: heard.append("early"))
    call.on_stop(lambda: heard.append("forgotten"))()
    threads = [threading.Thread(target=call.stop, args=(Expired("x"),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    call.on_stop(lambda: heard.append("late"))
    assert heard == ["early", "late"] and call.stopped
    with pytest.raises(Expired):
        call.check()


def test_a_part_ends_with_its_stream_and_not_the_other_way_round():
    stream = Call("s")
    part, done = stream.part("1", seconds=60)
    other, _ = stream.part("2")
    done()
    part.stop()
    assert part.stopped and not stream.stopped and not other.stopped
    stream.stop(Expired("x"))
    with pytest.raises(Expired):
        other.check()
    late, _ = stream.part("3")
    assert late.stopped


def test_a_deadline_that_passed_is_raised_without_anybody_stopping():
    with pytest.raises(Expired):
        Call(deadline=time.monotonic() - 1).check()
    Call(deadline=time.monotonic() + 60).check()


# --- logs


def test_calls_are_logged_with_what_the_service_learned():
    async def main():
        with log() as stream:
            async with guarded() as (_, channel, metrics):
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


# --- metrics


def test_calls_that_began_are_calls_that_ended():
    async def main():
        async with guarded() as (_, channel, metrics):
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

    def models():
        samples = [s for family in metrics.registry.collect() for s in family.samples]
        return {s.labels["model"] for s in samples if "model" in s.labels}

    metrics.model_loaded("clf", 3)
    observe("clf")
    observe("never-heard-of")
    assert models() == {"clf", ""}
    assert metrics.registry.get_sample_value("onnxplain_model_version", {"model": "clf"}) == 3
    metrics.model_gone("clf")
    metrics.model_gone("clf")
    observe("clf")
    assert models() == {""}


def test_metrics_are_served_over_http_until_stopped():
    metrics = Metrics()
    metrics.sessions(12345)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    stop = metrics.serve("127.0.0.1", port)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request("GET", "/metrics")
    assert b"onnxplain_sessions_bytes 12345.0" in connection.getresponse().read()
    connection.close()
    with pytest.raises(errors.Unavailable, match="--metrics-port"):
        metrics.serve("127.0.0.1", port)
    stop()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    metrics.serve("127.0.0.1", 0)()


# --- traces


def test_a_span_per_call_under_the_callers():
    pytest.importorskip("opentelemetry.sdk", reason="pip install 'onnxplain[telemetry]'")
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

    async def main():
        guard = Guard(Metrics(), tracing=Tracing(provider.get_tracer("test")))
        async with guarded(guard) as (_, channel, metrics):
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
