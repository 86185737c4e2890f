"""What a method answers that draws random samples: an estimate, and how far it may be off."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxplain.methods.tensors import Array, Tensors


@dataclass(frozen=True)
class Estimate:
    """A relevance and its standard error, in the same unit: the standard deviation over random seeds."""

    relevance: Tensors
    standard_error: Tensors


def relative_error(values: Array, errors: Array) -> float:
    """The largest standard error relative to the largest absolute value; 0 where nothing is in doubt."""
    worst = float(errors.max(initial=0.0))
    return 0.0 if worst == 0.0 else worst / max(float(np.abs(values).max(initial=0.0)), np.finfo(float).tiny)
