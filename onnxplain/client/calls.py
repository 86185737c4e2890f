"""One call to the server: its name, what is sent, what comes back, and when it is worth another try."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from onnxplain.errors import OnnxplainError, Unavailable
from onnxplain.v1 import explainer_pb2 as v1
from onnxplain.wire.inference import INFERENCE, RPCS

EXPLAINER = v1.DESCRIPTOR.services_by_name["ExplainerService"].full_name
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0  # seconds between two tries; each pause is twice the one before


class ModelState(NamedTuple):
    """A version of a model as the server lists it. state: READY, LOADING, UNLOADING or UNAVAILABLE; reason: why."""

    name: str
    version: str
    state: str
    reason: str


class Collector(Protocol):
    """Takes the messages of a stream as they come."""

    def take(self, message: Any) -> None:
        """The next message. Raises OnnxplainError where it does not fit."""
        ...

    def result(self) -> Any:
        """What they were, once the stream has ended. Raises OnnxplainError where something is missing."""
        ...


@dataclass(frozen=True)
class RpcCall:
    """request: the message, or a function that makes the messages of a stream anew for each try.

    collector: makes what takes the replies of a stream, anew for each try; None: there is one reply.
    """

    path: str
    reply: Any
    request: Any
    collector: Callable[[], Collector] | None = None

    @property
    def kind(self) -> str:
        """The name of the channel's method that makes calls of this kind."""
        sends = "stream" if callable(self.request) else "unary"
        return f"{sends}_{'unary' if self.collector is None else 'stream'}"

    def outgoing(self) -> Any:
        """The message, or an iterator over messages."""
        return self.request() if callable(self.request) else self.request


def explainer_call(method: str, reply: Any, request: Any, collector: Callable[[], Collector] | None = None) -> RpcCall:
    """A call to onnxplain.v1.ExplainerService."""
    return RpcCall(f"/{EXPLAINER}/{method}", reply, request, collector)


def inference_call(method: str, request: Any) -> RpcCall:
    """A call to the Open Inference Protocol's service; all that we make have one reply."""
    return RpcCall(f"/{INFERENCE}/{method}", RPCS[method].response, request)


def serialised(message: Any) -> bytes:
    """For gRPC, which calls it for each message that is sent."""
    content: bytes = message.SerializeToString()
    return content


def pauses(retries: int) -> Iterator[float]:
    """Seconds to wait before each further try; spread, so that many clients do not come back at the same moment."""
    for attempt in range(retries):
        yield min(LONGEST_PAUSE, FIRST_PAUSE * 2**attempt) * random.uniform(0.8, 1.2)


def worth_another(error: OnnxplainError, pause: float, left: float) -> float | None:
    """Seconds to wait before trying again; None: do not. Only what is UNAVAILABLE was surely not begun."""
    if not isinstance(error, Unavailable):
        return None
    pause = max(pause, min(float(getattr(error, "retry", 0.0)), LONGEST_PAUSE))
    return pause if pause < left else None
