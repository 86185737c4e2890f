"""A server in a thread of its own and plain HTTP requests to it, for tests of REST."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import grpc
from running import in_process_server

from onnxplain.server.app import Server
from onnxplain.server.options import ServerOptions
from onnxplain.sources import ModelSource

OPTIONS = ServerOptions(port=0, metrics_port=0, http_port=0, threads=1)


@dataclass(frozen=True)
class Answer:
    """What came back. headers: names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        return str(self.json["error"])


@dataclass(frozen=True)
class Served:
    """A server that answers. ask: one request on a connection of its own."""

    server: Server
    loop: asyncio.AbstractEventLoop

    @property
    def port(self) -> int:
        return self.server.http.port

    def ask(
        self, verb: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None, timeout: float = 60.0
    ) -> Answer:
        """body: bytes, or what becomes JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            sent = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            connection.request(verb, path, sent, dict(headers or {}))
            answer = connection.getresponse()
            return Answer(answer.status, {n.lower(): v for n, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def channel(self) -> grpc.Channel:
        """To the same server's gRPC port."""
        return grpc.insecure_channel(f"127.0.0.1:{self.server.port}")


@contextlib.contextmanager
def served(sources: Sequence[ModelSource], **options: Any) -> Iterator[Served]:
    """A server over some sources, its models loaded."""
    ready: list[Served] = []
    problem: list[BaseException] = []
    began, end = threading.Event(), asyncio.Event()

    async def main() -> None:
        async with in_process_server(replace(OPTIONS, **options), sources, wait=False) as server:
            wanted = {release.name for source in sources for release in source.releases()}
            while not wanted <= set(server.repository.names()):
                await asyncio.sleep(0.01)
            ready.append(Served(server, asyncio.get_running_loop()))
            began.set()
            await end.wait()

    def work() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            problem.append(error)
        finally:
            began.set()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    began.wait()
    try:
        if problem:
            raise problem[0]
        yield ready[0]
    finally:
        if ready:
            ready[0].loop.call_soon_threadsafe(end.set)
        thread.join(30)
    if problem:
        raise problem[0]
