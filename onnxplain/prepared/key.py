"""What an entry depends on: the model, what is asked, and everything that made it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from onnxplain.compile import Request
from onnxplain.composites import Bounds
from onnxplain.recipes import Recipe
from onnxplain.runtime.session import VERSION

SCHEMA = 1  # of entries: raise it when they hold other things
MAKERS = ("onnx", "onnx-ir", "onnxscript", "numpy", "protobuf")  # beside onnxruntime


def subject_key(sha256: str, request: Request, providers: Sequence[str], more: Any) -> dict[str, Any]:
    """Of a normal form. sha256: of the model file; files of weights are checked against what the entry says.

    providers: what ran it. more: what else whoever keeps it tells apart.
    """
    chosen = {name: list(getattr(request, name)) for name in ("explain", "attribute_to", "keep")}
    return {
        "kind": "model",
        "sha256": sha256,
        "request": {**chosen, "head": request.head},
        "providers": list(providers),
        "more": more,
        "made_by": made_by(),
    }


def graph_key(
    sha256: str, request: Request, recipe: Recipe, bounds: Bounds, providers: Sequence[str], more: Any
) -> dict[str, Any]:
    """Of an explanation graph. providers: it was verified on."""
    return {
        "kind": "explanation graph",
        "sha256": sha256,
        "request": {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(request).items()},
        "recipe": recipe.content(),
        "bounds": None if bounds is None else [[float(v) for v in side] for side in bounds],
        "providers": list(providers),
        "more": more,
        "made_by": made_by(),
    }


@cache
def made_by() -> dict[str, str]:
    """Versions of all that has a part in an entry. Our own is a digest of the code: two builds may share a number."""
    digest, root = hashlib.sha256(), Path(__file__).parents[1]
    for file in sorted(root.rglob("*.py")):
        digest.update(f"{file.relative_to(root).as_posix()}\n".encode() + file.read_bytes())
    versions = {name: metadata.version(name) for name in MAKERS}
    return {"schema": str(SCHEMA), "onnxplain": digest.hexdigest(), "onnxruntime": VERSION, **versions}
