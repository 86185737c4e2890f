"""What Ray Serve's gRPC proxy is told of our services: `grpc_servicer_functions` names the two functions here.

The proxy hands messages on as bytes. On their way this adds what callers need not say: the model's name, by which Ray
chooses a replica that has it, and the time that is left. A replica that dies with a request is not the caller's
trouble: the request, which changes nothing, is asked once more; then it is UNAVAILABLE, which says "try again".
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import grpc
from google.rpc import code_pb2, error_details_pb2, status_pb2  # type: ignore[import-untyped]

from onnxplain.engines.ray_methods import EXPLAINER_METHODS, INFERENCE_METHODS, ServedMethod, model_of

TRIES = 2  # of a request whose replica dies
MODEL, SECONDS_LEFT = "multiplexed_model_id", "onnxplain-seconds-left"
DETAILS = "grpc-status-details-bin"
OURS = "internal error; log id"  # how a replica's own INTERNAL begins; any other is Ray's
LOST = "a replica went down while it was answering; try again, another one will answer."
COME_BACK = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)
RETRY_SECONDS = 1.0


def add_explainer_service_to_server(servicer: Any, server: Any) -> None:
    """Register onnxplain.v1.ExplainerService. servicer: Ray's stand-in, whose methods it replaces."""
    server.add_generic_rpc_handlers((_Service(EXPLAINER_METHODS),))


def add_inference_service_to_server(servicer: Any, server: Any) -> None:
    """Register inference.GRPCInferenceService, whose messages live in a pool of our own: see wire/inference.py."""
    server.add_generic_rpc_handlers((_Service(INFERENCE_METHODS),))


class _Service(grpc.ServiceRpcHandler):
    """Handlers by path. Ray puts its own in their place, and `service` gives these out with ours around them."""

    def __init__(self, methods: Sequence[ServedMethod]):
        self._methods = {method.path: method for method in methods}
        self._method_handlers = {method.path: _empty(method) for method in methods}

    def service_name(self) -> str:
        return next(iter(self._methods.values())).service

    def service(self, handler_call_details: Any) -> Any:
        name = handler_call_details.method
        handler = self._method_handlers.get(name)
        return None if handler is None else _around(self._methods[name], handler)


def _empty(method: ServedMethod) -> Any:
    """A handler that takes bytes; Ray replaces what it does."""

    async def nothing(request: Any, context: Any) -> Any:
        raise NotImplementedError("Ray Serve's proxy answers")

    kinds: dict[tuple[bool, bool], Callable[..., Any]] = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }
    return kinds[method.takes_stream, method.gives_stream](nothing)


def _around(method: ServedMethod, handler: Any) -> Any:
    if method.gives_stream:
        inner = handler.stream_stream if method.takes_stream else handler.unary_stream
        return handler._replace(
            **{"stream_stream" if method.takes_stream else "unary_stream": _streaming(method, inner)}
        )
    return handler._replace(unary_unary=_unary(handler.unary_unary))


def _unary(inner: Callable[..., Any]) -> Callable[..., Any]:
    async def answer(request: bytes, context: Any) -> Any:
        model = model_of(request)
        for _ in range(TRIES):
            attempt = _Attempt(context, model)
            reply = await inner(request, attempt)
            if not attempt.lost:
                break
        attempt.conclude()
        return reply

    return answer


def _streaming(method: ServedMethod, inner: Callable[..., Any]) -> Callable[..., Any]:
    async def answer(request: Any, context: Any) -> AsyncIterator[Any]:
        attempt = _Attempt(context, "" if method.takes_stream else model_of(request))
        async for reply in inner(request, attempt):
            yield reply
        attempt.conclude()

    return answer


class _Attempt:
    """A call's context for one attempt: what the attempt says of its end is kept until it counts."""

    def __init__(self, context: Any, model: str):
        self._context, self._details = context, ""
        self._code: Any = None
        self._trailing: tuple[Any, ...] = tuple(context.trailing_metadata() or ())
        given = tuple(context.invocation_metadata() or ())
        left = context.time_remaining()
        self._metadata = (
            *(pair for pair in given if pair[0] != SECONDS_LEFT),
            *([(MODEL, model)] if model and all(key != MODEL for key, _ in given) else []),
            *([(SECONDS_LEFT, f"{left:.3f}")] if left is not None else []),
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    @property
    def lost(self) -> bool:
        """Whether Ray failed, and not what it runs: it says INTERNAL for a replica that died."""
        return self._code == grpc.StatusCode.INTERNAL and not self._details.startswith(OURS)

    def conclude(self) -> None:
        """Tell the caller how it ended."""
        if self.lost:
            self._code, self._details = grpc.StatusCode.UNAVAILABLE, LOST
        if self._code in COME_BACK and all(key != DETAILS for key, _ in self._trailing):  # said by Ray, or by us here
            retry = error_details_pb2.RetryInfo()
            retry.retry_delay.FromNanoseconds(int(RETRY_SECONDS * 1e9))
            status = status_pb2.Status(code=code_pb2.Code.Value(self._code.name), message=self._details)
            status.details.add().Pack(retry)
            self._trailing = (*self._trailing, (DETAILS, status.SerializeToString()))
        if self._code is not None:
            self._context.set_code(self._code)
        if self._details:
            self._context.set_details(self._details)
        if self._trailing:
            self._context.set_trailing_metadata(self._trailing)

    def invocation_metadata(self) -> tuple[Any, ...]:
        return self._metadata

    def code(self) -> Any:
        return self._code

    def set_code(self, code: Any) -> None:
        self._code = code

    def details(self) -> str:
        return self._details

    def set_details(self, details: str) -> None:
        self._details = details

    def trailing_metadata(self) -> tuple[Any, ...]:
        return self._trailing

    def set_trailing_metadata(self, metadata: Sequence[Any]) -> None:
        self._trailing = tuple(metadata)
