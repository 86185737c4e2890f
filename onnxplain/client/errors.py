"""A status of gRPC becomes the error that the same mistake raises offline; its text is the server's."""

from __future__ import annotations

from typing import Any

import grpc
from google.rpc import code_pb2, error_details_pb2, status_pb2  # type: ignore[import-untyped]

from onnxplain.errors import (
    Busy,
    Cancelled,
    Denied,
    Expired,
    InputError,
    NotFinite,
    NotFound,
    OnnxplainError,
    OutOfMemory,
    Unauthenticated,
    Unavailable,
    UnsupportedModel,
    UsageError,
)

DETAILS = "grpc-status-details-bin"
HANDSHAKE = ("ssl", "handshake", "certificate", "peer name")
QUESTIONS = ("targets", "recipe", "attribute_to", "output", "parameters")  # fields that name things rather than data


class ServerError(OnnxplainError):
    """A bug or another surprise on the server; its log has the id that the text gives."""

    exit_code = 4
    status = "INTERNAL"


class NotImplementedByServer(InputError):
    """What answers there does not know this call: an older server, or another one."""

    status = "UNIMPLEMENTED"


class NotNow(Unavailable):
    """As Unavailable; retry: seconds after which to come back, where the server said so."""

    retry = 0.0


CLASSES: dict[str, type[OnnxplainError]] = {
    "INVALID_ARGUMENT": InputError,
    "OUT_OF_RANGE": NotFinite,
    "FAILED_PRECONDITION": UnsupportedModel,
    "NOT_FOUND": NotFound,
    "RESOURCE_EXHAUSTED": OutOfMemory,
    "UNAVAILABLE": NotNow,
    "DEADLINE_EXCEEDED": Expired,
    "CANCELLED": Cancelled,
    "PERMISSION_DENIED": Denied,
    "UNAUTHENTICATED": Unauthenticated,
    "UNIMPLEMENTED": NotImplementedByServer,
}


def error_of(error: grpc.RpcError, address: str, timeout: float) -> OnnxplainError:
    """What a failed call means. timeout: seconds that the caller gave it."""
    code, text = str(error.code().name), " ".join(str(error.details() or "").split())
    trailing: Any = error.trailing_metadata() or ()
    packed = next((value for key, value in trailing if key == DETAILS), b"")
    if packed:
        status = status_pb2.Status.FromString(packed)
        return _from_details(code, status.message or text, status)
    if code == "UNAVAILABLE" and any(word in text.lower() for word in HANDSHAKE):
        return Unauthenticated(  # never better the second time
            f"{address}: no secure connection ({_reason(text)}). Give the authority of the server's certificate as ca "
            "(--tls-ca), your own certificate as cert and key; a server that speaks plain text takes neither."
        )
    return made(code, _ours(code, text, address, timeout))


def stream_error(number: int, text: str, field: str) -> OnnxplainError:
    """What failed on a stream that goes on."""
    known = number in code_pb2.Code.values()
    return made(code_pb2.Code.Name(number) if known else "UNKNOWN", text, field)


def made(code: str, text: str, field: str = "", retry: float = 0.0) -> OnnxplainError:
    """The error of a code. retry: seconds after which the server said to come back, 0: it said nothing."""
    kind = CLASSES.get(code, ServerError)
    if code == "INVALID_ARGUMENT" and field.startswith(QUESTIONS):
        kind = UsageError
    error = Busy(text, retry) if code == "RESOURCE_EXHAUSTED" and retry else kind(text)
    if isinstance(error, NotNow):
        error.retry = retry
    return error.at(field)


def _from_details(code: str, text: str, status: Any) -> OnnxplainError:
    """With the field at fault and the time to come back, where the details tell."""
    field, retry = "", 0.0
    bad, wait, resource = (
        error_details_pb2.BadRequest(),
        error_details_pb2.RetryInfo(),
        error_details_pb2.ResourceInfo(),
    )
    for detail in status.details:
        if detail.Unpack(bad) and bad.field_violations:
            field = bad.field_violations[0].field
        elif detail.Unpack(resource):
            field = resource.resource_name
        elif detail.Unpack(wait):
            retry = wait.retry_delay.ToNanoseconds() / 1e9
    return made(code, text, field, retry)


def _ours(code: str, text: str, address: str, timeout: float) -> str:
    """gRPC's own words, made a sentence that helps; it speaks of channels and subchannels."""
    if code == "UNAVAILABLE":
        return (
            f"{address} does not answer ({_reason(text)}). Is `onnxplain serve` running there, and does it speak plain "
            "text or TLS as you do?"
        )
    if code == "DEADLINE_EXCEEDED":
        return f"{address}: no answer within {timeout:g} s. Give a longer timeout, or send fewer rows or targets."
    if code == "UNIMPLEMENTED":
        return f"{address} does not know this call ({text}): it is an older server, or not `onnxplain serve`."
    if code == "RESOURCE_EXHAUSTED" and "larger than max" in text:
        return f"{address}: {text}. Send fewer rows at a time, or raise the server's --max-message-bytes."
    return text or code


def _reason(text: str) -> str:
    """The last and innermost of gRPC's nested reasons."""
    inner = text.rpartition("last error: ")[2].removeprefix("UNKNOWN: ")
    return inner.strip(" .;[]")[:120] or "no reason given"
