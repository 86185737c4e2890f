"""One replica of Ray Serve: the server's services, guard and repository, in a process that Ray started.

Models are loaded when they are first asked for, and the least used make room, as `onnxplain serve --lazy` does it. Ray
is told which models a replica was asked for last, and sends requests for these to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from onnxplain.engines.ray_http import rest
from onnxplain.engines.ray_methods import METHODS, ServedMethod
from onnxplain.engines.ray_policy import ROWS
from onnxplain.engines.ray_proxy import SECONDS_LEFT
from onnxplain.engines.ray_settings import ReplicaSettings
from onnxplain.errors import Busy, InputError
from onnxplain.server import grpc_status
from onnxplain.server.app import Server
from onnxplain.server.call import Call
from onnxplain.server.guard import Guard, Metadata
from onnxplain.server.handlers.local_model import LocalModel
from onnxplain.server.models.repository import ModelRepository
from onnxplain.server.models.served import Served
from onnxplain.server.rpc.explainer_service import ExplainerService
from onnxplain.server.rpc.handler_shape import KINDS, MethodNotImplemented
from onnxplain.server.rpc.inference_service import InferenceService
from onnxplain.server.rpc.request_stream import RequestStream
from onnxplain.server.telemetry.logs import set_up
from onnxplain.server.tokens import Tokens
from onnxplain.sources import DirectorySource, named_sources

RAYS_ID = "request_id"  # Ray sends its own behind every reply

OF_ONE_SERVER = {  # what says something of one server, of which there are many here
    "RepositoryModelLoad": "models are loaded when they are asked for",
    "RepositoryModelUnload": "models that are used least make room",
}


class Replica:
    """What Ray makes one of for each replica; `ray_serve.deployment` gives it a method for every RPC."""

    async def __init__(self, settings: dict[str, Any]) -> None:  # type: ignore[misc]  # Ray awaits it
        from ray import serve

        self._settings = ReplicaSettings.of(settings)
        set_up("text", "INFO")
        options = self._settings.options()
        options.begin_environment()  # before the first session: Ray gives a replica a process of its own
        self._options = options
        models, registries = self._settings.models, self._settings.registries
        self._server = Server(options, named_sources(models, registries, options.control, options.cache))
        self.repository = self._server.repository
        tokens = Tokens(options.token_file) if options.token_file else None
        self._guard = Guard(self._server.metrics, tokens, options.max_request_seconds)
        self._roots = [options.cache]
        self._roots += [s.root.absolute() for s in self.repository.sources if isinstance(s, DirectorySource)]

        async def recent(name: str) -> str:
            return name

        self._note = serve.multiplexed(max_num_models_per_replica=self._settings.max_models)(recent)
        asked: Any = _Noted(self.repository, self._note)
        self._services = (
            ExplainerService(asked, options, self._server.memory),
            InferenceService(asked, options.max_request_seconds, self._server.memory),
        )
        await self.repository.refresh()
        wanted = self._settings.load
        for name in self.repository.names() if "*" in wanted else wanted:
            async with asked.use(name):
                pass
        self._following = asyncio.create_task(self.repository.poll(options.poll_seconds, asyncio.Event()))

    def __serve_build_asgi_app__(self) -> Any:
        """What answers HTTP; Ray asks for it once."""
        explainer, inference = self._services
        return rest(self._options, self._guard, explainer, inference, self._server.memory, self._roots)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Rows admitted and not yet answered, for `RowsPolicy`."""
        local = (served for served in self.repository.served() if isinstance(served, LocalModel))
        return {ROWS: float(sum(served.model.admission.rows for served in local))}

    def __del__(self) -> None:
        """Ray calls it when the replica goes, behind its last request; so does the collector, which must not count."""
        with suppress(RuntimeError, AttributeError):  # no loop runs here, or it never began
            self._closing = asyncio.get_running_loop().create_task(self.close())

    async def close(self) -> None:
        """Let go of all models."""
        self._following.cancel()
        await self._server.stop(0)

    async def answer(self, name: str, raw: bytes, context: Any) -> Any:
        """One request, one reply. Errors are told by the context, with their details."""
        try:
            return await self._guarded(METHODS[name], context, lambda method: self._reply(method, raw, context))
        except Exception as error:
            self._tell(error, context)
            return NoReply()

    async def answers(self, name: str, messages: Any, context: Any) -> AsyncIterator[Any]:
        """A stream of replies. messages: a request's bytes, or a stream of them. An error ends it."""
        replies: asyncio.Queue[Any] = asyncio.Queue(maxsize=8)  # slow readers wait here
        end = object()

        async def work(method: ServedMethod) -> None:
            if not method.takes_stream:
                await reply_to(method, self._parsed(method, messages))
                return
            parsed = (self._parsed(method, raw) async for raw in messages)
            options = self._options
            requests = RequestStream(parsed, options.max_request_seconds, options.idle_seconds, self._guard.calls)
            async with requests.in_time():
                await reply_to(method, requests)

        async def reply_to(method: ServedMethod, request: Any) -> None:
            async with aclosing(self._handler(method)(request, context)) as stream:
                async for reply in stream:
                    await replies.put(reply)

        async def whole() -> None:
            try:
                await self._guarded(METHODS[name], context, work)
            finally:
                await replies.put(end)

        task = asyncio.create_task(whole())
        try:
            while (reply := await replies.get()) is not end:
                yield reply
            await task
        except Exception as error:
            self._tell(error, context)
            raise RuntimeError(context.details()) from None  # Ray takes the code from the context
        finally:
            task.cancel()

    # Inside

    async def _guarded(self, method: ServedMethod, context: Any, work: Callable[[ServedMethod], Awaitable[Any]]) -> Any:
        if method.name in OF_ONE_SERVER:
            raise MethodNotImplemented(f"{method.path}: {OF_ONE_SERVER[method.name]}; there are many servers here.")
        kind = KINDS[method.takes_stream, method.gives_stream]
        guarded = self._guard.method(method.path, kind, capped=not method.takes_stream)

        async def admitted() -> Any:
            if not guarded.open:
                self._server.memory.require("the request")
            return await work(method)

        return await self._guard.answer(guarded, RayArrival(context), admitted)

    async def _reply(self, method: ServedMethod, raw: bytes, context: Any) -> Any:
        handler = self._handler(method)
        return await handler(self._parsed(method, raw), context)

    def _handler(self, method: ServedMethod) -> Callable[..., Any]:
        for service in self._services:
            handler: Callable[..., Any] | None = getattr(service, method.name, None)
            if handler is not None:
                return handler
        raise MethodNotImplemented(f"{method.path} is not implemented by this server.")

    def _parsed(self, method: ServedMethod, raw: bytes) -> Any:
        if len(raw) > self._options.max_message_bytes:
            raise Busy(
                f"a message of {len(raw)} bytes; at most {self._options.max_message_bytes} are taken. Send fewer rows "
                "at once.",
                retry=0.0,
            )
        try:
            return method.request.FromString(raw)  # type: ignore[attr-defined]
        except (DecodeError, ValueError, RecursionError) as error:
            raise InputError(f"the request is no valid protobuf message of this method ({error}).") from error

    def _tell(self, error: BaseException, context: Any) -> None:
        status = grpc_status.logged_status(error, self._roots)
        context.set_code(grpc.StatusCode[grpc_status.code_of(error)])
        context.set_details(status.message)
        kept = [pair for pair in context.trailing_metadata() if pair[0] not in (grpc_status.DETAILS, RAYS_ID)]
        context.set_trailing_metadata([*kept, (grpc_status.DETAILS, status.SerializeToString())])


class _Noted:
    """The repository as the services see it: Ray is told what is asked for."""

    def __init__(self, repository: ModelRepository, note: Callable[[str], Awaitable[object]]):
        self._repository, self._note = repository, note

    def __getattr__(self, name: str) -> Any:
        return getattr(self._repository, name)

    @asynccontextmanager
    async def use(self, name: str, version: str = "") -> AsyncIterator[Served]:
        """See `ModelRepository.use`."""
        self._repository.versions(name)  # raises: what is not known here is not noted
        await self._note(name)
        async with self._repository.use(name, version) as served:
            yield served


class NoReply:
    """In place of a reply where there is an error; gRPC does not send it."""

    def SerializeToString(self) -> bytes:  # noqa: N802  # protobuf's name
        """No bytes."""
        return b""


class RayArrival:
    """A call as Ray's context tells of it."""

    answered: tuple[type[BaseException], ...] = ()

    def __init__(self, context: Any):
        self._context = context
        self.metadata: Metadata = tuple(context.invocation_metadata())

    def peer(self) -> str:
        """The client's address, as the proxy saw it."""
        return str(self._context.peer())

    def seconds_left(self) -> float | None:
        """As the proxy counted them when the request came."""
        return next((float(value) for key, value in self.metadata if key == SECONDS_LEFT), None)

    def certificate_names(self) -> Sequence[str]:
        """None: TLS ends before Ray."""
        return ()

    def began(self, call: Call) -> None:
        """Send the request id back behind the answer."""
        self._context.set_trailing_metadata([("x-request-id", call.request_id)])

    def code(self) -> str:
        """The code that was set, OK if none."""
        code = self._context.code()
        return "OK" if not code else str(code.name)
