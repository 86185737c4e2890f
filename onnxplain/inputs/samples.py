"""What counts as a sample: a row of a batch answers for itself, a moment of a sequence does not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxplain.errors import InputError, OutOfMemory

Array = NDArray[Any]
SAME = 1e-5  # of the largest score: what may differ between runs of one row in different company


def may_be_rows(feeds: Mapping[str, Array], scores: Array) -> bool:
    """Whether axis 0 of the scores is as long as an input's."""
    return bool(scores.ndim) and any(x.ndim and len(x) == len(scores) for x in feeds.values())


def answer_alone(forward: Callable[[dict[str, Array]], Array], feeds: Mapping[str, Array], scores: Array) -> bool:
    """Whether the first and the last row of the scores stay as they are when all other rows of the inputs change.

    forward: feeds -> scores, the model. Of the same shape each time, so that a fixed length is no obstacle; changed
    rather than left out or moved, so that attention without positions is seen too.
    """
    return all(_alone(forward, feeds, scores, row) for row in {0, len(scores) - 1})


def _alone(forward: Callable[[dict[str, Array]], Array], feeds: Mapping[str, Array], scores: Array, row: int) -> bool:
    changed = dict(feeds)
    for name, x in feeds.items():
        if x.ndim and len(x) == len(scores):
            changed[name] = _another(x)
            changed[name][row] = x[row]
    try:
        found = forward(changed)
    except OutOfMemory:
        raise
    except InputError:  # the model does not run on other values in the other rows: nothing is proven
        return False
    scale = float(np.abs(scores[np.isfinite(scores)]).max(initial=0.0))
    return found.shape == scores.shape and np.allclose(
        found[row], scores[row], rtol=0, atol=SAME * scale, equal_nan=True
    )


def _another(x: Array) -> Array:
    """Other values than x's, and such that a model takes them: integers are 0 or 1."""
    return np.asarray(0.5 * x + 0.25, x.dtype) if "float" in x.dtype.name else np.asarray(x == 0, x.dtype)


def one_thing_said(name: str, values: Array, feeds: Mapping[str, Array]) -> str:
    """The note for an explanation whose axis 0 counts no samples."""
    inputs = ", ".join(f"{key} {list(array.shape)}" for key, array in feeds.items())
    return (
        f"axis 0 of {name} {list(values.shape)} does not count samples of {inputs}: it is explained as one thing, and "
        "targets address its positions"
    )
