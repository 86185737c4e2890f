"""The `onnxplain` key of a compiled graph's metadata: what it was made from and by which rules."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir

KEY = "onnxplain"


def write(model: ir.Model, content: Mapping[str, Any]) -> None:
    """Store the provenance in a model."""
    model.metadata_props[KEY] = json.dumps(content, sort_keys=True, ensure_ascii=False)


def read(model: ir.Model) -> dict[str, Any] | None:
    """The provenance of a compiled graph, None for any other model."""
    text = model.metadata_props.get(KEY)
    return None if text is None else dict(json.loads(text))


def digest(content: Mapping[str, Any] | Sequence[Any]) -> str:
    """A short name for a recipe: 16 hexadecimal digits of the sha256 of its canonical JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
