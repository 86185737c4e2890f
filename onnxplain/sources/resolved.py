"""One model file with its name and settings: what every source hands out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from onnxplain.inputs.settings import ModelSettings


@dataclass(frozen=True)
class ResolvedModel:
    """One model file. version is "" for a file outside a repository. graphs: a graph cache that came with it."""

    path: Path
    name: str
    version: str
    settings: ModelSettings
    graphs: Path | None = None
