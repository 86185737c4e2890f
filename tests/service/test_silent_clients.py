"""Clients that read nothing, send half, or only hold the line: everything that they hold ends, and nobody waits."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from contextlib import suppress

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from running import in_process_server, running_server

from onnxplain.server.app import EXPLAINER
from onnxplain.server.going_down import REST
from onnxplain.server.options import ServerOptions
from onnxplain.server.rpc import channel_options, interceptor, request_stream
from onnxplain.server.rpc.interceptor import WATCHES, limited
from onnxplain.sources import DirectorySource
from onnxplain.v1 import explainer_pb2 as v1
from onnxplain.v1 import explainer_pb2_grpc
from onnxplain.wire.inference import INFERENCE, RPCS

from .http2 import PREFACE, SETTINGS, Connection, frame
from .nets import SIDE, any_length, store, times, work
from .rpc import INFER, explain, explain_request, infer, infer_request, outcome

WATCH = "/grpc.health.v1.Health/Watch"
HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]
REFLECTION = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]
METHODS = [
    *(f"/{INFERENCE}/{name}" for name in RPCS),
    *(f"/{EXPLAINER}/{method.name}" for method in v1.DESCRIPTOR.services_by_name["ExplainerService"].methods),
    *(f"/{HEALTH.full_name}/{method.name}" for method in HEALTH.methods),
    *(f"/{REFLECTION.full_name}/{method.name}" for method in REFLECTION.methods),
]
MESSAGES = {  # whose answers are not empty
    f"/{EXPLAINER}/ExplainStream": v1.ExplainStreamRequest(request=v1.ExplainRequest()),
    f"/{REFLECTION.full_name}/ServerReflectionInfo": reflection_pb2.ServerReflectionRequest(list_services="*"),
}
LIMIT = 0.4  # seconds


def watchers(port: int, count: int) -> list[Connection]:
    """They ask for the health and read nothing."""
    return [Connection(port, window=0).begin(WATCH, 0) for _ in range(count)]


def test_health_never_waits_for_who_watches(tmp_path):
    async def main():
        store(times(1), tmp_path, "times")
        async with in_process_server(sources=[DirectorySource(tmp_path)]) as server:
            deaf = await asyncio.to_thread(watchers, server.port, 20)
            await asyncio.sleep(0.3)
            async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
                stub = health_pb2_grpc.HealthStub(channel)
                watch = stub.Watch(health_pb2.HealthCheckRequest())
                assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
                async with asyncio.timeout(5):
                    for state in (health_pb2.HealthCheckResponse.NOT_SERVING, health_pb2.HealthCheckResponse.SERVING):
                        await server._set_health("", state)
                        assert (await watch.read()).status == state
                        assert (await stub.Check(health_pb2.HealthCheckRequest())).status == state
            begun = time.monotonic()
            await server.stop(10)
            assert time.monotonic() - begun < REST
            for connection in deaf:
                connection.close()

    asyncio.run(main())


def test_who_watches_is_told_the_end_and_let_go(tmp_path):
    store(times(1), tmp_path, "times")
    with running_server(tmp_path) as running, grpc.insecure_channel(running.address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        running.process.send_signal(signal.SIGTERM)
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(grpc.RpcError) as ended:
            next(watch)
        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
        assert running.process.wait(REST) == 0


def test_every_method_has_a_limit_of_time_or_a_reason_for_none():
    """The limits of what is registered, not of a list of ours."""

    class Collect:
        def __init__(self):
            self.handlers = {}

        def add_generic_rpc_handlers(self, generic):
            for handler in generic:
                self.handlers |= handler._method_handlers

        def add_registered_method_handlers(self, *_):
            pass

    found = Collect()
    health_pb2_grpc.add_HealthServicer_to_server(health_pb2_grpc.HealthServicer(), found)
    explainer_pb2_grpc.add_ExplainerServiceServicer_to_server(explainer_pb2_grpc.ExplainerServiceServicer(), found)
    assert {limited(name, handler) for name, handler in found.handlers.items()} == {"call", "request", "nothing"}
    unlimited = {name for name, handler in found.handlers.items() if limited(name, handler) == "nothing"}
    assert unlimited == set(WATCHES) == {WATCH} and all(WATCHES.values())


@pytest.mark.parametrize("behaviour", ["reads nothing", "sends half a message", "sends nothing more"])
def test_a_call_of_any_method_ends_by_the_server_s_own_limits(behaviour, tmp_path, monkeypatch):
    """Nobody here has a deadline. Only a watch goes on."""
    for module in (interceptor, request_stream):
        monkeypatch.setattr(module, "LAST_WORD", LIMIT)

    def call(port: int, method: str) -> str | None:
        content = MESSAGES[method].SerializeToString() if method in MESSAGES else b""
        with Connection(port, window=0 if behaviour == "reads nothing" else 65_535) as connection:
            if behaviour == "sends half a message":
                connection.begin(method, 1000).send(b"\x0a" * 10)
            else:
                connection.begin(method, len(content)).send(content, last=False)
            return connection.end(15 * LIMIT)

    async def main() -> dict[str, str | None]:
        options = ServerOptions(port=0, metrics_port=0, max_request_seconds=LIMIT, idle_seconds=LIMIT)
        store(times(1), tmp_path, "times")
        async with in_process_server(options, [DirectorySource(tmp_path)]) as server:
            ends = await asyncio.gather(*(asyncio.to_thread(call, server.port, method) for method in METHODS))
            async with asyncio.timeout(10):
                while len(server._guard.calls._held):
                    await asyncio.sleep(0.01)
        return dict(zip(METHODS, ends, strict=True))

    ends = asyncio.run(main())
    endless = {method for method, end in ends.items() if end is None}
    assert endless == (set() if behaviour == "sends half a message" else {WATCH}), ends


def test_a_request_of_a_stream_ends_in_its_time_and_the_stream_goes_on(tmp_path):
    async def main():
        store(work(), tmp_path, "work")
        options = ServerOptions(port=0, metrics_port=0, max_request_seconds=0.5)
        async with (
            in_process_server(options, [DirectorySource(tmp_path)]) as server,
            grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
        ):
            method = RPCS["ModelStreamInfer"]
            stream = channel.stream_stream(
                f"/{INFERENCE}/ModelStreamInfer", method.request.SerializeToString, method.response.FromString
            )()
            for steps, fault in ((1, ""), (10**7, "0.5 s"), (1, "")):
                await stream.write(job(steps))
                reply = await asyncio.wait_for(stream.read(), 10)
                assert fault in reply.error_message and bool(fault) == bool(reply.error_message)

    asyncio.run(main())


def job(steps: int):
    x = np.ones((1, 1, SIDE), np.float32)
    return infer_request("work", {"x": x, "steps": np.array(steps, np.int64)})


@pytest.mark.parametrize("said", [b"", PREFACE, PREFACE + frame(SETTINGS, 0, 0, b"")], ids=["none", "half", "hello"])
def test_connections_that_say_nothing_are_closed_and_bounded_and_others_are_served(said, tmp_path, monkeypatch):
    monkeypatch.setattr(channel_options, "HANDSHAKE_SECONDS", 1.0)
    store(times(1), tmp_path, "times")

    def open_and_wait(port: int) -> float:
        """Seconds until all of 200 were closed."""
        silent = [socket.create_connection(("127.0.0.1", port), timeout=15) for _ in range(200)]
        begun = time.monotonic()
        for connection in silent:
            with suppress(OSError):
                connection.sendall(said)
        for connection in silent:
            with connection, suppress(ConnectionResetError):
                while connection.recv(1 << 12):
                    pass
        return time.monotonic() - begun

    async def main():
        options = ServerOptions(port=0, metrics_port=0, idle_seconds=1.0, max_connections=100)
        async with in_process_server(options, [DirectorySource(tmp_path)]) as server:
            with grpc.insecure_channel(f"127.0.0.1:{server.port}") as before:
                assert await asyncio.to_thread(outcome, infer(before), REQUEST, 10) == "OK"
                waiting = asyncio.create_task(asyncio.to_thread(open_and_wait, server.port))
                while not waiting.done():
                    assert await asyncio.to_thread(outcome, infer(before), REQUEST, 10) == "OK"
                    await asyncio.sleep(0.02)
            assert await waiting < 10
            with grpc.insecure_channel(f"127.0.0.1:{server.port}") as after:
                assert await asyncio.to_thread(outcome, infer(after), REQUEST, 10) == "OK"

    asyncio.run(main())


REQUEST = infer_request("times", {"x": np.ones((1, 4), np.float32)})


def test_a_drain_ends_in_its_time_whatever_is_open(tmp_path):
    store(work(), tmp_path, "work")
    store(any_length(), tmp_path, "any_length")
    seconds = 2.0
    with (
        running_server(tmp_path, "--threads", "1", "--drain-timeout", str(seconds)) as running,
        grpc.insecure_channel(running.address) as channel,
    ):
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        next(watch)
        big = infer_request("any_length", {"x": np.zeros((1, 1 << 20), np.float32)}).SerializeToString()
        raw = [
            *watchers(running.port, 2),
            Connection(running.port).begin(f"/{EXPLAINER}/ExplainStream", 0),
            Connection(running.port).begin(INFER, 1000),
            Connection(running.port, window=1000).begin(INFER, len(big)),
        ]
        raw[-1].send(big, last=True)
        long = infer(channel).future(job(10**7))
        x = {"x": np.ones((1, 4), np.float32)}
        compiling = [
            explain(channel).future(explain_request("any_length", x, recipe=v1.Recipe(name=method)))
            for method in ("gradient", "lrp", "guided_backprop", "deconvnet")
        ]
        time.sleep(0.3)
        begun = time.monotonic()
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(seconds + REST + 2) == 0
        taken = time.monotonic() - begun
        assert long.code() is grpc.StatusCode.UNAVAILABLE
        assert all(call.code() is not None for call in compiling)
        assert taken < seconds + REST and "Traceback" not in running.log, running.log[-3000:]
        for connection in raw:
            connection.close()


def test_watches_and_idle_streams_do_not_hold_a_drain(tmp_path):
    store(times(1), tmp_path, "times")
    with running_server(tmp_path, "--drain-timeout", "60") as running:
        silent = [*watchers(running.port, 3), Connection(running.port).begin(f"/{EXPLAINER}/ExplainStream", 0)]
        silent[-1].send(b"")
        time.sleep(0.3)
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(REST) == 0
        for connection in silent:
            connection.close()
