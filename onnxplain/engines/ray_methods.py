"""The methods that Ray Serve's gRPC proxy takes for us, and which model a request is for, read without parsing it."""

from __future__ import annotations

from typing import NamedTuple

from onnxplain.v1 import explainer_pb2 as v1
from onnxplain.wire.inference import INFERENCE, RPCS

EXPLAIN = ".explain"  # as in `server.models.served`, which a proxy does not import


class ServedMethod(NamedTuple):
    """One method of one service. request: its message class."""

    service: str
    name: str
    request: type
    takes_stream: bool
    gives_stream: bool

    @property
    def path(self) -> str:
        """As gRPC names it."""
        return f"/{self.service}/{self.name}"


def _explainer() -> list[ServedMethod]:
    service = v1.DESCRIPTOR.services_by_name["ExplainerService"]
    return [
        ServedMethod(service.full_name, m.name, getattr(v1, m.input_type.name), m.client_streaming, m.server_streaming)
        for m in service.methods
    ]


EXPLAINER_METHODS = _explainer()
INFERENCE_METHODS = [
    ServedMethod(INFERENCE, name, rpc.request, rpc.client_streaming, rpc.server_streaming) for name, rpc in RPCS.items()
]
METHODS = {method.name: method for method in (*EXPLAINER_METHODS, *INFERENCE_METHODS)}  # Ray goes by the last name


def model_of(raw: bytes) -> str:
    """The model that a request names, "" for none: in every message field 1, a text, or a ModelRef with a text there.

    M.explain and M.explain.RECIPE are M. Only the heads of fields are read, so the size of a request does not matter.
    """
    found = _first_field(memoryview(raw))
    inner = _first_field(found) if found is not None and found[:1].tobytes() == b"\n" else None
    for text in (inner, found):
        if text is not None:
            try:
                return bytes(text).decode().partition(EXPLAIN)[0]
            except UnicodeDecodeError:
                continue
    return ""


def _first_field(message: memoryview) -> memoryview | None:
    """The last field 1 of a message, of those with a length; None where there is none or it is no message."""
    at, found = 0, None
    while at < len(message):
        tag, at = _number(message, at)
        number, kind = tag >> 3, tag & 7
        if kind == 2:
            size, at = _number(message, at)
        elif kind == 0:
            _, at = _number(message, at)
            size = 0
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            return None
        if at + size > len(message):
            return None
        if number == 1 and kind == 2:
            found = message[at : at + size]
        at += size
    return found


def _number(message: memoryview, at: int) -> tuple[int, int]:
    """A varint and where it ends; beyond the message where it is cut short."""
    value = shift = 0
    while at < len(message) and shift < 64:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at
    return 0, len(message) + 1
