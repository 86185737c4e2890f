"""What happens around every call, by whatever transport: who asks, until when, how it ends, what is written of it."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import grpc

from onnxplain.errors import Cancelled, Expired, OnnxplainError, Unavailable
from onnxplain.server import grpc_status
from onnxplain.server.call import CALL, Call
from onnxplain.server.open_calls import OpenCalls
from onnxplain.server.telemetry.logs import event
from onnxplain.server.telemetry.metrics import MethodCounts, Metrics
from onnxplain.server.telemetry.tracing import Tracing
from onnxplain.server.tokens import ANYONE, Caller, Callers, scope_of

T = TypeVar("T")
LOG = logging.getLogger("onnxplain.server.access")
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
CLOSE = 0.01  # seconds: the client's clock may end a call this much before ours
Metadata = Sequence[tuple[str, str | bytes]]


@dataclass(frozen=True)
class GuardedMethod:
    """One method as it is to be guarded.

    name: "/package.Service/Method", which the scopes go by. open: no token, answered while draining, and never waited
    for. capped: the server's own limit of time holds for the call as a whole.
    """

    name: str
    service: str
    short: str
    open: bool
    capped: bool
    counts: MethodCounts


class Arrival(Protocol):
    """A call as its transport tells of it. metadata: names in lower case."""

    metadata: Metadata
    answered: tuple[type[BaseException], ...]  # raised where the transport has told the client by itself

    def peer(self) -> str:
        """Where it comes from."""
        ...

    def seconds_left(self) -> float | None:
        """Until the client gives up; None: never."""
        ...

    def certificate_names(self) -> Sequence[str]:
        """Subject alternative names of the client's certificate."""
        ...

    def began(self, call: Call) -> None:
        """The call has its request id now."""
        ...

    def code(self) -> str:
        """The status that the handler set by itself, OK if none."""
        ...


class Guard:
    """Around every call of a server. calls: those that are open; after `calls.drain()` new ones are refused.

    tokens: None lets anybody in. max_request_seconds: for calls with one request message; requests of a stream have
    theirs from Call.part. mutual: clients show certificates; without tokens the first name in one is the caller's.
    """

    def __init__(
        self,
        metrics: Metrics,
        tokens: Callers | None = None,
        max_request_seconds: float = 60.0,
        tracing: Tracing | None = None,
        mutual: bool = False,
    ):
        self.calls = OpenCalls()
        self.metrics, self._tokens, self._tracing, self._mutual = metrics, tokens, tracing, mutual
        self.max_request_seconds = max_request_seconds

    @property
    def draining(self) -> bool:
        """New work is refused; health, liveness and reflection answer."""
        return self.calls.draining

    def method(self, name: str, kind: str, capped: bool = True) -> GuardedMethod:
        """A method of a service. kind: as the metrics of gRPC name it, such as unary or bidi_stream."""
        service, _, short = name.lstrip("/").rpartition("/")
        counts = self.metrics.method(kind, service, short)
        return GuardedMethod(name, service, short, scope_of(name) is None, capped, counts)

    async def answer(self, method: GuardedMethod, arrival: Arrival, work: Callable[[], Awaitable[T]]) -> T:
        """Answer one call by `work`, which finds its Call in CALL; write down how it ended. Raises what ended it."""
        began = time.monotonic()
        call = Call(_request_id(arrival.metadata), method.name)
        CALL.set(call)
        arrival.began(call)
        method.counts.started.inc()
        span = None
        if self._tracing is not None:
            span = self._tracing.start(method.service, method.short, arrival.metadata, call.request_id)
        code = "UNKNOWN"
        problem: BaseException | None = None
        try:
            self._admit(method, call, arrival)
            with nullcontext() if method.open else self.calls.answering(call):
                reply = await self._in_time(method, call, arrival, work, began)
            code = arrival.code()
            return reply
        except asyncio.CancelledError:  # by the client or its deadline; the transport answers, if anybody still listens
            late = call.deadline is not None and time.monotonic() > call.deadline - CLOSE
            problem = Expired("the client's deadline passed.") if late else Cancelled("the caller went away.")
            code = problem.status
            raise
        except arrival.answered:  # the handler aborted by itself; or nothing could be written, because nobody reads
            code = arrival.code()
            code = "CANCELLED" if code == "OK" else code
            raise
        except Exception as error:
            problem, code = error, grpc_status.code_of(error)
            raise
        finally:  # before the client hears of it: the work ends first, and who counts calls has counted this one
            if code != "OK":
                call.stop(problem if isinstance(problem, OnnxplainError) else None)
            self._record(method, call, code, problem, time.monotonic() - began, arrival)
            if self._tracing is not None and span is not None:
                self._tracing.end(span, code, grpc.StatusCode[code].value[0], call.log_fields)

    def _admit(self, method: GuardedMethod, call: Call, arrival: Arrival) -> None:
        """Let the call in, or raise why not."""
        if method.open:
            return
        if self.draining:
            self.metrics.refused("", "draining")
            raise Unavailable("this server is going down and takes no new work. Try again: another one may answer.")
        if self._tokens is not None:
            call.caller = self._tokens.caller(value for key, value in arrival.metadata if key == "authorization")
        elif self._mutual:
            call.caller = Caller(next(iter(arrival.certificate_names()), ""), ANYONE.scopes)
        scope = scope_of(method.name)
        if scope is not None:
            call.caller.require(scope)

    async def _in_time(
        self, method: GuardedMethod, call: Call, arrival: Arrival, work: Callable[[], Awaitable[T]], began: float
    ) -> T:
        """Answer before the client's deadline and ours. The transport cancels us at the client's; ours is kept here."""
        left = arrival.seconds_left()
        if left is not None:
            call.deadline = began + left
        if not method.capped or (left is not None and left <= self.max_request_seconds):
            return await work()
        call.deadline = began + self.max_request_seconds
        timer = asyncio.timeout(self.max_request_seconds)
        try:
            async with timer:
                return await work()
        except Exception as error:
            if not timer.expired():
                raise
            raise Expired(
                f"no answer within the {self.max_request_seconds:g} s that this server gives a request "
                "(--max-request-seconds)."
            ) from error

    def _record(
        self,
        method: GuardedMethod,
        call: Call,
        code: str,
        problem: BaseException | None,
        seconds: float,
        arrival: Arrival,
    ) -> None:
        """Count a call that ended, and log it: calls without a token only where debugging is asked for."""
        method.counts.ended(code, seconds)
        level = logging.DEBUG if method.open and code == "OK" else logging.INFO
        if LOG.isEnabledFor(level):
            ours: dict[str, object] = {
                "request_id": call.request_id,
                "method": method.name,
                "caller": call.caller.name or None,
                "peer": arrival.peer(),
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
