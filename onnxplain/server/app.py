"""The server as a whole: from options and sources to a port that answers, and back to nothing in good order.

Long because all that a server has is made here, and ended here in an order that matters.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from functools import partial
from typing import Any

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from onnxplain.errors import InputError
from onnxplain.server.going_down import CLOSE, REST, TELL, drain, force_end, within
from onnxplain.server.guard import Guard
from onnxplain.server.handlers.local_model import LocalModel
from onnxplain.server.http.server import HttpServer
from onnxplain.server.isolation.callers import ForwardedCallers
from onnxplain.server.isolation.pool import WorkerPool
from onnxplain.server.isolation.proxy import IsolatedModel
from onnxplain.server.memory_ledger import MemoryLedger
from onnxplain.server.memory_pressure import MemoryPressure
from onnxplain.server.models.context import ServerContext
from onnxplain.server.models.lifecycle import Loader
from onnxplain.server.models.load_turns import LoadTurns
from onnxplain.server.models.loaded import LoadedModel
from onnxplain.server.models.loading import ModelLoading, Opener
from onnxplain.server.models.repository import ModelRepository
from onnxplain.server.models.residency import ModelResidency
from onnxplain.server.models.served import Served
from onnxplain.server.open_files import raise_limit
from onnxplain.server.options import ServerOptions
from onnxplain.server.reading_turns import ReadingTurns
from onnxplain.server.rpc.channel_options import channel_options
from onnxplain.server.rpc.explainer_service import ExplainerService
from onnxplain.server.rpc.health_service import NOT_SERVING, SERVING, Health
from onnxplain.server.rpc.inference_service import InferenceService
from onnxplain.server.rpc.interceptor import Interceptor
from onnxplain.server.rpc.tls import server_credentials
from onnxplain.server.runtime_folder import sweep_runtime_folders
from onnxplain.server.scheduling.compile_queue import CompileQueue
from onnxplain.server.scheduling.scheduler import Scheduler
from onnxplain.server.scheduling.session_cache import SessionCache
from onnxplain.server.telemetry.endpoint import MetricsEndpoint, scrapers_token
from onnxplain.server.telemetry.logs import dropped_lines, event
from onnxplain.server.telemetry.metrics import Metrics
from onnxplain.server.telemetry.tracing import tracing
from onnxplain.server.tokens import Callers, Tokens
from onnxplain.sources import DirectorySource, ModelSource, Release, ResolvedModel
from onnxplain.sources.graph_bucket import graph_cache
from onnxplain.v1 import explainer_pb2 as v1
from onnxplain.v1 import explainer_pb2_grpc
from onnxplain.wire.inference import INFERENCE, POOL

LOG = logging.getLogger("onnxplain.server")
EXPLAINER = v1.DESCRIPTOR.services_by_name["ExplainerService"].full_name
LIVENESS = "liveness"  # a health name that no model and no source can make fail
THREADS = 128  # explanations that compute or wait at a time; those beyond wait for a thread
HEALTH = "grpc.health.v1.Health"


class Server:
    """A gRPC server over some sources of models.

    start() returns when the port answers; models load behind it. Health and readiness say when they are there. load:
    for tests and for a worker process that was given its model.
    """

    def __init__(self, options: ServerOptions, sources: Sequence[ModelSource], loader: Loader | None = None):
        self.options = options
        self.metrics = Metrics()
        self.metrics.count_dropped_lines(dropped_lines)
        self.metrics.sessions_budget(options.session_bytes)
        self.wake = asyncio.Event()  # set by a webhook: look at the sources now
        self.port = 0
        self.scheduler = Scheduler(options.run_slots)
        sessions = SessionCache(options.session_bytes, self.metrics.sessions)
        pressure = MemoryPressure(options.process_bytes, sessions.close_idle) if options.bounds_process else None
        sessions.pressure = pressure
        refused = partial(self.metrics.refused, "", "memory")
        self.memory = MemoryLedger(options.client_bytes, self.metrics.held, refused, pressure)
        self.context = ServerContext(
            options,
            self.scheduler,
            sessions,
            self.metrics,
            CompileQueue(
                options.compile_queue, options.max_compile_seconds, nbytes=options.session_bytes / 2, pressure=pressure
            ),
            graph_cache(options.graph_cache, options.graph_cache_bytes) if options.graph_cache is not None else None,
            self.memory,
        )
        self._worker_pool = WorkerPool(options, self.metrics) if options.isolate else None
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="onnxplain-explain")
        turns = LoadTurns(options.loads)
        self._loading = ModelLoading(
            turns, options.max_load_seconds, self.metrics, Opener(self._open, close_model, sessions.close_idle),
            None if self._worker_pool is None else self._open_isolated, self._room,
        )  # fmt: skip
        roots = [options.cache, *(source.root.absolute() for source in sources if isinstance(source, DirectorySource))]
        self.repository = ModelRepository(
            sources, loader or self._loading, options.control, options.load, self._changed,
            turns=turns, readiness=options.readiness, roots=roots, lazy=options.lazy,
        )  # fmt: skip
        self.residency: ModelResidency | None = None
        if options.lazy:
            lifecycle = self.repository.lifecycle
            self.residency = ModelResidency(options.model_bytes or options.process_bytes, lifecycle, self.metrics)
            lifecycle.used = self.residency.soon
        self._sources = sources
        self._health = Health()
        self._known: set[str] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stop_metrics: Callable[[], None] = lambda: None
        self._hurry = asyncio.Event()  # a second signal
        self._stopping: asyncio.Task[None] | None = None
        self._tracing = tracing()
        self._callers = _callers(options)
        self._guard = Guard(
            self.metrics,
            self._callers,
            options.max_request_seconds,
            self._tracing,
            options.tls_ca is not None,
        )
        self.http = HttpServer(options, self._guard, self.repository, self.memory, roots)
        interceptor = Interceptor(
            self._guard,
            roots,
            options.idle_seconds,
            worker=options.socket is not None,
            memory=self.memory,
            turns=ReadingTurns(pressure, options.max_message_bytes),
        )
        self._server = grpc.aio.server(interceptors=[interceptor], options=channel_options(options))

    async def start(self) -> None:
        """Bind, answer, and begin to load. Raises InputError where the port is taken."""
        options, server = self.options, self._server
        register: Any = explainer_pb2_grpc.add_ExplainerServiceServicer_to_server  # generated, without types
        register(ExplainerService(self.repository, options, self.memory), server)
        inference = InferenceService(self.repository, options.max_request_seconds, self.memory)
        server.add_generic_rpc_handlers((inference.handler(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        if options.reflection:
            names = [EXPLAINER, INFERENCE, HEALTH, reflection.SERVICE_NAME]
            reflection.enable_server_reflection(names, server, pool=POOL)
        address = f"unix:{options.socket}" if options.socket else f"{_bracketed(options.host)}:{options.port}"
        try:
            if options.tls_cert is not None and options.tls_key is not None:
                credentials: Any = server_credentials(options.tls_cert, options.tls_key, options.tls_ca)
                self.port = server.add_secure_port(address, credentials)
            else:
                self.port = server.add_insecure_port(address)
        except RuntimeError as error:
            raise InputError(
                f"cannot listen on {address}: the port is taken or not this machine's. Choose another --port."
            ) from error
        if options.metrics_port:
            admit = scrapers_token(self._callers) if isinstance(self._callers, Tokens) else None
            tls = (options.tls_cert, options.tls_key, options.tls_ca) if options.tls_cert and options.tls_key else None
            endpoint = MetricsEndpoint(self.metrics.registry, options.host, options.metrics_port, tls, admit)
            self._stop_metrics = endpoint.stop
        await self.http.start()
        await server.start()
        for service in (EXPLAINER, INFERENCE, LIVENESS):
            await self._set_health(service, SERVING)
        event(LOG, logging.INFO, "listening", address=address if options.socket else f"{options.host}:{self.port}")
        self._spawn(self._follow())

    async def serve(self) -> None:
        """Until SIGTERM or SIGINT, then drain; a second signal ends it at once."""
        if self.options.socket is None:
            raise_limit(self.options.max_connections)
            sweep_runtime_folders()
        gc.collect()
        gc.freeze()  # what was imported stays: no collection, such as after each unload, looks through it again
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
        await self._server.wait_for_termination()
        if self._stopping is not None:
            await self._stopping

    async def stop(self, grace: float | None = None) -> None:
        """Refuse new calls, let those being answered end, close everything. grace: seconds, None: --drain-timeout."""
        self._health.shut_down()
        self.repository.leaving = True
        if grace is None and self.options.drain_delay:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), self.options.drain_delay)
        self._health.end_watches()
        for task in self._tasks:
            task.cancel()
        seconds = self.options.drain_timeout if grace is None else grace
        seconds = 0.0 if self._hurry.is_set() else seconds
        self.context.compile_queue.close(seconds)
        http = within(seconds + TELL, "HTTP connections", self.http.stop(seconds))
        await asyncio.gather(drain(self._server, self._guard.calls, seconds), http)
        self._threads.shutdown(wait=False, cancel_futures=True)
        threads: list[Callable[[], None]] = [
            self.scheduler.close,
            partial(self.context.compile_queue.join, CLOSE),
            self._stop_metrics,
        ]
        if self._tracing is not None:
            threads.append(self._tracing.close)
        await within(CLOSE, "models and threads", self._close_models(), *map(asyncio.to_thread, threads))
        event(LOG, logging.INFO, "stopped")

    async def _close_models(self) -> None:
        await self.repository.close()
        await self._loading.close()
        if self.residency is not None:
            self.residency.close()
        if self._worker_pool is not None:
            await self._worker_pool.close()

    def _signalled(self) -> None:
        if self._stopping is None:
            event(LOG, logging.INFO, "draining")
            force_end(self.options.drain_delay + self.options.drain_timeout + REST)
            self._stopping = asyncio.get_running_loop().create_task(self.stop())
        else:
            self._hurry.set()
            self._guard.calls.cut()
            self._spawn(self._server.stop(0))
            self._spawn(self.http.stop(0))

    async def _follow(self) -> None:
        """Load what there is; look again for ever where the sources may change."""
        await self.repository.look()
        if self.options.control == "poll":
            await self.repository.poll(self.options.poll_seconds, self.wake)
        while self.repository.health.silent:  # a source that was down at the start is asked until it answers once
            await asyncio.sleep(self.options.poll_seconds)
            await self.repository.look()

    def _open(self, resolved: ResolvedModel) -> LocalModel:
        """A model in this process; blocks."""
        model = LoadedModel(resolved, self.context)
        try:
            return LocalModel(model, self._threads)
        except BaseException:
            model.close()
            raise

    def _room(self, release: Release, resolved: ResolvedModel) -> AbstractAsyncContextManager[None]:
        """Memory for a model to load into: lazy ones make way for each other."""
        return nullcontext() if self.residency is None else self.residency.room(release, resolved)

    async def _open_isolated(self, resolved: ResolvedModel) -> Served:
        assert self._worker_pool is not None
        return await IsolatedModel.start(resolved, self._worker_pool)

    def _changed(self) -> None:
        """The repository changed: health and metrics follow."""
        self._spawn(self._publish())

    async def _publish(self) -> None:
        await self._set_health("", SERVING if self.repository.ready else NOT_SERVING)
        answers = self.repository.states()
        states: dict[str, Any] = {f"model/{name}": SERVING if good else NOT_SERVING for name, good in answers.items()}
        states |= {
            f"source/{s.name}": NOT_SERVING if s.name in self.repository.health.silent else SERVING
            for s in self._sources
        }
        for gone in self._known - states.keys():
            await self._set_health(gone, NOT_SERVING)
            self.metrics.model_gone(gone.removeprefix("model/"))
        for name in self.repository.names():
            self.metrics.newest_version(name, int(self.repository.versions(name)[-1]))
        self._known = set(states)
        for service, state in states.items():
            await self._set_health(service, state)

    async def _set_health(self, service: str, state: Any) -> None:
        self._health.set(service, state)

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def close_model(model: LocalModel) -> None:
    """Free a model that nobody was given."""
    model.model.close()


def _callers(options: ServerOptions) -> Callers | None:
    """By tokens where there is a file of them; a worker is told by its parent; None: anybody is let in."""
    if options.token_file is not None:
        return Tokens(options.token_file)
    return ForwardedCallers() if options.socket is not None else None


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host
