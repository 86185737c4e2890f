"""What a detector answers: boxes, scores of classes, objectness, whatever outputs it says them by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from onnxplain.errors import UnknownName, UsageError
from onnxplain.methods.tensors import Array

Layout = Literal["auto", "separate", "rows", "rows_with_objectness", "columns"]


@dataclass(frozen=True)
class Detections:
    """boxes (D, 4): left, top, right, bottom. scores (D, C): of the classes; objectness (D,).

    labels: the class of each, (D,), where a detector says one number for it and scores no others; None elsewhere.
    """

    boxes: Array
    scores: Array
    objectness: Array
    labels: Array | None = None

    def one(self, number: int) -> Detections:
        """One of them."""
        own = slice(number, number + 1)
        labels = None if self.labels is None else self.labels[own]
        return Detections(self.boxes[own], self.scores[own], self.objectness[own], labels)

    def similarity(self, target: Detections) -> Array:
        """Of each to the one target, (D,): IoU times cosine of the classes times objectness."""
        low, high = (
            np.maximum(self.boxes[:, :2], target.boxes[:, :2]),
            np.minimum(self.boxes[:, 2:], target.boxes[:, 2:]),
        )
        shared = np.maximum(high - low, 0).prod(1)
        union = _areas(self.boxes) + _areas(target.boxes) - shared
        overlap = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
        if self.labels is not None:
            return np.asarray(overlap * (self.labels == target.labels) * self.objectness)
        lengths = np.linalg.norm(self.scores, axis=1) * np.linalg.norm(target.scores)
        products = self.scores @ target.scores[0]
        cosine = np.divide(products, lengths, out=np.zeros_like(lengths), where=lengths > 0)
        return np.asarray(overlap * cosine * self.objectness)


def _areas(boxes: Array) -> Array:
    return np.asarray(np.maximum(boxes[:, 2:] - boxes[:, :2], 0).prod(1))


@dataclass(frozen=True)
class DetectionReader:
    """How the outputs of a model say its detections.

    explained: name of the explained output, of scores or of all numbers of a detection. boxes, labels: names of
    outputs, "" where there is none. centres: separate boxes are centre and size. head: what makes probabilities of
    separate scores, Softmax or Sigmoid; "" for scores that are some.
    """

    explained: str
    layout: Layout
    boxes: str = ""
    labels: str = ""
    centres: bool = False
    head: str = ""

    def read(self, outputs: Mapping[str, Array]) -> Detections:
        """The detections in what a model answers for one input. Raises UsageError for outputs that do not fit."""
        if self.layout != "separate":
            table = self._table(outputs[self.explained])
            scores = table[:, self._before :]
            objectness = table[:, 4] if self._before == 5 else scores.max(1, initial=0.0)
            return Detections(_corners(table[:, :4], True), scores, objectness)
        boxes = _corners(np.asarray(outputs[self.boxes], np.float64).reshape(-1, 4), self.centres)
        scores = self._probabilities(self.scores(outputs[self.explained], len(boxes)))
        numbers = None
        if self.labels:
            numbers = np.asarray(outputs[self.labels]).reshape(-1)
            if len(numbers) != len(boxes) or scores.shape[1:] != (1,):
                raise UsageError(
                    f"labels={self.labels}: {len(numbers)} numbers of classes for {len(boxes)} boxes, each with "
                    f"{scores.shape[1]} scores; they are for one score a box."
                )
        return Detections(boxes, scores, scores.max(1, initial=0.0), numbers)

    def _probabilities(self, scores: Array) -> Array:
        """Of what stands below the head of the model."""
        if self.head == "Sigmoid":
            return np.asarray(1 / (1 + np.exp(-scores)))
        if self.head == "Softmax" and len(scores):
            powers = np.exp(scores - scores.max(1, keepdims=True))
            return np.asarray(powers / powers.sum(1, keepdims=True))
        return scores

    def scores(self, explained: Array, count: int) -> Array:
        """What a tensor like the explained one says of the classes of `count` detections, float64 (D, C)."""
        if self.layout != "separate":
            return self._table(explained)[:, self._before :]
        if explained.size % max(1, count):
            raise UsageError(f"{self.explained} {list(explained.shape)} has no scores for {count} boxes.")
        return np.asarray(explained, np.float64).reshape(count, explained.size // max(1, count))

    @property
    def _before(self) -> int:
        return 5 if self.layout == "rows_with_objectness" else 4

    def _table(self, explained: Array) -> Array:
        table = np.asarray(explained, np.float64).reshape(explained.shape[-2:])
        return table.T if self.layout == "columns" else table


def reader_of(
    outputs: Mapping[str, Array],
    explained: str,
    layout: Layout,
    boxes: str,
    labels: str,
    centres: bool,
    head: str,
) -> DetectionReader:
    """What reads the outputs of a model, of which `outputs` are an example. Raises UsageError where nothing can.

    auto: separate where another output has four numbers for each score, else rows or columns of one output: the longer
    axis counts detections.
    """
    for name in (boxes, labels):
        if name and name not in outputs:
            raise UnknownName("output", name, outputs)
    scores = outputs[explained]
    inner = scores.shape[1:] if scores.ndim == 3 else scores.shape
    if layout in ("auto", "separate") and not boxes:
        fitting = [n for n, a in outputs.items() if n != explained and a.shape[-1:] == (4,) and a.dtype.kind == "f"]
        boxes = next((n for n in fitting if scores.size % max(1, outputs[n].size // 4) == 0), "")
    if layout == "auto":
        rows = len(inner) == 2 and min(inner) > 4
        layout = "separate" if boxes else "columns" if rows and inner[0] < inner[1] else "rows" if rows else "auto"
    if layout == "auto" or (layout == "separate" and not boxes):
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in outputs.items())
        raise UsageError(
            f"no detections are known in {shapes}: explain the scores (--explain) and name the output with four "
            "numbers for each (boxes=…), or say the layout."
        )
    if layout != "separate" and (len(inner) != 2 or boxes or labels):
        raise UsageError(
            f"layout={layout} is of one output for all, and {explained} {list(scores.shape)} is not alone."
        )
    return DetectionReader(explained, layout, boxes, labels, centres, head)


def _corners(boxes: Array, centres: bool) -> Array:
    if not centres:
        return boxes
    return np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)
