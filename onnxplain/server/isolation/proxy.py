"""A model served from a worker process: the same messages, forwarded; a new worker when the old one ends."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, TypeVar

import grpc

from onnxplain.client.streams import OneReply
from onnxplain.errors import Expired, OnnxplainError, Unavailable
from onnxplain.machine import resident_bytes
from onnxplain.server.call import CALL, Call, log_fields
from onnxplain.server.isolation import call_fields
from onnxplain.server.isolation.callers import caller_metadata
from onnxplain.server.isolation.errors import exit_description, worker_error
from onnxplain.server.isolation.pool import WorkerPool
from onnxplain.server.isolation.process import WorkerProcess
from onnxplain.server.models.served import Progress
from onnxplain.server.telemetry.logs import event
from onnxplain.sources import ResolvedModel
from onnxplain.v1 import explainer_pb2 as v1
from onnxplain.v1 import explainer_pb2_grpc
from onnxplain.wire.inference import INFERENCE, RPCS
from onnxplain.wire.inference import messages as oip

LOG = logging.getLogger("onnxplain.server")
BACKOFF = (0.1, 10.0)  # seconds before a worker that ended young is followed by the next: first, longest
LIVED_LONG = 10.0  # seconds: a worker that ended later than this is followed at once
OUTSIDE_CALL = 10.0  # seconds for a request that belongs to no call
WORKER_BYTES = 190 * 2**20  # of a process with a small model, where the system does not say
NOTICE = 1.0  # seconds after a broken connection in which the system says how the process ended

T = TypeVar("T")


class IsolatedModel:
    """See `Served`. This process never reads the model: a file that crashes what reads it ends a worker."""

    def __init__(self, model: ResolvedModel, pool: WorkerPool):
        self.name, self.version = model.name, model.version
        self._model, self._worker_pool = model, pool
        self._worker: WorkerProcess | None = None
        self._problem = "it is being started"
        self._watch: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, model: ResolvedModel, pool: WorkerPool) -> IsolatedModel:
        """Load it in a worker. Raises OnnxplainError with the reason if that fails; nothing is left behind."""
        isolated = cls(model, pool)
        isolated._worker = await pool.start_worker(model)
        isolated._watch = asyncio.get_running_loop().create_task(isolated._keep_alive())
        return isolated

    @property
    def pid(self) -> int | None:
        """Of the worker that answers now, None while there is none."""
        return None if self._worker is None else self._worker.pid

    @property
    def nbytes(self) -> int:
        """Memory that its process holds now."""
        return 0 if self.pid is None else resident_bytes(self.pid) or WORKER_BYTES

    # The Open Inference Protocol

    async def infer(self, request: Any) -> Any:
        """ModelInfer."""
        if request.model_version:  # see _set_version
            request.model_version = self.version
        return await self._infer_call("ModelInfer", request)

    async def metadata(self, name: str) -> Any:
        """ModelMetadata."""
        return await self._infer_call("ModelMetadata", oip.ModelMetadataRequest(name=name, version=self.version))

    async def config(self, name: str) -> Any:
        """ModelConfig."""
        return await self._infer_call("ModelConfig", oip.ModelConfigRequest(name=name, version=self.version))

    async def statistics(self) -> list[Any]:
        """Since the worker began; none while there is no worker."""
        try:
            reply = await self._infer_call("ModelStatistics", oip.ModelStatisticsRequest())
        except Unavailable:
            return []
        return list(reply.model_stats)

    async def ready(self, name: str) -> bool:
        """Whether this name answers."""
        try:
            reply = await self._infer_call("ModelReady", oip.ModelReadyRequest(name=name, version=self.version))
        except Unavailable:
            return False
        return bool(reply.ready)

    async def explanations(self) -> list[tuple[str, str]]:
        """Names of the explanations, each with why it does not answer; none while there is no worker."""
        try:
            reply = await self._infer_call("RepositoryIndex", oip.RepositoryIndexRequest())
        except Unavailable:
            return []
        return [(m.name, m.reason if m.state != "READY" else "") for m in reply.models if m.name != self.name]

    # onnxplain.v1

    async def explain(self, request: v1.ExplainRequest, progress: Progress | None = None) -> v1.ExplainResponse:
        """The reasons for an answer. With progress the worker streams it."""
        self._set_version(request.model)
        if progress is not None:
            return await self._streamed(request, progress)
        return await self._forward(lambda channel, **more: _stub(channel).Explain(request, **more))

    async def _streamed(self, request: v1.ExplainRequest, progress: Progress) -> v1.ExplainResponse:
        answer = OneReply(lambda stage, done, total: progress(done, total) if stage == "compute" else None)
        messages = iter([v1.ExplainStreamRequest(request=request)])
        async with self._calling(lambda channel, **more: _stub(channel).ExplainStream(messages, **more)) as replies:
            async for reply in replies:
                answer.take(reply)
        return answer.result()

    async def explainability(self, request: v1.GetExplainabilityRequest) -> v1.GetExplainabilityResponse:
        """What can be explained of the model."""
        self._set_version(request.model)
        return await self._forward(lambda channel, **more: _stub(channel).GetExplainability(request, **more))

    async def compile(self, request: v1.CompileGraphRequest) -> AsyncIterator[v1.CompileGraphResponse]:
        """The compiled graph in pieces, as fast as they are taken."""
        self._set_version(request.model)
        async with self._calling(lambda channel, **more: _stub(channel).CompileGraph(request, **more)) as pieces:
            async for piece in pieces:
                yield piece

    async def close(self) -> None:
        """End the worker. Calls that it still answers have a few seconds."""
        if self._watch is not None:
            self._watch.cancel()
            with suppress(asyncio.CancelledError):
                await self._watch
        worker, self._worker, self._problem = self._worker, None, "it is being unloaded"
        if worker is not None:
            await worker.stop()

    # Forwarding

    def _set_version(self, model: v1.ModelRef) -> None:
        """Whatever the caller asked for was resolved to us; a worker knows no aliases."""
        if model.version:
            model.version = self.version

    async def _infer_call(self, method: str, request: Any) -> Any:
        """One call of the Open Inference Protocol, in the messages of our own pool."""
        kind = RPCS[method]
        return await self._forward(
            lambda channel, **more: channel.unary_unary(
                f"/{INFERENCE}/{method}", kind.request.SerializeToString, kind.response.FromString
            )(request, **more)
        )

    async def _forward(self, call: Callable[..., Awaitable[T]]) -> T:
        async with self._calling(call) as answer:
            reply: T = await answer
            return reply

    @asynccontextmanager
    async def _calling(self, begin: Callable[..., Any]) -> AsyncIterator[Any]:
        """A call of the worker that ends with the call being answered; errors inside become what they mean."""
        worker, current = self._worker, CALL.get(None)
        if worker is None or worker.channel is None:
            raise Unavailable(f"{self.name}: the model has no process now: {self._problem}. Try again shortly.")
        left, metadata = OUTSIDE_CALL, ()
        if current is not None:
            current.check()
            left = None if current.deadline is None else current.deadline - time.monotonic()  # type: ignore[assignment]
            metadata = (("x-request-id", current.request_id), *caller_metadata(current.caller))  # type: ignore[assignment]
        call = begin(worker.channel, timeout=left, metadata=metadata)
        try:
            with _ending(call, current):
                yield call
            if call.done():
                log_fields(**call_fields.decoded(await call.trailing_metadata()))
        except grpc.aio.AioRpcError as error:
            log_fields(**call_fields.decoded(error.trailing_metadata()))
            raise await self._error(worker, error) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            if current is not None:
                current.check()  # stopped by its deadline, or with its stream
            raise await self._connection_error(worker) from None  # the channel was closed under us
        finally:
            call.cancel()  # without effect on a call that was answered

    async def _error(self, worker: WorkerProcess, error: grpc.aio.AioRpcError) -> Exception:
        """What a failed call is to our caller."""
        reported = worker_error(error)
        if reported is not None:
            return reported
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            return Expired("the deadline passed before the answer was ready. Allow more time, or send fewer rows.")
        return await self._connection_error(worker, error)

    async def _connection_error(self, worker: WorkerProcess, error: grpc.aio.AioRpcError | None = None) -> Exception:
        """The connection broke; mostly because the process ended."""
        await asyncio.wait({worker.ended}, timeout=NOTICE)
        if worker.code is None and error is not None and error.code() is not grpc.StatusCode.UNAVAILABLE:
            return RuntimeError(f"the model's process: {error.code().name} {error.details()}")
        how = exit_description(worker.code)
        return Unavailable(f"{self.name}: the model's process ended ({how}); it is being started again. Try again.")

    # Keeping a worker

    async def _keep_alive(self) -> None:
        """Follow a worker that ended by the next one, for ever; slower where they end young."""
        wait, born = 0.0, time.monotonic()
        while True:
            worker = self._worker
            if worker is not None:
                code = await asyncio.shield(worker.ended)  # which outlives this task
                self._worker, self._problem = None, f"it ended ({exit_description(code)}) and is being started again"
                event(
                    LOG,
                    logging.ERROR,
                    "model process ended",
                    model=self.name,
                    version=self.version,
                    how=exit_description(code),
                )
                await worker.free()
                if time.monotonic() - born > LIVED_LONG:
                    wait = 0.0
            await asyncio.sleep(wait)
            wait = min(BACKOFF[1], max(BACKOFF[0], 2 * wait))
            begun = time.monotonic()
            try:
                self._worker = await self._worker_pool.start_worker(self._model, restart=True)
            except OnnxplainError as error:
                self._problem = f"it could not be started again ({error})"
                event(LOG, logging.ERROR, "model process not started", model=self.name, reason=str(error))
            except Exception:
                LOG.exception("model process not started")
            else:
                born = time.monotonic()
                self._worker_pool.metrics.restarted()
                seconds = round(born - begun, 3)
                event(LOG, logging.INFO, "model process started again", model=self.name, seconds=seconds)


def _stub(channel: grpc.aio.Channel) -> Any:
    make: Any = explainer_pb2_grpc.ExplainerServiceStub  # generated, without types
    return make(channel)


@contextmanager
def _ending(call: Any, current: Call | None) -> Iterator[None]:
    """While inside, the worker's call is cancelled when ours is stopped, from whatever thread."""
    if current is None:
        yield
        return
    loop = asyncio.get_running_loop()

    def end() -> None:
        with suppress(RuntimeError):  # the loop was closed
            loop.call_soon_threadsafe(call.cancel)

    forget = current.on_stop(end)
    try:
        yield
    finally:
        forget()
