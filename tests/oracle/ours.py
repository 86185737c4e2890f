"""onnxplain's side of every comparison: compile to a file, run the file with plain onnxruntime."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime


@functools.cache
def compiled(path: Path, method: str, options: tuple[tuple[str, Any], ...] = ()) -> Path:
    """The explanation graph of the model at `path`, written beside it once."""
    from onnxplain import Explainer

    digest = hashlib.sha256(repr((method, options)).encode()).hexdigest()[:8]
    target = path.with_name(f"{path.stem}.{method}.{digest}.onnx")
    Explainer(path, method=method, provider="cpu", **dict(options)).save(target)
    return target


def explain(
    path: Path, method: str, inputs: Mapping[str, np.ndarray] | np.ndarray, seed: np.ndarray, **options: Any
) -> dict[str, np.ndarray]:
    """All outputs of the explanation graph by name, and its inputs as well (a max-pool may read one).

    inputs: by name, or the only one. seed: of the shape of the explained tensor. Lists in options as tuples.
    """
    session = onnxruntime.InferenceSession(
        compiled(path, method, tuple(sorted(options.items()))), providers=["CPUExecutionProvider"]
    )
    names = [x.name for x in session.get_inputs()]
    if isinstance(inputs, np.ndarray):
        inputs = {names[0]: inputs}
    (seeded,) = [name for name in names if name.endswith(".seed")]
    values = session.run(None, {**inputs, seeded: seed.astype(np.float32)})
    return dict(inputs) | dict(zip((y.name for y in session.get_outputs()), values, strict=True))


def ours(
    path: Path, method: str, inputs: Mapping[str, np.ndarray] | np.ndarray, seed: np.ndarray, **options: Any
) -> np.ndarray:
    """The relevance of the first attributed tensor."""
    return next(
        value for name, value in explain(path, method, inputs, seed, **options).items() if name.endswith(".relevance")
    )
