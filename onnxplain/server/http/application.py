"""The endpoints as one ASGI application."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from onnxplain.server.http.body import HEAD_LENGTH
from onnxplain.server.http.endpoint import Doors, GuardedEndpoint
from onnxplain.server.http.errors import error_body
from onnxplain.server.http.pages import EVERYTHING
from onnxplain.server.http.reply import JSON, Reply, deliver
from onnxplain.server.http.request import TIMEOUT
from onnxplain.server.http.routes import Endpoint
from onnxplain.server.http.services import Services

SENT = ["authorization", "content-type", "content-encoding", "x-request-id", TIMEOUT, HEAD_LENGTH]
SHOWN = ["x-request-id", "retry-after", HEAD_LENGTH]


def application(services: Services, doors: Doors, endpoints: Sequence[Endpoint] = EVERYTHING) -> ASGIApp:
    """All endpoints, each behind the guard; anything else is 404 or 405, as JSON. Origins of `doors` may ask."""
    paths: dict[str, dict[str, ASGIApp]] = {}
    for endpoint in endpoints:
        method = doors.guard.method(endpoint.name, "http")
        answer = partial(endpoint.answer, services)
        guarded = GuardedEndpoint(doors, method, endpoint.path, endpoint.body, answer)
        paths.setdefault(endpoint.path, {})[endpoint.verb] = guarded
    routes = [Route(path, _ByVerb(verbs), methods=None) for path, verbs in paths.items()]
    router: ASGIApp = Router(routes, redirect_slashes=False, default=_not_found)
    if not doors.origins:
        return router
    origins = list(doors.origins)
    return CORSMiddleware(router, origins, allow_methods=["GET", "POST"], allow_headers=SENT, expose_headers=SHOWN)


class _ByVerb:
    """The endpoints of one path."""

    def __init__(self, verbs: dict[str, ASGIApp]):
        self._verbs = verbs
        self._allowed = ", ".join([*verbs, *(["HEAD"] if "GET" in verbs else [])])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        verb = scope["method"]
        found = self._verbs.get("GET" if verb == "HEAD" else verb)
        if found is not None:
            await found(scope, receive, send)
            return
        text = f"{verb[:20]} is not for this address; it takes {self._allowed}."
        reply = Reply(error_body(text, "UNIMPLEMENTED"), 405, JSON, {"allow": self._allowed})
        await deliver(reply, scope, send, "", SECONDS)


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    text = f"nothing at {scope['path'][:200]!r}; /docs lists what there is."
    await deliver(Reply(error_body(text, "NOT_FOUND"), 404), scope, send, "", SECONDS)


SECONDS = 10.0  # for taking an answer that is no more than a line
