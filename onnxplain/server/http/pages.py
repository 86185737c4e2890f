"""Pages about the server itself: the OpenAPI document, and a page for browsers that reads it. Nothing is fetched."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from functools import cache
from importlib import resources

from onnxplain.server.http.openapi import document
from onnxplain.server.http.reply import Reply
from onnxplain.server.http.request import HttpRequest
from onnxplain.server.http.routes import ENDPOINTS, Endpoint
from onnxplain.server.http.services import Services


async def openapi(services: Services, request: HttpRequest) -> Reply:
    """This interface as OpenAPI 3.1."""
    return Reply(_document())


async def docs(services: Services, request: HttpRequest) -> Reply:
    """Every address with a line for curl, and a form that explains a picture."""
    page, policy = _page()
    return Reply(page, media_type="text/html; charset=utf-8", headers={"content-security-policy": policy})


async def root(services: Services, request: HttpRequest) -> Reply:
    """To the page of all addresses."""
    return Reply(b"{}", 303, headers={"location": "docs"})


PAGES: Sequence[Endpoint] = [
    Endpoint("GET", "/", "ServerMetadata", root),
    Endpoint("GET", "/docs", "ServerMetadata", docs),
    Endpoint("GET", "/openapi.json", "ServerMetadata", openapi),
]
EVERYTHING: Sequence[Endpoint] = [*ENDPOINTS, *PAGES]


@cache
def _document() -> bytes:
    return json.dumps(document(EVERYTHING), ensure_ascii=False).encode()


@cache
def _page() -> tuple[bytes, str]:
    """The page, and a policy that lets only its own script and style run."""
    page = resources.files(__package__).joinpath("docs.html").read_text("utf-8")
    script, style = (_digests(page, tag) for tag in ("script", "style"))
    policy = (
        f"default-src 'none'; script-src {script}; style-src {style}; img-src blob:; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )
    return page.encode(), policy


def _digests(page: str, tag: str) -> str:
    """What a policy says of the page's own elements of a kind."""
    texts = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(t.encode()).digest()).decode()}'" for t in texts)
