"""Requests of a model, counted where it answers them: whatever the protocol, forward and explanation apart."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

from onnxplain.errors import OnnxplainError
from onnxplain.server.call import CALL
from onnxplain.server.grpc_status import code_of
from onnxplain.server.telemetry.metrics import Metrics

F = TypeVar("F", bound=Callable[..., Awaitable[Any]])
EXPLAIN = ".explain"  # in the name of a model that explains another


class _Counting(Protocol):
    name: str

    @property
    def metrics(self) -> Metrics: ...


def counted(answer: F) -> F:
    """For a method (self, request, …) of a served model: its calls are counted by model, kind and code."""

    @functools.wraps(answer)
    async def answered(self: _Counting, request: Any, *more: Any) -> Any:
        explains = answer.__name__ == "explain" or EXPLAIN in request.model_name.removeprefix(self.name)
        begun, code = time.perf_counter(), "UNKNOWN"
        try:
            reply = await answer(self, request, *more)
            code = "OK"
            return reply
        except asyncio.CancelledError:
            code = _cancelled()
            raise
        except Exception as error:
            code = code_of(error)
            raise
        finally:
            self.metrics.request(self.name, explains, code, time.perf_counter() - begun)

    return answered  # type: ignore[return-value]


def _cancelled() -> str:
    """Why a request was called off: its deadline, or who asked."""
    call = CALL.get(None)
    try:
        if call is not None:
            call.check()
    except OnnxplainError as error:
        return error.status
    return "CANCELLED"
