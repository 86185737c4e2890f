"""A service's handlers, all made into one shape: a coroutine that reads, answers and writes by itself."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from onnxplain.errors import Cancelled, Expired, InputError, OnnxplainError
from onnxplain.server.rpc.request_stream import RequestStream

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # at run time it takes no parameters
Answer = Callable[[Any, Context], Awaitable[Any]]


class MethodNotImplemented(OnnxplainError):
    """A method of the protocol that this server does not have."""

    status = "UNIMPLEMENTED"


KINDS = {
    (False, False): "unary",
    (False, True): "server_stream",
    (True, False): "client_stream",
    (True, True): "bidi_stream",
}


def answering(
    name: str,
    inner: Handler,
    requests: Callable[[Any], RequestStream],
    seconds: float | None = None,
    turn: Callable[[], AbstractAsyncContextManager[None]] = nullcontext,
) -> Answer:
    """The service's handler as a coroutine that reads, answers and writes by itself.

    requests: what a handler with a stream of requests gets in place of gRPC's iterator. seconds: for the one message of
    a call that has no limit of time as a whole. turn: around the reading of that message.
    """
    behaviour: Any = inner.unary_unary or inner.unary_stream or inner.stream_unary or inner.stream_stream
    generates = inspect.isasyncgenfunction(behaviour)
    if not generates and not inspect.iscoroutinefunction(behaviour):
        return _missing(name)
    serializer = inner.response_serializer

    async def answer(messages: Any, context: Context) -> Any:
        if inner.request_streaming:
            stream = requests(messages)
            async with stream.in_time():
                return await reply_to(stream, context)
        try:
            async with nullcontext() if seconds is None else asyncio.timeout(seconds), turn():
                request = await context.read()
        except TimeoutError:
            raise Expired(f"no message within {seconds:g} s (--max-request-seconds).") from None
        if request is grpc.aio.EOF:
            raise Cancelled("the call ended before its message came.")
        return await reply_to(request, context)

    async def reply_to(request: Any, context: Context) -> Any:
        if generates:
            begun = False
            async with aclosing(behaviour(request, context)) as replies:
                async for reply in replies:
                    if not begun:  # apart from the message, so that a status can follow one whose writing is given up
                        await context.send_initial_metadata(())
                        begun = True
                    await context.write(reply)
            return None
        reply = await behaviour(request, context)
        return reply if inner.response_streaming or serializer is None else serializer(reply)

    return answer


def _missing(name: str) -> Answer:
    """For methods that a servicer did not write: all of ours are coroutines, generated base classes have plain ones."""

    async def answer(messages: Any, context: Context) -> Any:
        raise MethodNotImplemented(f"{name} is not implemented by this server.")

    return answer


def parsing(deserializer: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    """The same, with an error of ours for bytes that are no message."""
    if deserializer is None:
        return None

    def parse(raw: bytes) -> Any:
        try:
            return deserializer(raw)
        except (DecodeError, ValueError, RecursionError) as error:
            raise InputError(f"the request is no valid protobuf message of this method ({error}).") from error

    return parse
