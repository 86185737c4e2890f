"""grpc.health.v1.Health. A state is set at once; who watches is told as fast as he reads, and nobody waits for him."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc

from onnxplain.errors import NotFound, Unavailable

pb: Any = health_pb2  # its stubs lack List
State = pb.HealthCheckResponse
SERVING, NOT_SERVING, UNKNOWN = State.SERVING, State.NOT_SERVING, State.SERVICE_UNKNOWN


class Health(health_pb2_grpc.HealthServicer):
    """The states of services by name; "" is the server as a whole. For the event loop's thread.

    grpcio-health-checking's own servicer for asyncio writes to a watcher under the lock that setting a state takes: a
    peer that reads nothing would freeze all of health.
    """

    def __init__(self) -> None:
        self._states: dict[str, int] = {"": NOT_SERVING}
        self._watchers: dict[str, set[asyncio.Event]] = {}
        self._shut_down = self._ended = False

    def set(self, service: str, state: int) -> None:
        """From now on this is the state of a service. After `shut_down` without effect."""
        if not self._shut_down:
            self._set(service, state)

    def shut_down(self) -> None:
        """All is NOT_SERVING from now on."""
        self._shut_down = True
        for service in self._states:
            self._set(service, NOT_SERVING)

    def end_watches(self) -> None:
        """Let go of all who watch, once they were told the last state; new ones are told it and let go."""
        self._ended = True
        for watchers in self._watchers.values():
            for watcher in watchers:
                watcher.set()

    async def Check(self, request: Any, context: Any) -> Any:
        """The state of one service. Raises NotFound for one that is not known."""
        if request.service not in self._states:
            raise NotFound(f"no service {request.service[:200]!r} here; List names them.").at("service")
        return State(status=self._states[request.service])

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:
        """The state of one service, and again when it is another one; what came in between is left out."""
        changed, told = asyncio.Event(), None
        watchers = self._watchers.setdefault(request.service, set())
        watchers.add(changed)
        try:
            while True:
                changed.clear()
                ended, state = self._ended, self._states.get(request.service, UNKNOWN)
                if state != told:
                    yield State(status=state)
                    told = state
                if ended:
                    raise Unavailable("this server is going down. Watch another one.")
                await changed.wait()
        finally:
            watchers.discard(changed)
            if not watchers and self._watchers.get(request.service) is watchers:
                del self._watchers[request.service]

    async def List(self, request: Any, context: Any) -> Any:
        """All services with their states."""
        states = {service: State(status=state) for service, state in self._states.items()}
        return pb.HealthListResponse(statuses=states)

    def _set(self, service: str, state: int) -> None:
        self._states[service] = state
        for watcher in self._watchers.get(service, ()):
            watcher.set()
