"""Servers for tests: a real one as a child process, or one inside the test's own event loop."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from onnxplain.server.app import Server
from onnxplain.server.options import ServerOptions
from onnxplain.sources import ModelSource

MODELS = Path(__file__).resolve().parents[1] / "models"
START_SECONDS = 90.0  # a loaded machine of two cores takes 20 for all models of the checkout
STOP_SECONDS = 20.0
LISTENING = re.compile(r"listening address=\S+:(\d+)")


@dataclass
class Running:
    """A server in a process of its own. log: its standard error as it stands, read anew each time."""

    process: subprocess.Popen[bytes]
    port: int
    log_file: Path

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return f"127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """All that it wrote so far."""
        return self.log_file.read_text(errors="replace")


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


@contextlib.contextmanager
def running_server(
    *arguments: str | os.PathLike[str],
    env: Mapping[str, str] | None = None,
    credentials: grpc.ChannelCredentials | None = None,
    wait: bool = True,
    launcher: Sequence[str] = (),
) -> Iterator[Running]:
    """`onnxplain serve ARGUMENTS` on a free port, ready when it is yielded, ended by SIGTERM.

    env: added to this process's. launcher: words in front of the command. credentials: of the channel that asks for
    its health, where it speaks TLS. wait: until the health service says SERVING; else only until it listens. Raises
    RuntimeError with its log if that never happens.
    """
    given = [str(argument) for argument in arguments]
    command = [*launcher, sys.executable, "-m", "onnxplain", "serve", *given]
    command += [] if "--port" in given else ["--port", "0"]
    command += [] if "--http-port" in given else ["--http-port", "0"]
    command += [] if "--metrics-port" in given else ["--metrics-port", "0"]
    with tempfile.TemporaryDirectory(prefix="onnxplain-server-") as folder:
        log = Path(folder, "log")
        with log.open("wb") as stream:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, env={**os.environ, **(env or {})}
            )
        try:
            running = Running(process, 0, log)
            until = time.monotonic() + START_SECONDS
            running.port = _port(running, until)
            if wait:
                _await_health(running, credentials, until)
            yield running
        finally:
            _end(process)


def _port(running: Running, until: float) -> int:
    """The port it says that it listens on."""
    while time.monotonic() < until and running.process.poll() is None:
        found = LISTENING.search(running.log)
        if found:
            return int(found[1])
        time.sleep(0.05)
    raise RuntimeError(f"the server did not listen (exit code {running.process.poll()}): {running.log[-2000:]}")


def _await_health(running: Running, credentials: grpc.ChannelCredentials | None, until: float) -> None:
    channel = (
        grpc.insecure_channel(running.address)
        if credentials is None
        else grpc.secure_channel(f"localhost:{running.port}", credentials)
    )
    with channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        said = "nothing"
        while time.monotonic() < until and running.process.poll() is None:
            try:
                answer = check(health_pb2.HealthCheckRequest(), timeout=2.0)
            except grpc.RpcError as error:
                said = str(error.details())
            else:
                said = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
                if said == "SERVING":
                    return
            time.sleep(0.05)
    raise RuntimeError(f"the server is not ready, health said {said}: {running.log[-2000:]}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """It drains; what does not end is killed."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)


@contextlib.asynccontextmanager
async def in_process_server(
    options: ServerOptions | None = None, sources: Sequence[ModelSource] = (), wait: bool = True, **more: Any
) -> AsyncIterator[Server]:
    """A Server in this event loop on a free port (`.port`), closed at once at the end.

    options: default a free port and no metrics. more: further arguments of Server. wait: until its models are loaded.
    """
    server = Server(options or ServerOptions(port=0, metrics_port=0), sources, **more)
    await server.start()
    try:
        if wait:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
                await _watch(health_pb2_grpc.HealthStub(channel))
        yield server
    finally:
        await server.stop(0)


async def _watch(stub: Any) -> None:
    """Until the health of the whole server is SERVING."""
    async for answer in stub.Watch(health_pb2.HealthCheckRequest(), timeout=START_SECONDS):
        if answer.status == health_pb2.HealthCheckResponse.SERVING:
            return
