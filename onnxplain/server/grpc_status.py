"""Errors as clients see them: a gRPC code, one line of text, and the details of google.rpc."""

from __future__ import annotations

import functools
import logging
import os
import re
import secrets
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Never
from urllib.parse import quote

import grpc
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2  # type: ignore[import-untyped]

from onnxplain.errors import OnnxplainError
from onnxplain.server.call import CALL

LOG = logging.getLogger(__name__)
DETAILS = "grpc-status-details-bin"
TEXT = 1000  # characters of an error's text
# gRPC's default limit on a reply's metadata is 8 KiB, text and details together; above it the client sees an error of
# the transport instead of ours. The text is sent twice: percent-encoded, and inside the details in base64.
TEXT_BYTES = 2400
DETAILS_BYTES = 3000
VIOLATIONS_BYTES = 1800
DOMAIN = "onnxplain"
USUAL = ("bin", "dev", "etc", "home", "mnt", "opt", "proc", "root", "run", "srv", "sys", "tmp", "usr", "var", "Users")
RETRY_SECONDS = 1.0  # for whatever is unavailable and does not say for how long

_SPACE = re.compile(r"\s+")


def status_of(error: BaseException, roots: Iterable[str | Path] = (), log_id: str = "") -> status_pb2.Status:
    """What a client is told. roots: folders whose names stay here. log_id: of the log entry on an unexpected error."""
    meant = _meant(error)
    if meant is None:
        log_id = log_id or new_log_id()
        info = error_details_pb2.ErrorInfo(reason="INTERNAL", domain=DOMAIN, metadata={"log_id": log_id})
        return _status("INTERNAL", f"internal error; log id {log_id}", [info])
    text = scrub(str(meant), roots) or type(meant).__name__
    return _status(meant.status, text, _details(meant, text, tuple(roots)))


def logged_status(error: BaseException, roots: Iterable[str | Path] = ()) -> status_pb2.Status:
    """What a client is told of an error; one that nobody expected goes to the log with its trace and an id."""
    log_id = ""
    if _meant(error) is None:
        log_id = new_log_id()
        call = CALL.get(None)
        fields = {"log_id": log_id, "request_id": call and call.request_id, "method": call and call.method}
        LOG.error("unexpected %s", type(error).__name__, exc_info=error, extra={"fields": fields})
    return status_of(error, roots, log_id)


async def abort(
    context: grpc.aio.ServicerContext[Any, Any], error: BaseException, roots: Iterable[str | Path] = ()
) -> Never:
    """End a gRPC call with an error."""
    status = logged_status(error, roots)
    code = grpc.StatusCode[code_pb2.Code.Name(status.code)]
    kept = tuple((key, value) for key, value in context.trailing_metadata() if key != DETAILS)
    await context.abort(code, status.message, (*kept, (DETAILS, status.SerializeToString())))


def code_of(error: BaseException) -> str:
    """The name of the gRPC code an error becomes."""
    meant = _meant(error)
    return "INTERNAL" if meant is None else meant.status


def new_log_id() -> str:
    """Sixteen hex digits that find an entry of the log."""
    return secrets.token_hex(8)


def scrub(text: str, roots: Iterable[str | Path] = ()) -> str:
    """One line of at most TEXT characters without control characters and without this machine's folders.

    What lies under one of `roots` keeps its path from there; of any other absolute path the last name stays. Names of
    nodes may look like paths, such as /layer1/Conv: they stay, because no folder of this machine is called /layer1.
    """
    for root in sorted({os.fspath(root).rstrip("/\\") for root in roots}, key=len, reverse=True):
        if len(root) > 1:
            text = re.sub(rf"(?:file://)?{re.escape(root)}(?:[/\\]+|(?![\w.-]))", "", text)
    text = _absolute().sub(_last_name, text)
    line = _SPACE.sub(" ", "".join(_visible(text))).strip()
    line = line if len(line) <= TEXT else line[: TEXT - 1] + "…"
    while len(quote(line, safe=_PLAIN)) > TEXT_BYTES:
        line = line[: len(line) * 3 // 4] + "…"
    return line


_PLAIN = "".join(chr(number) for number in range(0x20, 0x7F) if chr(number) != "%")  # what gRPC sends as it is


def _visible(text: str) -> Iterator[str]:
    """Characters that show: no controls, no half surrogates, nothing that turns the direction of writing."""
    for character in text:
        if character.isprintable():
            yield character
        elif character.isspace() or unicodedata.category(character) in ("Cc", "Zl", "Zp"):
            yield " "


@functools.cache
def _absolute() -> re.Pattern[str]:
    """Absolute paths of this machine: quoted ones to the closing quote, others to a space or a bracket."""
    names = {*USUAL, *(entry for entry in _entries("/") if len(entry) > 1)}
    unix = rf"/+(?:{'|'.join(sorted(map(re.escape, names), reverse=True))})"
    start = rf"(?:file://)?(?:{unix}(?=[/\s'\"`,;:)\]}}>]|\.?$)|[A-Za-z]:\\|\\\\)"
    return re.compile(
        rf"(?P<quote>['\"`]){start}[^'\"`\n]*(?P=quote)|(?:(?<![\w./\\-])|(?<=\\[nrt])){start}[^\s'\"`,;:)\]}}>]*"
    )


def _entries(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:  # as in a sandbox that hides it
        return []


def _last_name(match: re.Match[str]) -> str:
    quoted = match["quote"] or ""
    path = match[0][1:-1] if quoted else match[0]
    tail = "." if not quoted and path.endswith(".") else ""  # the sentence's, not the path's
    return quoted + (re.split(r"[/\\]+", path.rstrip("/\\."))[-1] or "a file") + tail + quoted


def _meant(error: BaseException) -> OnnxplainError | None:
    """The error that was raised on purpose, also out of a group as an asyncio.TaskGroup makes."""
    if isinstance(error, OnnxplainError):
        return error
    if isinstance(error, BaseExceptionGroup):
        errors = [_meant(inner) for inner in error.exceptions]
        return errors[0] if errors and None not in errors else None
    return None


def _details(error: OnnxplainError, text: str, roots: Sequence[str | Path]) -> list[Message]:
    """The messages that go with a code, as google/rpc/error_details.proto wants them."""
    field = scrub(error.field)[:200]
    match error.status:
        case "INVALID_ARGUMENT":
            fault = error_details_pb2.BadRequest.FieldViolation(field=field, description=text)
            return [error_details_pb2.BadRequest(field_violations=[fault])]
        case "NOT_FOUND":
            return [error_details_pb2.ResourceInfo(resource_type="model", resource_name=field, description=text)]
        case "FAILED_PRECONDITION":
            return [_precondition(error, text, roots)]
        case "RESOURCE_EXHAUSTED" | "UNAVAILABLE":
            # Without a time where none helps: what is too large now is too large later.
            seconds = getattr(error, "retry", RETRY_SECONDS if error.status == "UNAVAILABLE" else 0.0)
            if seconds > 0:
                info = error_details_pb2.RetryInfo()
                info.retry_delay.FromNanoseconds(int(seconds * 1e9))
                return [info]
    return []


def _precondition(
    error: OnnxplainError, text: str, roots: Sequence[str | Path]
) -> error_details_pb2.PreconditionFailure:
    """One violation per node where the error knows the nodes (`violations`: node -> reason), as many as fit."""
    kind = type(error).__name__
    nodes: dict[str, str] = getattr(error, "violations", None) or {error.field: text}
    failure = error_details_pb2.PreconditionFailure()
    for node, reason in nodes.items():
        violation = failure.violations.add(type=kind, subject=scrub(node)[:200], description=scrub(reason, roots))
        if len(failure.violations) > 1 and failure.ByteSize() > VIOLATIONS_BYTES:
            failure.violations.remove(violation)
            break
    return failure


def _status(code: str, text: str, details: Iterable[Message]) -> status_pb2.Status:
    status = status_pb2.Status(code=code_pb2.Code.Value(code), message=text)
    for detail in details:
        status.details.add().Pack(detail)
        if status.ByteSize() > DETAILS_BYTES:
            del status.details[-1]
    return status
