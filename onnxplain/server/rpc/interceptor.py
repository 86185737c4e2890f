"""The guard in front of every method of the gRPC server."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import nullcontext
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Never

import grpc

from onnxplain.server import grpc_status
from onnxplain.server.call import CALL, Call
from onnxplain.server.guard import Guard, Metadata
from onnxplain.server.isolation import call_fields
from onnxplain.server.memory_ledger import MemoryLedger
from onnxplain.server.reading_turns import ReadingTurns
from onnxplain.server.rpc.handler_shape import KINDS, Answer, Context, Handler, answering, parsing
from onnxplain.server.rpc.hang_up import LAST_WORD, hang_up
from onnxplain.server.rpc.request_stream import RequestStream
from onnxplain.server.rpc.tls import peer_names
from onnxplain.server.telemetry.logs import event

LOG = logging.getLogger("onnxplain.server.access")
IDLE_SECONDS = 300.0  # of a stream without a request, unless told
# Calls without a limit of time, and why. All others have one, as a whole or for each of their requests.
WATCHES = {"/grpc.health.v1.Health/Watch": "who watches stays as long as he likes; it holds no work and no drain"}
RELIEF = "/inference.GRPCInferenceService/RepositoryModelUnload"  # is taken in however full the process is
METADATA: ContextVar[Metadata] = ContextVar("metadata")  # of the call that begins, as gRPC parsed it
CODES = {code.value[0]: code.name for code in grpc.StatusCode}


def limited(name: str, inner: Handler) -> str:
    """What has a limit of time in a method: the "call", each "request" of its stream, or "nothing": see WATCHES."""
    if name in WATCHES:
        return "nothing"
    return "request" if inner.request_streaming else "call"


class Interceptor(grpc.aio.ServerInterceptor):
    """The only interceptor. roots: folders that no error may name. idle_seconds: of a stream without a request.

    worker: its caller is the parent, which logs. memory: where replies are booked until they are sent. turns: in which
    messages are read.
    """

    def __init__(
        self,
        guard: Guard,
        roots: Iterable[str | Path] = (),
        idle_seconds: float = IDLE_SECONDS,
        worker: bool = False,
        memory: MemoryLedger | None = None,
        turns: ReadingTurns | None = None,
    ):
        self.guard, self._roots, self._idle_seconds, self._worker = guard, tuple(roots), idle_seconds, worker
        self._memory, self._turns = memory, turns
        self._handlers: dict[str, tuple[Handler, Handler]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Give gRPC our handler in place of the service's; one per method, made when it is first called."""
        inner = await continuation(handler_call_details)
        name = handler_call_details.method
        if inner is None:
            event(LOG, logging.INFO, "call", method=name, code="UNIMPLEMENTED")
            return inner
        METADATA.set(handler_call_details.invocation_metadata)
        known = self._handlers.get(name)
        if known is None or known[0] is not inner:
            known = self._handlers[name] = (inner, self._wrap(name, inner))
        return known[1]

    def _wrap(self, name: str, inner: Handler) -> Handler:
        """Our handler for one of the service's.

        It is always one that takes a stream: then nothing was read when it begins. Whoever may not call is turned away
        before the message is read, and a message that comes slowly has a time limit too.
        """
        kind = KINDS[inner.request_streaming, inner.response_streaming]
        limit = limited(name, inner)
        method = self.guard.method(name, kind, limit == "call")
        seconds = self.guard.max_request_seconds if limit == "nothing" else None
        always = method.open or name == RELIEF
        turn = nullcontext if always or self._turns is None else self._turns.turn
        answer = answering(name, inner, self._requests, seconds, turn)

        async def handle(messages: Any, context: Context) -> Any:
            begun = time.monotonic()
            work = self._booked(answer, always)
            work = self._telling(work) if self._worker else work
            try:
                reply = await self.guard.answer(method, GrpcArrival(context), lambda: work(messages, context))
            except grpc.aio.InternalError as error:  # nothing could be read or written: the call's transport has gone
                # gRPC may learn of it later than we do, and would log a fault.
                raise asyncio.CancelledError(str(error)) from error
            except grpc.aio.BaseError:
                raise
            except Exception as error:
                await self._abort(context, error)
            if reply is not None:
                self._see_it_taken(context, begun, method.open)
            return reply

        parse = parsing(inner.request_deserializer)
        if inner.response_streaming:
            return grpc.stream_stream_rpc_method_handler(handle, parse, inner.response_serializer)
        return grpc.stream_unary_rpc_method_handler(handle, parse, None)

    def _booked(self, answer: Answer, always: bool) -> Answer:
        """The same, with the bytes of its one reply booked until the call is over: a client may read slowly.

        always: it is begun while the process is full, too.
        """
        memory = self._memory
        if memory is None:
            return answer

        async def work(messages: Any, context: Context) -> Any:
            if not always:
                memory.require("the request")  # before it is read
            reply = await answer(messages, context)
            if isinstance(reply, bytes):
                booking = memory.booking("replies", "the reply", len(reply))
                done: Any = lambda _: booking.release()  # noqa: E731
                context.add_done_callback(done)
            return reply

        return work

    def _requests(self, messages: Any) -> RequestStream:
        return RequestStream(messages, self.guard.max_request_seconds, self._idle_seconds, self.guard.calls)

    async def _abort(self, context: Context, error: Exception) -> Never:
        """Say how a call ended. It stands in line behind a message that was written, perhaps for ever."""
        timer = asyncio.get_running_loop().call_later(LAST_WORD, lambda: hang_up(context.peer()))
        try:
            await grpc_status.abort(context, error, self._roots)
        finally:
            timer.cancel()

    def _see_it_taken(self, context: Context, begun: float, open_to_all: bool) -> None:
        """The one reply of a call is given to gRPC, which writes it when we have returned. That too has a limit."""
        loop, calls, key = asyncio.get_running_loop(), self.guard.calls, object()
        left = max(LAST_WORD, begun + self.guard.max_request_seconds - time.monotonic())
        timer = loop.call_later(left, lambda: hang_up(context.peer()))
        if not open_to_all:
            calls.hold(key)

        def ended(*_: Any) -> None:
            timer.cancel()
            calls.release(key)

        context.add_done_callback(ended)  # type: ignore[arg-type]  # by its stubs of a client's call

    @staticmethod
    def _telling(answer: Answer) -> Answer:
        """The same, with what the access log shows of the call sent behind its answer or error."""

        async def work(messages: Any, context: Context) -> Any:
            try:
                return await answer(messages, context)
            finally:
                fields = (call_fields.KEY, call_fields.encoded(CALL.get()))
                context.set_trailing_metadata((*context.trailing_metadata(), fields))

        return work


class GrpcArrival:
    """A call of grpc.aio."""

    answered: tuple[type[BaseException], ...] = (grpc.aio.BaseError,)

    def __init__(self, context: Context):
        self._context = context
        self.metadata = METADATA.get()

    def peer(self) -> str:
        """Address of the client's end of the connection."""
        return str(self._context.peer())

    def seconds_left(self) -> float | None:
        """Until the client's deadline."""
        return self._context.time_remaining()

    def certificate_names(self) -> Sequence[str]:
        """Subject alternative names of the client's certificate."""
        return peer_names(self._context)

    def began(self, call: Call) -> None:
        """Send the request id back behind the answer."""
        self._context.set_trailing_metadata((("x-request-id", call.request_id),))

    def code(self) -> str:
        """The code a handler set by itself, OK if none."""
        code: Any = self._context.code()
        if code is None:
            return "OK"
        return CODES.get(code, "UNKNOWN") if isinstance(code, int) else str(code.name)
