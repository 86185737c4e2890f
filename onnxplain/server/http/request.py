"""A request as endpoints see it, and as the guard does."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from starlette.types import Scope

from onnxplain.errors import InputError
from onnxplain.server.call import Call
from onnxplain.server.guard import Metadata
from onnxplain.server.http.tls import peer_names

TIMEOUT = "x-request-timeout"  # seconds that the client waits
FIELDS = 256  # of a query


@dataclass
class HttpRequest:
    """One request. headers: names in lower case; of one that comes twice the last. place: the {names} of the path."""

    headers: Mapping[str, str]
    place: Mapping[str, str]
    query: Sequence[tuple[str, str]] = ()
    body: bytes = b""
    most: int = 0

    @property
    def model(self) -> str:
        """The model that the path names, "" where it names none."""
        return self.place.get("model", "")

    @property
    def version(self) -> str:
        """Its version, "" where the path names none."""
        return self.place.get("version", "")

    @property
    def media_type(self) -> str:
        """The body's, in lower case and without parameters."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()


def http_request(scope: Scope, most: int) -> HttpRequest:
    """The request without its body. Raises InputError for a query that is none."""
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
    try:
        query = parse_qsl(
            scope["query_string"].decode("ascii"),
            keep_blank_values=True,
            max_num_fields=FIELDS,
            errors="strict",
        )
    except ValueError as error:  # too many fields, or no UTF-8
        raise InputError(f"the query behind the ? cannot be read ({error}).") from error
    return HttpRequest(headers, scope.get("path_params") or {}, query, most=most)


@dataclass
class HttpArrival:
    """A request as the guard asks about it."""

    scope: Scope
    metadata: Metadata = field(init=False)
    answered: tuple[type[BaseException], ...] = ()
    request_id: str = ""

    def __post_init__(self) -> None:
        self.metadata = [(n.decode("latin-1").lower(), v.decode("latin-1")) for n, v in self.scope["headers"]]

    def peer(self) -> str:
        """Address of the client's end of the connection."""
        client = self.scope.get("client")
        return "http" if client is None else f"http:{client[0]}:{client[1]}"

    def seconds_left(self) -> float | None:
        """Until the client gives up, as its x-request-timeout says. Raises InputError for what is no time."""
        said = next((value for name, value in self.metadata if name == TIMEOUT), None)
        if said is None:
            return None
        try:
            seconds = float(said)
        except ValueError:
            seconds = math.nan
        if not 0 < seconds < math.inf:
            raise InputError(f"{TIMEOUT}: {str(said)[:40]!r}, expected seconds above 0.").at(TIMEOUT)
        return seconds

    def certificate_names(self) -> Sequence[str]:
        """Subject alternative names of the client's certificate."""
        return peer_names(self._transport)

    def began(self, call: Call) -> None:
        """Keep the request id for the answer."""
        self.request_id = call.request_id

    def code(self) -> str:
        """Endpoints raise what is wrong."""
        return "OK"

    @property
    def _transport(self) -> Any:
        return self.scope.get("state", {}).get("transport")
