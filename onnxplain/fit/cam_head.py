"""CAM for any classifier: its head replaced by a global average pool and a fitted linear layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxplain.compile import Request
from onnxplain.compile.pooled_head import write_pooled_head
from onnxplain.compile.written import WrittenModel
from onnxplain.errors import InputError, UnsupportedModel, UsageError
from onnxplain.fit.labelled_rows import LabelledRows
from onnxplain.fit.logistic_regression import logistic_regression, require_sklearn
from onnxplain.runtime import chunking
from onnxplain.subject import Subject

Array = NDArray[Any]
ROWS = 32  # of one run
HELD_OUT = 0.2  # of the rows of each class
NAMED = 5  # classes that a message names


@dataclass(frozen=True)
class FittedHead:
    """What was fitted. before, after: share of the held-out rows whose class has the highest score, 0..1.

    layer: the feature map that the new head reads, of `channels` channels. fitted, held_out: rows.
    """

    written: WrittenModel
    layer: str
    channels: int
    before: float
    after: float
    fitted: int
    held_out: int


@dataclass(frozen=True)
class _Features:
    """Of each row: the layer's means over its positions (N, C) in float64, the class, the model's own answer."""

    means: Array
    classes: Array
    predicted: Array


class CamHead:
    """A classifier and the feature map that a new head is to read: by default the last that everything passes.

    Raises UnsupportedModel, UsageError, UnknownName.
    """

    def __init__(
        self, model: str | Path, layer: str | None = None, *, explain: str | None = None, provider: str = "auto",
        threads: int = 0, sample: Array | Mapping[str, Array] | None = None,
        shapes: Mapping[str, Sequence[int]] | None = None,
    ):  # fmt: skip
        require_sklearn()
        self.path, self._sample, self._shapes = Path(model), sample, shapes
        more: dict[str, Any] = {"provider": provider, "threads": threads, "sample": sample, "shapes": shapes}
        scores, layers = ((name,) if name else () for name in (explain, layer))
        self.subject = Subject.of(self.path, Request(scores, attribute_to=layers), **more)
        maps = self.subject.map_layers().maps
        if len(maps) != 1:
            raise UnsupportedModel(f"no input of the model reaches {', '.join(self.subject.resolved.explained)}.")
        ((self.layer, about),) = maps.items()
        self.axis: int = about["channels"]
        if self.layer not in self.subject.resolved.protected:
            self.subject = Subject.of(self.path, Request(scores, attribute_to=(self.layer,)), **more)
        (self.explained,) = self.subject.resolved.explained
        self.head = self.subject.resolved.heads.get(self.explained, "")
        if self.head not in ("", "Softmax"):
            raise UnsupportedModel(
                f"{self.explained} goes through {self.head}, and a logistic regression of several classes through "
                "Softmax. Name the tensor below by --explain, if one of its classes is meant."
            )
        answer = self.subject.forward(self.subject.normalised.reference.feeds, [self.explained])[self.explained]
        if answer.ndim != 2 or answer.shape[1] < 2:
            raise UnsupportedModel(
                f"{self.explained} {list(answer.shape)} is no list of classes (N, K): name one by --explain."
            )
        self.classes = int(answer.shape[1])

    def fit(self, rows: LabelledRows, path: str | Path, held_out: float = HELD_OUT, random_seed: int = 0) -> FittedHead:
        """Fit the head to the rows that are not held out, write the model with it. Raises InputError, UsageError."""
        if not 0 < held_out < 1:
            raise UsageError(f"held-out is a share of the rows above 0 and below 1, not {held_out}.")
        found = self._features(rows)
        self._require_all(found.classes)
        aside = _held_out(found.classes, held_out, random_seed)
        weights, bias = logistic_regression(found.means[~aside], found.classes[~aside])
        written = write_pooled_head(
            self.path, path, layer=self.layer, channels=self.axis, weights=weights, bias=bias,
            explained=self.explained, head=self.head, sample=self._sample, shapes=self._shapes,
        )  # fmt: skip
        after = (found.means @ weights.T + bias).argmax(1)
        before, now = (float((answer == found.classes)[aside].mean()) for answer in (found.predicted, after))
        return FittedHead(written, self.layer, weights.shape[1], before, now, int((~aside).sum()), int(aside.sum()))

    def _features(self, rows: LabelledRows) -> _Features:
        means, classes, predicted = [], [], []
        for part in rows:
            if (part.classes < 0).any() or (part.classes >= self.classes).any():
                wrong = part.classes[(part.classes < 0) | (part.classes >= self.classes)][0]
                raise InputError(f"class {wrong} of a model with the classes 0 to {self.classes - 1}.")
            for feeds, count in self._runs(part.feeds):
                answer = self.subject.forward(feeds, [self.explained, self.layer])
                layer = np.asarray(answer[self.layer][:count], np.float64)
                means.append(layer.mean(tuple(axis for axis in range(1, layer.ndim) if axis != self.axis)))
                predicted.append(answer[self.explained][:count].argmax(1))
            classes.append(part.classes)
        if not means:
            raise InputError("there are no rows to fit on.")
        return _Features(np.concatenate(means), np.concatenate(classes), np.concatenate(predicted))

    def _runs(self, feeds: Mapping[str, Array]) -> Iterator[tuple[dict[str, Array], int]]:
        """Rows of each run, and how many they are; a fixed batch is filled up with the last."""
        lengths = [spec.shape[0] for spec in self.subject.inputs if spec.shape]
        fixed = next((length for length in lengths if isinstance(length, int)), None)
        for part in chunking.chunks(len(next(iter(feeds.values()))), fixed or ROWS):
            count = part.stop - part.start
            spare = max(0, (fixed or 0) - count)
            yield {n: np.concatenate([x[part], np.repeat(x[part][-1:], spare, 0)]) for n, x in feeds.items()}, count

    def _require_all(self, classes: Array) -> None:
        """Two rows of each class: one to fit on, one that is held out."""
        counts = np.bincount(classes, minlength=self.classes)
        if len(short := np.flatnonzero(counts < 2)):
            listed = ", ".join(f"{index} ({counts[index]})" for index in short[:NAMED])
            more = f" and {len(short) - NAMED} more" if len(short) > NAMED else ""
            raise InputError(
                f"each of the {self.classes} classes takes two rows, one to fit on and one held out; too few have "
                f"{listed}{more}."
            )


def fit_cam(
    model: str | Path, rows: LabelledRows, path: str | Path, *, layer: str | None = None, held_out: float = HELD_OUT,
    random_seed: int = 0, **more: Any,
) -> FittedHead:  # fmt: skip
    """Write `model` with a head for which CAM is defined: Zhou et al. 2016, section 2.

    The features of a class are the means of a feature map's channels over its positions; the head is a multinomial
    logistic regression on them, fitted to labelled rows, and the net below it stays as it is. Accuracy may fall, since
    positions and whatever the old head did beyond a sum are lost: `FittedHead` has it before and after.
    rows: `of_arrays`, `of_folder`. layer: the feature map; default the last that everything passes. held_out: share of
    each class's rows that accuracy is measured on, and that the head is not fitted to. more: explain, provider,
    threads, sample and shapes, as of an Explainer. Raises InputError, UsageError, UnsupportedModel.
    """
    return CamHead(model, layer, **more).fit(rows, path, held_out, random_seed)


def _held_out(classes: Array, share: float, random_seed: int) -> NDArray[np.bool_]:
    """Which rows: of every class that share, but one at least, and one at least is left."""
    random, aside = np.random.default_rng(random_seed), np.zeros(len(classes), bool)
    for index in np.unique(classes):
        rows = np.flatnonzero(classes == index)
        count = min(max(1, round(share * len(rows))), len(rows) - 1)
        aside[random.permutation(rows)[:count]] = True
    return aside
