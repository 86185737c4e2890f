"""Ctrl-C while a method looks many times: once to end with what there is, twice to end at once."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any, Self

import click
from rich.progress import Progress, TaskID

from onnxplain.methods import METHODS
from onnxplain.recipes import Recipe


class EarlyEnd:
    """Told how far a method is: shows that with the time left, and says whether to end.

    In its `with`, the first Ctrl-C asks a method that estimates to end with the samples it has, and the second ends at
    once; any other method ends at the first. asked: whether one came.
    """

    def __init__(self, recipe: Recipe, progress: Progress, step: TaskID):
        self._recipe, self._progress, self._step = recipe, progress, step
        self._text, self._begun, self.asked = f"explaining by {recipe.label}", time.monotonic(), False
        self._before: Any = None

    def __enter__(self) -> Self:
        self._progress.update(self._step, description=self._text)
        if self._recipe.looped and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._interrupted)
        return self

    def __exit__(self, *raised: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def __call__(self, done: int, total: int) -> bool:
        """See `loops.Progress`."""
        left = (time.monotonic() - self._begun) * (total - done) / max(1, done)
        ending = ", ending" if self.asked else f", {_duration(left)} left" if done < total else ""
        self._progress.update(self._step, description=f"{self._text}: {done} of {total}{ending}")
        return self.asked

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        estimates = "until" in METHODS[self._recipe.method].options
        if self.asked or not estimates:
            if not estimates:
                click.echo(f"{self._recipe.method} has no answer before its last look: nothing is kept", err=True)
            raise KeyboardInterrupt
        self.asked = True
        click.echo("ending with what there is; Ctrl-C again ends at once", err=True)


def _duration(seconds: float) -> str:
    """In words, rounded."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
