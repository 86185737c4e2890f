"""A real grpc.aio server with our guard and a few handlers of its own, for tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc

from onnxplain.errors import UnknownName
from onnxplain.server.call import CALL
from onnxplain.server.interceptor import Guard

SERVICE = "onnxplain.v1.ExplainerService"  # whose methods have scopes
EXPLAIN, STREAM, COMPILE = f"/{SERVICE}/Explain", f"/{SERVICE}/ExplainStream", f"/{SERVICE}/CompileGraph"
COLLECT, LIVE = f"/{SERVICE}/GetExplainability", "/inference.GRPCInferenceService/ServerLive"


class Echo:
    """Handlers of all four kinds. What a message says is done: fail, crash, sleep, else answered as it came."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.stopped: list[Any] = []
        self.cancelled = 0

    async def act(self, request: bytes, context: Any) -> bytes:
        call = CALL.get()
        self.calls.append(call)
        call.on_stop(lambda: self.stopped.append(call))
        call.fields.update(model="clf", rows=1)
        if request == b"fail":
            raise UnknownName("model", "/srv/models/x", ["y"]).at("model")
        if request == b"crash":
            raise RuntimeError("secret at /home/somebody/key.pem")
        if request == b"abort":
            await context.abort(grpc.StatusCode.DATA_LOSS, "mine")
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
    guard: Guard | None,
    handlers: list[grpc.GenericRpcHandler],
    credentials: grpc.ServerCredentials | None = None,
    concurrent: int | None = None,
) -> AsyncIterator[str]:
    """The address of a server that answers while inside."""
    server = grpc.aio.server(
        interceptors=[guard] if guard else [],
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
