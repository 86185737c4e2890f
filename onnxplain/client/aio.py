"""The same client for asyncio: the same methods with the same arguments, to be awaited."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc

from onnxplain.client.calls import ModelState, RpcCall, pauses, serialised, worth_another
from onnxplain.client.connection import OPTIONS, Connection
from onnxplain.client.dialogues import Ask, Dialogues
from onnxplain.client.errors import error_of
from onnxplain.client.requests import X
from onnxplain.client.responses import RemoteExplanation
from onnxplain.client.streams import Progress
from onnxplain.errors import OnnxplainError, UsageError
from onnxplain.inputs import Loaded
from onnxplain.recipes import Recipe
from onnxplain.runtime.session import Array
from onnxplain.v1 import explainer_pb2 as v1

T = TypeVar("T")


class AsyncClient:
    """See `Client`. To be used in one event loop; the connection is made by the first call."""

    def __init__(
        self,
        address: str,
        *,
        token: str | None = None,
        ca: str | Path | None = None,
        cert: str | Path | None = None,
        key: str | Path | None = None,
        timeout: float = 60.0,
        retries: int = 3,
        insecure: bool = False,
    ):
        self._connection = Connection(address, token, ca, cert, key, insecure)
        self._timeout, self._retries, self._dialogues = timeout, retries, Dialogues()
        self._metadata = self._connection.metadata()
        self._credentials = self._connection.credentials()
        self._channel: grpc.aio.Channel | None = None
        self._closed = False
        self._methods: dict[str, Any] = {}

    async def explain(
        self,
        model: str,
        x: X,
        target: Ask | Sequence[Ask] = "predicted",
        *,
        version: str = "",
        method: str | None = None,
        recipe: str | Recipe | Mapping[str, Any] | None = None,
        explain: str = "",
        head: str = "",
        attribute_to: str | Sequence[str] = (),
        outputs: str | Sequence[str] = (),
        ledger: bool = False,
        timeout: float | None = None,
        progress: Progress | None = None,
        **options: Any,
    ) -> RemoteExplanation:
        """See `Client.explain`."""
        return await self._run(
            self._dialogues.explain(
                model, x, target, version, method, recipe, options, explain, head, attribute_to,
                outputs, ledger, progress,
            ),
            timeout,
        )  # fmt: skip

    async def infer(
        self,
        model: str,
        x: X,
        outputs: str | Sequence[str] = (),
        *,
        version: str = "",
        parameters: Mapping[str, str | int | bool] | None = None,
        timeout: float | None = None,
    ) -> dict[str, Array]:
        """See `Client.infer`."""
        return await self._run(self._dialogues.infer(model, x, outputs, version, parameters or {}), timeout)

    async def prepare(self, model: str, x: X, *, version: str = "", timeout: float | None = None) -> Loaded:
        """See `Client.prepare`."""
        return await self._run(self._dialogues.prepare(model, x, version), timeout)

    async def explainability(
        self, model: str, *, version: str = "", timeout: float | None = None
    ) -> v1.GetExplainabilityResponse:
        """See `Client.explainability`."""
        return await self._run(self._dialogues.explainability(model, version), timeout)

    async def recipes(self, *, timeout: float | None = None) -> list[v1.RecipeInfo]:
        """See `Client.recipes`."""
        return await self._run(self._dialogues.recipes(), timeout)

    async def compile(
        self,
        model: str,
        *,
        version: str = "",
        method: str | None = None,
        recipe: str | Recipe | Mapping[str, Any] | None = None,
        explain: str = "",
        head: str = "",
        attribute_to: str | Sequence[str] = (),
        timeout: float | None = None,
        progress: Progress | None = None,
        **options: Any,
    ) -> bytes:
        """See `Client.compile`."""
        return await self._run(
            self._dialogues.compile(model, version, method, recipe, options, explain, head, attribute_to, progress),
            timeout,
        )

    async def models(self, *, timeout: float | None = None) -> list[ModelState]:
        """See `Client.models`."""
        return await self._run(self._dialogues.models(), timeout)

    async def ready(self, model: str = "", *, version: str = "", timeout: float | None = None) -> bool:
        """See `Client.ready`."""
        return await self._run(self._dialogues.ready(model, version), timeout)

    async def close(self) -> None:
        """End the connection; calls that wait are cancelled."""
        self._closed = True
        if self._channel is not None:
            await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _run(self, steps: Generator[RpcCall, Any, T], timeout: float | None) -> T:
        """Make the calls of a dialogue; what it does between them (reading pictures) is done in a thread."""
        seconds = self._timeout if timeout is None else timeout
        until = time.monotonic() + seconds
        step: tuple[Any, ...] = (steps.send, None)
        while True:
            call, value = await asyncio.to_thread(_next, *step)
            if call is None:
                result: T = value
                return result
            try:
                step = (steps.send, await self._answer(call, until, seconds))
            except OnnxplainError as error:
                step = (steps.throw, error)

    async def _answer(self, call: RpcCall, until: float, seconds: float) -> Any:
        """One call, tried again where that is safe and there is time."""
        waits = pauses(self._retries)
        while True:
            try:
                return await self._once(call, max(0.001, until - time.monotonic()))
            except grpc.RpcError as error:
                meant = error_of(error, self._connection.address, seconds)
            pause = worth_another(meant, next(waits, float("inf")), until - time.monotonic())
            if pause is None:
                raise meant
            await asyncio.sleep(pause)

    async def _once(self, call: RpcCall, timeout: float) -> Any:
        method = self._methods.get(call.path)
        if method is None:
            method = getattr(self._open(), call.kind)(call.path, serialised, call.reply.FromString)
            self._methods[call.path] = method
        try:
            answer = method(call.outgoing(), timeout=timeout, metadata=self._metadata)
            if call.collector is None:
                return await answer
            collector = call.collector()
            try:
                async for message in answer:
                    collector.take(message)
            finally:
                answer.cancel()  # where it ended already, nothing happens
        except grpc.aio.UsageError as error:
            raise UsageError("the client is closed; make a new one.") from error
        return collector.result()

    def _open(self) -> grpc.aio.Channel:
        """The channel; made here because it belongs to the event loop that runs."""
        if self._closed:
            raise UsageError("the client is closed; make a new one.")
        if self._channel is None:
            address, options = self._connection.address, OPTIONS
            self._channel = (
                grpc.aio.insecure_channel(address, options)
                if self._credentials is None
                else grpc.aio.secure_channel(address, self._credentials, options)
            )
        return self._channel


def _next(go: Any, value: Any) -> tuple[RpcCall | None, Any]:
    """The next call of a dialogue, or None and what it came to; StopIteration does not pass between threads."""
    try:
        return go(value), None
    except StopIteration as end:
        return None, end.value
