"""What happens around every call: who asks, until when, how it ends, and what is written down about it."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc

from onnxplain.errors import Cancelled, Expired, OnnxplainError, Unavailable
from onnxplain.server import grpc_status
from onnxplain.server.call import CALL, Call
from onnxplain.server.rpc.handler_shape import KINDS, Answer, Context, Handler, answering, parsing
from onnxplain.server.rpc.tls import peer_names
from onnxplain.server.telemetry.logs import event
from onnxplain.server.telemetry.metrics import MethodCounts, Metrics
from onnxplain.server.telemetry.tracing import Tracing
from onnxplain.server.tokens import ANYONE, Caller, Tokens, scope_of

LOG = logging.getLogger("onnxplain.server.access")
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
CLOSE = 0.01  # seconds: the client's clock may end a call this much before ours
Metadata = Sequence[tuple[str, str | bytes]]
WATCHED = "/grpc.health.v1."  # whoever watches stays as long as he likes
METADATA: ContextVar[Metadata] = ContextVar("metadata")  # of the call that begins, as gRPC parsed it


@dataclass(frozen=True)
class MethodHandler:
    """One method of a service, as it is to be answered. open: no token, and answered while draining."""

    name: str
    service: str
    short: str
    open: bool
    capped: bool
    answer: Answer
    counts: MethodCounts


class Interceptor(grpc.aio.ServerInterceptor):
    """The only interceptor. draining: set it, and new work is refused while health and reflection are answered.

    tokens: None lets anybody in. max_request_seconds: for calls with one request message; requests of a stream have
    theirs from Call.part. roots: folders that no error may name. mutual: clients show certificates; without tokens the
    first name in one is the caller's.
    """

    def __init__(
        self,
        metrics: Metrics,
        tokens: Tokens | None = None,
        max_request_seconds: float = 60.0,
        roots: Iterable[str | Path] = (),
        tracing: Tracing | None = None,
        mutual: bool = False,
    ):
        self.draining = False
        self._metrics, self._tokens, self._tracing, self._mutual = metrics, tokens, tracing, mutual
        self._seconds, self._roots = max_request_seconds, tuple(roots)
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
        service, _, short = name.lstrip("/").rpartition("/")
        kind = KINDS[inner.request_streaming, inner.response_streaming]
        method = MethodHandler(
            name,
            service,
            short,
            open=scope_of(name) is None,
            capped=not inner.request_streaming and not name.startswith(WATCHED),
            answer=answering(name, inner),
            counts=self._metrics.method(kind, service, short),
        )

        async def handle(messages: Any, context: Context) -> Any:
            return await self._answer(method, messages, context)

        parse = parsing(inner.request_deserializer)
        if inner.response_streaming:
            return grpc.stream_stream_rpc_method_handler(handle, parse, inner.response_serializer)
        return grpc.stream_unary_rpc_method_handler(handle, parse, None)

    async def _answer(self, method: MethodHandler, messages: Any, context: Context) -> Any:
        """Answer one call; write down how it ended."""
        began = time.monotonic()
        metadata = METADATA.get()
        call = Call(_request_id(metadata), method.name)
        CALL.set(call)
        context.set_trailing_metadata((("x-request-id", call.request_id),))
        method.counts.started.inc()
        span = None
        if self._tracing is not None:
            span = self._tracing.start(method.service, method.short, metadata, call.request_id)
        code = "UNKNOWN"
        reply: Any = None
        problem: BaseException | None = None
        try:
            self._admit(method, call, metadata, context)
            reply = await self._in_time(method, call, messages, context, began)
            code = _code(context)
        except asyncio.CancelledError:  # by the client or its deadline; gRPC answers, if anybody still listens
            late = call.deadline is not None and time.monotonic() > call.deadline - CLOSE
            problem = Expired("the client's deadline passed.") if late else Cancelled("the caller went away.")
            code = problem.status
            raise
        except grpc.aio.BaseError:  # the handler aborted by itself; or gRPC could not write, because nobody reads
            code = _code(context)
            code = "CANCELLED" if code == "OK" else code
            raise
        except Exception as error:
            problem, code = error, grpc_status.code_of(error)
        finally:  # before the client hears of it: the work ends first, and who counts calls has counted this one
            if code != "OK":
                call.stop(problem if isinstance(problem, OnnxplainError) else None)
            self._record(method, call, code, problem, time.monotonic() - began, context)
            if self._tracing is not None and span is not None:
                self._tracing.end(span, code, grpc.StatusCode[code].value[0], call.log_fields)
        if problem is not None:
            await grpc_status.abort(context, problem, self._roots)
        return reply

    def _admit(self, method: MethodHandler, call: Call, metadata: Metadata, context: Context) -> None:
        """Let the call in, or raise why not."""
        if method.open:
            return
        if self.draining:
            self._metrics.refused("", "draining")
            raise Unavailable("this server is going down and takes no new work. Try again: another one may answer.")
        if self._tokens is not None:
            call.caller = self._tokens.caller(value for key, value in metadata if key == "authorization")
        elif self._mutual:
            call.caller = Caller(next(iter(peer_names(context)), ""), ANYONE.scopes)
        scope = scope_of(method.name)
        if scope is not None:
            call.caller.require(scope)

    async def _in_time(self, method: MethodHandler, call: Call, messages: Any, context: Context, began: float) -> Any:
        """Answer before the client's deadline and ours. gRPC cancels us at the client's; ours is kept here."""
        left = context.time_remaining()
        if left is not None:
            call.deadline = began + left
        if not method.capped or (left is not None and left <= self._seconds):
            return await method.answer(messages, context)
        call.deadline = began + self._seconds
        timer = asyncio.timeout(self._seconds)
        try:
            async with timer:
                return await method.answer(messages, context)
        except Exception as error:
            if not timer.expired():
                raise
            raise Expired(
                f"no answer within the {self._seconds:g} s that this server gives a request (--max-request-seconds)."
            ) from error

    def _record(
        self,
        method: MethodHandler,
        call: Call,
        code: str,
        problem: BaseException | None,
        seconds: float,
        context: Context,
    ) -> None:
        """Count a call that ended, and log it: calls without a token only where debugging is asked for."""
        method.counts.ended(code, seconds)
        level = logging.DEBUG if method.open and code == "OK" else logging.INFO
        if LOG.isEnabledFor(level):
            ours: dict[str, object] = {
                "request_id": call.request_id,
                "method": method.name,
                "caller": call.caller.name or None,
                "peer": context.peer(),
                "code": code,
                "ms": round(seconds * 1000, 3),
                "error": problem,
            }
            fields = ours | call.log_fields | ours  # ours first, and never overwritten
            # Its turn comes when the answer is on its way: formatting and writing take a tenth of a millisecond.
            asyncio.get_running_loop().call_soon(partial(event, LOG, level, "call", **fields))


def _request_id(metadata: Metadata) -> str:
    """The caller's id for this call if it is a plain word, else one of ours."""
    for key, value in metadata:
        if key == "x-request-id" and isinstance(value, str) and REQUEST_ID.fullmatch(value):
            return value
    return secrets.token_hex(8)


def _code(context: Context) -> str:
    """The code a handler set by itself, OK if none."""
    code: Any = context.code()
    if code is None:
        return "OK"
    return CODES.get(code, "UNKNOWN") if isinstance(code, int) else str(code.name)


CODES = {code.value[0]: code.name for code in grpc.StatusCode}
