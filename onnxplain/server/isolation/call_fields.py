"""What a worker's calls say of themselves for the access log: behind its answers, into the parent's own line."""

from __future__ import annotations

import json
from typing import Any

from onnxplain.server.call import Call

KEY = "onnxplain-call-fields"  # of the trailing metadata between a worker and its parent, which goes no further
TEXT = 2000  # characters in all; gRPC takes 8 KiB of metadata
WORD = 200  # characters of one text


def encoded(call: Call) -> str:
    """A call's fields as one line of ASCII; none where they are too long."""
    fields = call.log_fields.items()
    plain = {key: value for key, value in fields if value is None or isinstance(value, str | int | float)}
    text = json.dumps(plain)
    return text if len(text) <= TEXT else "{}"


def decoded(metadata: Any) -> dict[str, str | int | float | None]:
    """The fields in a call's trailing metadata. A worker may say anything: what is no plain value is left out."""
    text = None if metadata is None else metadata.get(KEY)
    if not isinstance(text, str) or len(text) > TEXT:
        return {}
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(fields, dict):
        return {}
    return {
        key[:WORD]: value[:WORD] if isinstance(value, str) else value
        for key, value in fields.items()
        if value is None or isinstance(value, str | int | float)
    }
