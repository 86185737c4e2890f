"""One worker process as its parent sees it: started, configured, called, ended."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import IO, Any

import grpc

from onnxplain.errors import OnnxplainError, UnsupportedModel
from onnxplain.server.isolation.errors import exit_description
from onnxplain.server.isolation.log_forwarder import LogForwarder
from onnxplain.server.isolation.messages import REASONS, WorkerConfig, observation, reported_error
from onnxplain.server.options import ServerOptions
from onnxplain.server.runtime_folder import runtime_folder
from onnxplain.server.telemetry.metrics import Metrics
from onnxplain.sources import ResolvedModel

# Of our environment; tokens, secrets and addresses stay here.
KEPT = (
    "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PATH", "PYTHONHOME", "SYSTEMROOT", "TMPDIR",
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS",
)  # fmt: skip
KEPT_STARTS = ("CUDA_", "NVIDIA_")
ARENAS = "4"  # glibc reserves 64 MiB of address space for each
NUMBERS = itertools.count()
LINE = 64 * 1024  # bytes read at a time
STOP = 10.0  # seconds from SIGTERM to SIGKILL


class WorkerProcess:
    """A process that waits for its config, then serves one model. ended: its exit code, when it has one.

    Make it in the event loop's thread: its end ends the worker. Not by asyncio's own subprocesses: those of Python 3.11
    wait for ever when they are cancelled while they start.
    """

    def __init__(self) -> None:
        self.folder = runtime_folder() / str(next(NUMBERS))
        self.folder.mkdir(mode=0o700)
        environment = {k: v for k, v in os.environ.items() if k in KEPT or k.startswith(KEPT_STARTS)}
        environment["PYTHONPATH"] = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        environment["MALLOC_ARENA_MAX"] = ARENAS
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "onnxplain.server.worker", str(os.getpid()), self.folder],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
                bufsize=0,
                start_new_session=True,  # a terminal's Ctrl-C is for the parent, which drains
            )
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        self.pid = self._process.pid
        self.channel: grpc.aio.Channel | None = None
        self._log_forwarder = LogForwarder()
        self._metrics: Metrics | None = None
        self._model = ""
        loop = asyncio.get_running_loop()
        self._loaded: asyncio.Future[OnnxplainError | None] = loop.create_future()
        self.ended: asyncio.Future[int] = loop.create_future()
        threading.Thread(target=self._wait, args=(loop,), name=f"onnxplain-worker-{self.pid}", daemon=True).start()
        self._readers = [loop.create_task(self._read_reports()), loop.create_task(self._read_log())]

    @property
    def code(self) -> int | None:
        """Its exit code, negative for a signal; None while it lives."""
        return self.ended.result() if self.ended.done() and not self.ended.cancelled() else None

    async def load(self, model: ResolvedModel, options: ServerOptions, metrics: Metrics, seconds: float) -> None:
        """Give it its config and wait until it answers. Raises why it does not; then it is ended."""
        self._model = self._log_forwarder.model = model.name
        self._metrics = metrics
        config = WorkerConfig.of(model, options, self.folder / "socket")
        assert self._process.stdin is not None
        with suppress(OSError):  # it is gone: seen below
            self._process.stdin.write(config.encode())  # a few hundred bytes into an empty pipe
        first: set[asyncio.Future[Any]] = {self._loaded, self.ended}
        await asyncio.wait(first, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if self.ended.done():
            await asyncio.wait({self._readers[0]})  # what it reported before it ended
        if not self._loaded.done():
            raise UnsupportedModel(
                f"{model.name}: loading it ended its process ({exit_description(self.code)}): the file is damaged or "
                "hostile, or it needs more than --isolate-memory."
                if self.ended.done()
                else f"{model.name}: it was not loaded within {seconds:g} s, so its process was ended."
            )
        problem = self._loaded.result()
        if problem is not None:
            raise problem
        self.channel = grpc.aio.insecure_channel(
            f"unix:{config.socket}",
            options=[
                ("grpc.max_send_message_length", -1),
                ("grpc.max_receive_message_length", -1),
                ("grpc.enable_http_proxy", 0),
                ("grpc.enable_retries", 0),  # whether to try again is the client's to say
                ("grpc.use_local_subchannel_pool", 1),
            ],
        )

    async def stop(self, grace: float = STOP) -> None:
        """End it: SIGTERM, and SIGKILL after `grace` seconds. Its socket goes too."""
        if self.code is None and grace:
            with suppress(ProcessLookupError):
                self._process.terminate()
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self.ended), grace)
        if self.code is None:
            with suppress(ProcessLookupError):
                self._process.kill()
        await asyncio.wait({self.ended})
        await self.free()

    async def free(self) -> None:
        """Let go of what a process that ended leaves behind."""
        if self.channel is not None:
            await self.channel.close()
        assert self._process.stdin is not None
        self._process.stdin.close()
        await asyncio.wait(self._readers)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wait for its end, in a thread of its own: the loop's usual threads are few."""
        code = self._process.wait()

        def set_code() -> None:
            if not self.ended.done():
                self.ended.set_result(code)

        with suppress(RuntimeError):  # the loop was closed
            loop.call_soon_threadsafe(set_code)

    async def _read_reports(self) -> None:
        """Read its reports: that it is ready or why not, and what it counted."""
        async for line in _lines(self._process.stdout):
            try:
                report: Any = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(report, dict) and not self._loaded.done():
                if "ready" in report:
                    self._loaded.set_result(None)
                elif isinstance(report.get("failed"), dict):
                    self._loaded.set_result(reported_error(report["failed"]))
            else:
                self._count(report)

    def _count(self, report: object) -> None:
        """Into our metrics, under the name that we know: the worker may be in the hands of its model."""
        if self._metrics is None:
            return
        seen = observation(report)
        if seen is not None:
            getattr(self._metrics, seen[0])(self._model, *seen[1])
        elif isinstance(report, list) and len(report) == 2 and report[0] == "refused" and report[1] in REASONS:
            self._metrics.refused(self._model, report[1])

    async def _read_log(self) -> None:
        async for line in _lines(self._process.stderr):
            self._log_forwarder.forward(line)


async def _lines(pipe: IO[bytes] | None) -> AsyncIterator[bytes]:
    """Lines until the other end is closed; what is longer than fits is dropped."""
    assert pipe is not None
    stream = asyncio.StreamReader(LINE)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stream), pipe)
    try:
        while True:
            try:
                line = await stream.readline()
            except ValueError:
                continue
            if not line:
                return
            yield line
    finally:
        transport.close()
