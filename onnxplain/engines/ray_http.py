"""REST in a replica: the ASGI application of `server.http`, which Ray's HTTP proxy hands its requests to."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from onnxplain.server.guard import Guard
from onnxplain.server.http.application import application
from onnxplain.server.http.endpoint import Doors
from onnxplain.server.http.services import THREADS, Services
from onnxplain.server.memory_ledger import MemoryLedger
from onnxplain.server.options import ServerOptions
from onnxplain.server.rpc.explainer_service import ExplainerService
from onnxplain.server.rpc.inference_service import InferenceService


def rest(
    options: ServerOptions, guard: Guard, explainer: ExplainerService, inference: InferenceService,
    memory: MemoryLedger, roots: Sequence[str | Path],
) -> ASGIApp:  # fmt: skip
    """All endpoints of `onnxplain serve --http-port`, behind the same guard as the replica's gRPC."""
    services = Services(inference, explainer, ThreadPoolExecutor(THREADS, thread_name_prefix="onnxplain-http"), memory)
    origins = frozenset(options.http_cors)
    doors = Doors(guard, memory, options.max_message_bytes, options.max_request_seconds, roots, origins)
    endpoints = application(services, doors)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        else:
            await endpoints(scope, receive, send)

    return app


async def _lifespan(receive: Receive, send: Send) -> None:
    """Nothing is begun or ended: the replica does that."""
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return
