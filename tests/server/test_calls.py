"""Laws of how calls begin, go and end."""

from __future__ import annotations

import asyncio
import threading
import time

import grpc
import pytest
from google.rpc import status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from intercepted import (
    COLLECT,
    COMPILE,
    EXPLAIN,
    LIVE,
    STREAM,
    counted,
    details,
    eventually,
    intercepted,
    log,
    refused,
)

from onnxplain.errors import Cancelled, Expired
from onnxplain.server import grpc_status
from onnxplain.server.call import Call
from onnxplain.server.guard import Guard
from onnxplain.server.rpc.health_service import NOT_SERVING, SERVING, Health
from onnxplain.server.rpc.interceptor import Interceptor
from onnxplain.server.telemetry.metrics import Metrics


def test_all_four_kinds_answer_and_fail_alike():
    async def main():
        async with intercepted() as (_, channel, metrics):
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
        async with intercepted() as (_, channel, metrics):
            error = await refused(channel.unary_unary(EXPLAIN)(b"abort"))
            assert (error.code(), error.details()) == (grpc.StatusCode.DATA_LOSS, "mine")
            await eventually(lambda: counted(metrics, "DATA_LOSS") == 1)

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["unary", "server_stream", "client_stream", "bidi_stream"])
def test_a_cancelled_call_ends_its_handler_and_its_work(kind):
    async def main():
        async with intercepted() as (echo, channel, metrics):
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
        async with intercepted() as (echo, channel, metrics):
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
        async with intercepted(Interceptor(Guard(Metrics(), max_request_seconds=0.1))) as (echo, channel, _):
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
        async with intercepted(Interceptor(Guard(Metrics(), max_request_seconds=0.1))) as (echo, channel, metrics):
            silent = channel.stream_unary(EXPLAIN)()  # for the server this method takes one message
            error = await refused(silent)
            assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and not echo.calls
            assert counted(metrics, "DEADLINE_EXCEEDED") == 1

    asyncio.run(main())


def test_of_many_calls_those_not_cancelled_are_answered_and_nothing_is_left():
    async def main():
        async with intercepted() as (echo, channel, metrics):
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


def test_draining_refuses_new_work_ends_idle_streams_and_lets_old_work_and_probes_go_on():
    async def main():
        interceptor = Interceptor(Guard(Metrics()))
        async with intercepted(interceptor) as (echo, channel, metrics):
            stream = channel.stream_stream(STREAM)()
            await stream.write(b"1")
            assert await stream.read() == b"1"
            working = asyncio.ensure_future(_wait(channel.unary_unary(EXPLAIN)(b"wait")))
            busy = channel.stream_stream(STREAM)()
            await busy.write(b"wait")
            await eventually(lambda: len(echo.calls) == 3)
            interceptor.guard.calls.drain()
            error = await refused(channel.unary_unary(EXPLAIN)(b"x"))
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            status = status_pb2.Status.FromString(dict(error.trailing_metadata())[grpc_status.DETAILS])
            assert "RetryInfo" in details(status)
            assert await channel.unary_unary(LIVE)(b"x") == b"x"
            assert (await refused(stream.read())).code() is grpc.StatusCode.UNAVAILABLE  # nothing was asked of it
            assert not await interceptor.guard.calls.until_none(0.05)
            echo.go_on.set()
            assert await working == await busy.read() == b"wait"
            assert (await refused(busy.read())).code() is grpc.StatusCode.UNAVAILABLE
            assert await interceptor.guard.calls.until_none(5)
            assert metrics.registry.get_sample_value(
                "onnxplain_admission_refused_total", {"model": "", "reason": "draining"}
            )

    asyncio.run(main())


def test_health_can_be_watched_longer_than_a_request_may_take():
    async def main():
        servicer = Health()
        servicer.set("", SERVING)
        server = grpc.aio.server(interceptors=[Interceptor(Guard(Metrics(), max_request_seconds=0.05))])
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            watch = stub.Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            await asyncio.sleep(0.2)
            servicer.set("", NOT_SERVING)
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            assert (await stub.Check(health_pb2.HealthCheckRequest())).status
            missing = await refused(stub.Check(health_pb2.HealthCheckRequest(service="nothing")))
            assert missing.code() is grpc.StatusCode.NOT_FOUND
            assert {k: v.status for k, v in (await stub.List(health_pb2.HealthListRequest())).statuses.items()} == {
                "": NOT_SERVING
            }
            watch.cancel()
        await server.stop(None)

    asyncio.run(main())


@pytest.mark.parametrize(
    "given, kept", [("req-1.A_z", True), ("x" * 65, False), ("a b", False), ("a=1", False), ("", False)]
)
def test_a_plain_request_id_is_kept_and_any_other_replaced(given, kept):
    async def main():
        async with intercepted() as (echo, channel, _):
            call = channel.unary_unary(EXPLAIN)(b"x", metadata=[("x-request-id", given)])
            await call
            found = echo.calls[0].request_id
            assert (found == given) is kept and found and len(found) <= 64
            assert dict(await call.trailing_metadata())["x-request-id"] == found

    asyncio.run(main())


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


def test_a_connection_that_has_just_gone_is_a_call_that_was_cancelled_and_no_fault_in_the_log():
    """gRPC may hear of it after the handler, whose reading or writing failed; it happens once in some 50 000 calls."""

    async def main():
        with log() as stream:
            async with intercepted() as (_, channel, metrics):
                for answer in (channel.unary_unary(EXPLAIN)(b"gone"), channel.stream_unary(COLLECT)(iter([b"gone"]))):
                    answer_ends = asyncio.ensure_future(refused(answer))
                    await asyncio.sleep(0.2)
                    answer.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await answer_ends
                await eventually(lambda: counted(metrics, "CANCELLED") == 1)
                await eventually(lambda: counted(metrics, "CANCELLED", "GetExplainability", "client_stream") == 1)
            assert "Traceback" not in stream.getvalue() and '"code": "CANCELLED"' in stream.getvalue()

    asyncio.run(main())
