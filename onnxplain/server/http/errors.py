"""Errors as HTTP clients see them: a status, one line, the details of google.rpc as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from google.protobuf import json_format
from google.rpc import code_pb2  # type: ignore[import-untyped]

from onnxplain.errors import InputError, OnnxplainError
from onnxplain.server import grpc_status
from onnxplain.server.http.reply import JSON, Reply

# As google/rpc/code.proto maps them, whom grpc-gateway follows.
STATUS: Mapping[str, int] = {
    "OK": 200,
    "CANCELLED": 499,
    "UNKNOWN": 500,
    "INVALID_ARGUMENT": 400,
    "DEADLINE_EXCEEDED": 504,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "PERMISSION_DENIED": 403,
    "UNAUTHENTICATED": 401,
    "RESOURCE_EXHAUSTED": 429,
    "FAILED_PRECONDITION": 400,
    "ABORTED": 409,
    "OUT_OF_RANGE": 400,
    "UNIMPLEMENTED": 501,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "DATA_LOSS": 500,
}


class HttpError(InputError):
    """What only HTTP can do wrong; its status stands for itself."""

    http_status = 400


class TooLarge(HttpError):
    """A body beyond the limit."""

    status = "RESOURCE_EXHAUSTED"
    http_status = 413


class UnknownMediaType(HttpError):
    """A body of a type, or packed in a way, that is not taken here."""

    http_status = 415


class NotAcceptable(HttpError):
    """An answer asked for in a form that there is not."""

    http_status = 406


def error_reply(error: BaseException, roots: Iterable[str | Path] = ()) -> Reply:
    """What a client is told of an error; one that nobody expected goes to the log with its trace and an id."""
    status = grpc_status.logged_status(error, roots)
    code = code_pb2.Code.Name(status.code)
    details = [json_format.MessageToDict(detail) for detail in status.details]
    headers = {}
    if code == "UNAUTHENTICATED":
        headers["www-authenticate"] = "Bearer"
    if seconds := _retry_seconds(details):
        headers["retry-after"] = str(seconds)
    http = getattr(error, "http_status", STATUS[code]) if isinstance(error, OnnxplainError) else STATUS[code]
    return Reply(error_body(status.message, code, details), http, JSON, headers)


def error_body(text: str, code: str, details: list[dict[str, Any]] | None = None) -> bytes:
    """{"error": one line} as the Open Inference Protocol has it, with gRPC's name of the code and its details."""
    return json.dumps({"error": text, "code": code, "details": details or []}, ensure_ascii=False).encode()


def _retry_seconds(details: Iterable[Mapping[str, Any]]) -> int:
    """Whole seconds of a RetryInfo, 0 where there is none."""
    for detail in details:
        if "retryDelay" in detail:
            return max(1, math.ceil(float(str(detail["retryDelay"]).removesuffix("s"))))
    return 0
