"""Rows of data in the batches that a model takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from onnxplain.explainer import Explainer
from onnxplain.runtime.chunking import chunks
from onnxplain.runtime.session import Array

BATCH = 32


def batches(explainer: Explainer, feeds: Mapping[str, Array], size: int = BATCH) -> Iterator[dict[str, Any]]:
    """Rows in batches of the length that the model is fixed to, else of `size`."""
    fixed = [spec.shape[0] for spec in explainer.subject.inputs if spec.shape and isinstance(spec.shape[0], int)]
    size = fixed[0] if fixed else size
    rows = min(len(array) for array in feeds.values())
    for part in chunks(rows, size):
        if not fixed or part.stop - part.start == size:
            yield {name: array[part] for name, array in feeds.items()}
