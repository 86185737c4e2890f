"""What a worker's answer means to the client: the same error, as if the model were in this process."""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from onnxplain.errors import (
    Busy,
    Cancelled,
    Denied,
    Expired,
    InputError,
    NotFinite,
    NotFound,
    OnnxplainError,
    Unauthenticated,
    Unavailable,
    UnsupportedModel,
)
from onnxplain.server.grpc_status import DETAILS
from onnxplain.server.isolation.messages import error_by_name

CODES: dict[str, type[OnnxplainError]] = {
    "INVALID_ARGUMENT": InputError,
    "NOT_FOUND": NotFound,
    "OUT_OF_RANGE": NotFinite,
    "UNAVAILABLE": Unavailable,
    "DEADLINE_EXCEEDED": Expired,
    "CANCELLED": Cancelled,
    "PERMISSION_DENIED": Denied,
    "UNAUTHENTICATED": Unauthenticated,
}


def worker_error(error: grpc.aio.AioRpcError) -> Exception | None:
    """The error that the worker raised, None where the transport failed and the worker said nothing."""
    status = _status(error)
    if status is None:
        return None
    code, text = error.code().name, str(status.message)
    if code == "FAILED_PRECONDITION":
        return _precondition(text, status)
    if code == "RESOURCE_EXHAUSTED":
        retry = _detail(status, error_details_pb2.RetryInfo)
        return Busy(text, 0.0 if retry is None else retry.retry_delay.ToNanoseconds() / 1e9)
    if code in CODES:
        return CODES[code](text).at(_field(status))
    return RuntimeError(f"the model's process: {text}")  # unexpected there, so it is here; the text has its log id


def exit_description(code: int | None) -> str:
    """How a process ended, in words."""
    if code is None:
        return "it does not answer"
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}"


def _status(error: grpc.aio.AioRpcError) -> Any:
    raw = error.trailing_metadata().get(DETAILS) if error.trailing_metadata() is not None else None
    if not isinstance(raw, bytes):
        return None
    try:
        return status_pb2.Status.FromString(raw)
    except DecodeError:
        return None


def _precondition(text: str, status: Any) -> OnnxplainError:
    """With the nodes that are in the way, if the error named them."""
    failure = _detail(status, error_details_pb2.PreconditionFailure)
    violations = list(failure.violations) if failure is not None else []
    kind = violations[0].type if violations else ""
    if len(violations) < 2:
        error = error_by_name(kind, text, violations[0].subject if violations else "", UnsupportedModel)
    else:
        error = error_by_name(kind, text, "", UnsupportedModel)
        error.violations = {v.subject: v.description for v in violations}  # type: ignore[attr-defined]
    return error if error.status == "FAILED_PRECONDITION" else UnsupportedModel(text)


def _field(status: Any) -> str:
    bad = _detail(status, error_details_pb2.BadRequest)
    if bad is not None and bad.field_violations:
        return str(bad.field_violations[0].field)
    missing = _detail(status, error_details_pb2.ResourceInfo)
    return "" if missing is None else str(missing.resource_name)


def _detail(status: Any, kind: Any) -> Any:
    """The first detail of a kind, None without one."""
    for detail in status.details:
        message = kind()
        if detail.Is(kind.DESCRIPTOR):
            detail.Unpack(message)
            return message
    return None
