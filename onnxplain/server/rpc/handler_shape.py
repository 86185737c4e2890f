"""A service's handlers, all made into one shape: a coroutine that reads, answers and writes by itself."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from onnxplain.errors import Cancelled, InputError, OnnxplainError

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


def answering(name: str, inner: Handler) -> Answer:
    """The service's handler as a coroutine that reads, answers and writes by itself."""
    behaviour: Any = inner.unary_unary or inner.unary_stream or inner.stream_unary or inner.stream_stream
    generates = inspect.isasyncgenfunction(behaviour)
    if not generates and not inspect.iscoroutinefunction(behaviour):
        return _missing(name)
    serializer = inner.response_serializer

    async def answer(messages: Any, context: Context) -> Any:
        request = messages
        if not inner.request_streaming:
            request = await context.read()
            if request is grpc.aio.EOF:
                raise Cancelled("the call ended before its message came.")
        if generates:
            async with aclosing(behaviour(request, context)) as replies:
                async for reply in replies:
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
