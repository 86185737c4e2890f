"""A real grpc.aio server with our interceptor and a few handlers of its own, for tests."""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from onnxplain import errors
from onnxplain.errors import OnnxplainError, UnknownName
from onnxplain.server.call import CALL
from onnxplain.server.guard import Guard
from onnxplain.server.rpc.interceptor import Interceptor
from onnxplain.server.telemetry.logs import set_up
from onnxplain.server.telemetry.metrics import Metrics

SERVICE = "onnxplain.v1.ExplainerService"  # whose methods have scopes
EXPLAIN, STREAM, COMPILE = f"/{SERVICE}/Explain", f"/{SERVICE}/ExplainStream", f"/{SERVICE}/CompileGraph"
COLLECT, LIVE = f"/{SERVICE}/GetExplainability", "/inference.GRPCInferenceService/ServerLive"


class Echo:
    """Handlers of all four kinds. What a message says is done: fail, crash, sleep, wait, else answered as it came."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.stopped: list[Any] = []
        self.cancelled = 0
        self.go_on = asyncio.Event()

    async def act(self, request: bytes, context: Any) -> bytes:
        call = CALL.get()
        self.calls.append(call)
        call.on_stop(lambda: self.stopped.append(call))
        call.log_fields.update(model="clf", rows=1)
        if request == b"fail":
            raise UnknownName("model", "/srv/models/x", ["y"]).at("model")
        if request == b"crash":
            raise RuntimeError("secret at /home/somebody/key.pem")
        if request == b"abort":
            await context.abort(grpc.StatusCode.DATA_LOSS, "mine")
        if request == b"gone":  # what gRPC raises where it reads from, or writes to, a connection that has just gone
            raise grpc.aio.InternalError("Failed grpc_call_start_batch")
        if request == b"wait":
            await self.go_on.wait()
        if request == b"sleep":
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        return request

    async def unary(self, request: bytes, context: Any) -> bytes:
        return await self.act(request, context)

    async def collect(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        return b"".join([await self.act(request, context) async for request in requests])

    async def spread(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        for part in request.split(b" "):
            yield await self.act(part, context)

    async def chat(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            yield await self.act(request, context)

    async def write(self, request: bytes, context: Any) -> None:
        """The other way to answer with a stream."""
        for part in request.split(b" "):
            await context.write(await self.act(part, context))

    def handlers(self, parse: Callable[[bytes], Any] | None = None) -> list[grpc.GenericRpcHandler]:
        ours = {
            "Explain": grpc.unary_unary_rpc_method_handler(self.unary, parse),
            "GetExplainability": grpc.stream_unary_rpc_method_handler(self.collect),
            "CompileGraph": grpc.unary_stream_rpc_method_handler(self.spread),
            "ExplainStream": grpc.stream_stream_rpc_method_handler(self.chat),
            "ListRecipes": grpc.unary_stream_rpc_method_handler(self.write),
        }
        open_to_all = {"ServerLive": grpc.unary_unary_rpc_method_handler(self.unary)}
        return [
            grpc.method_handlers_generic_handler(SERVICE, ours),
            grpc.method_handlers_generic_handler("inference.GRPCInferenceService", open_to_all),
        ]


@asynccontextmanager
async def serving(
    interceptor: Interceptor | None,
    handlers: list[grpc.GenericRpcHandler],
    credentials: grpc.ServerCredentials | None = None,
    concurrent: int | None = None,
) -> AsyncIterator[str]:
    """The address of a server that answers while inside."""
    server = grpc.aio.server(
        interceptors=[interceptor] if interceptor else [],
        options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 64 * 2**20)],
        maximum_concurrent_rpcs=concurrent,
    )
    server.add_generic_rpc_handlers(tuple(handlers))
    if credentials is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(1)


ROOT = "/srv/models"
SECRET = "a-token-of-the-tests-0123456789"


def descendants(kind: type) -> list[type]:
    return [kind, *(deeper for worker in kind.__subclasses__() for deeper in descendants(worker))]


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
async def intercepted(interceptor: Interceptor | None = None, parse=None):
    """(echo, channel, metrics) of a server with our interceptor."""
    metrics = Metrics()
    echo = Echo()
    interceptor = interceptor or Interceptor(Guard(metrics), [ROOT])
    async with serving(interceptor, echo.handlers(parse)) as address, grpc.aio.insecure_channel(address) as channel:
        yield echo, channel, interceptor.guard.metrics


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
