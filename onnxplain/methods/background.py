"""The background as a baseline: rows of data that stand for what is usual."""

from __future__ import annotations

from typing import Literal, get_args

from onnxplain.methods.run import Run
from onnxplain.methods.tensors import Tensors

BackgroundWord = Literal["background", "background_mean"]
BACKGROUND_WORDS = get_args(BackgroundWord)


def background_rows(run: Run, word: str) -> Tensors:
    """`background`: its rows, (B, …), over which a method takes the mean; `background_mean`: their mean, (1, …).

    A recipe with one of these words is refused without a background.
    """
    rows = run.background
    assert rows is not None
    return rows if word == "background" else rows.wide().mean().typed(rows)
