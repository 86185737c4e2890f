"""What is to be explained: `predicted`, `top3`, a name, an index or "A vs B" becomes a seed over the scores."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxplain.errors import InputError, UsageError
from onnxplain.inputs.labels import Labels, find, label

Array = NDArray[Any]

TOP = re.compile(r"top-?(\d+)", re.IGNORECASE)
VERSUS = re.compile(r"\s+vs\.?\s+", re.IGNORECASE)
INDEX = re.compile(r"[+-]?\d+(\s*,\s*[+-]?\d+)*")


@dataclass(frozen=True)
class Target:
    """One question put to the model.

    name: for titles. names: one per sample where the samples' answers differ, else `name` alone.
    seed: float32, the scores' axes behind one row for all samples or one row each (no row axis for rank 0, or where
        axis 0 holds the classes). score: Σ seed · scores per sample (N,), the number explained.
    index: int64 (rows, axes behind the first) where the seed is one 1 a row, else None.
    """

    name: str
    names: tuple[str, ...]
    seed: NDArray[np.float32]
    index: NDArray[np.int64] | None
    score: Array


def resolve_targets(
    spec: str, scores: Array, labels: Labels = (), kind: str | None = None, class_axis: int | None = None
) -> list[Target]:
    """Targets for one word of the user; only topK gives several. Scores (N, …) are the explained tensor's values.

    kind: classification, regression, sigmoid or dense. None: regression for one value per sample, else classes.
    class_axis: None: axis 1 of (N, C) and (N, C, H, W), the last of (N, L, C), unless just one axis is as long as
        the labels: then that one. 0: the scores have no batch axis.
    Labels that are not as many as the classes name nothing: they belong to another tensor.
    """
    return _Scores.of(scores, labels, kind, class_axis).resolve(spec.strip())


def labels_unfit(scores: Array, labels: Labels, kind: str | None = None) -> str:
    """Why these labels do not name the classes of the scores, in words; "" where they do, or where there are none."""
    return _Scores.of(scores, labels, kind, None).unnamed if labels else ""


def one_thing(values: Array) -> Array:
    """A tensor whose axis 0 counts no samples, as the scores of one: (1, …), other axes of length one left out.

    So (T, 1, C) in time becomes (1, T, C), and (C,) becomes (1, C). What has an axis 0 of length one keeps its shape.
    """
    if values.shape[:1] in ((), (1,)):
        return values
    return values.reshape(1, *(side for side in values.shape if side != 1))


def from_seed(
    seed: Array, scores: Array, name: str = "seed", labels: Labels = (), kind: str | None = None
) -> list[Target]:
    """A target from a seed of the caller's: one row for all samples, or one each, behind it the scores' axes."""
    scores = np.asarray(scores)
    if seed.shape[1:] != scores.shape[1:] or seed.ndim != scores.ndim or (len(seed.shape[:1]) and (
        seed.shape[0] not in (1, scores.shape[0])
    )):  # fmt: skip
        raise InputError(f"a seed of shape {seed.shape} for scores of shape {scores.shape}: give theirs, or one row.")
    if not np.isfinite(seed).all():
        raise InputError("the seed is NaN or infinite.")
    return [_Scores.of(scores, labels, kind, None).made(name, [name], seed, None)]


def from_classes(classes: Sequence[int], scores: Array, labels: Labels = (), kind: str | None = None) -> list[Target]:
    """One class for all samples, or one for each sample."""
    understood = _Scores.of(scores, labels, kind, None)
    chosen = [understood.checked(klass) for klass in classes]
    rows = len(understood.values)
    if len(chosen) == 1:
        return [understood.whole_class(chosen[0])]
    if len(chosen) != rows:
        raise InputError(f"{len(chosen)} classes for {rows} samples: give one for each, or one for all.")
    seed = np.zeros_like(understood.values, np.float32)
    seed[np.arange(rows), chosen] = 1
    places = understood.values[0, 0].size
    names = [label(klass, understood.labels) for klass in chosen]
    return [understood.target("one class a sample", names, seed, understood.index(*chosen) if places == 1 else None)]


def contrast(
    positive: int, negatives: Sequence[int], scores: Array, labels: Labels = (), kind: str | None = None
) -> list[Target]:
    """+1 at one class, -1 shared equally by others; no negatives: all the others."""
    understood = _Scores.of(scores, labels, kind, None)
    count = understood.values.shape[1]
    others = [understood.checked(k) for k in negatives] or [k for k in range(count) if k != positive]
    first = understood.checked(positive)
    if first in others or len(set(others)) < len(others) or not others:
        raise UsageError(f"contrast of class {first} with {others[:10]}: give different classes, each once.")
    seed = np.zeros_like(understood.values[:1], np.float32)
    seed[:, others], seed[:, first] = -1 / len(others), 1
    against = label(others[0], understood.labels) if len(others) == 1 else f"{len(others)} others"
    name = f"{label(first, understood.labels)} vs {against}"
    return [understood.target(name, [name], seed, None)]


@dataclass(frozen=True)
class _Scores:
    """Scores with their axes understood. values: (N, C, *positions), a view with the classes on axis 1."""

    scores: Array
    values: Array
    labels: Labels
    unnamed: str  # why names cannot be used, "" if they can
    kind: str | None
    axis: int  # of the classes in `scores`; -1: none (rank 0 or 1)

    @classmethod
    def of(cls, scores: Array, labels: Labels, kind: str | None, class_axis: int | None) -> _Scores:
        scores = np.asarray(scores)
        if not scores.size or not np.isfinite(scores.astype(np.float64)).all():
            raise InputError("the scores to be explained are empty, NaN or infinite: check the input's scaling.")
        if scores.ndim == 1 and class_axis is None and kind in ("classification", "dense"):
            class_axis = 0
        axis = _class_axis(scores.shape, labels, class_axis)
        values = scores.reshape(-1, 1) if axis < 0 else np.moveaxis(scores[None] if axis == 0 else scores, axis or 1, 1)
        if kind is None and values.size == len(values):
            kind = "regression"
        classes = values.shape[1]
        unnamed = "" if len(labels) == classes else f"{len(labels)} labels for {classes} classes"
        unnamed = unnamed if labels else "no labels are known; give --labels FILE"
        return cls(scores, values, labels if not unnamed else (), unnamed, kind, axis)

    def resolve(self, spec: str) -> list[Target]:
        known = {text.casefold() for text in self.labels}
        sides = VERSUS.split(spec)
        if spec.lower() == "predicted":
            return [self.predicted()]
        if top := TOP.fullmatch(spec):
            return self.top(int(top[1]))
        if len(sides) == 2 and spec.casefold() not in known:
            return [self.versus(*sides)]
        if INDEX.fullmatch(spec):
            self.no_other_name(spec)
            return [self.at(tuple(int(part) for part in spec.split(",")))]
        return [self.whole_class(self.named(spec))]

    def predicted(self) -> Target:
        """The answer itself: the largest class at each position, the value of a regression, a sigmoid unit's side."""
        classes, places = self.values.shape[1], self.values[0, 0].size
        if self.kind == "sigmoid" and classes == 1:
            sides = np.where(self.values >= 0, 1, -1)
            one = label(0, self.labels) if self.labels else "positive"
            words = [f"not {one} (−logit)" if side < 0 else f"{one} (+logit)" for side in sides[:, 0].flat]
            names = words if places == 1 else [f"each of {places} positions' own side"] * len(sides)
            rows = self.index(*[0] * len(sides))
            return self.target("predicted", names, sides, rows if (sides > 0).all() and places == 1 else None)
        if self.kind == "regression":
            many = self.values[0].size
            name = (label(0, self.labels) if self.labels else "value") if many == 1 else f"sum of {many} values"
            return self.target(name, [name], np.ones_like(self.values[:1]), self.index(0) if many == 1 else None)
        return self.ranked(0, "predicted")

    def top(self, count: int) -> list[Target]:
        """The `count` largest classes, largest first, each ranked at its own sample and position."""
        if not 1 <= count <= self.values.shape[1]:
            raise UsageError(f"top{count}: the scores have {self.values.shape[1]} class(es); give top1 to that.")
        if self.values.shape[1] == 1:
            return [self.predicted()]
        if self.kind == "regression":
            raise UsageError(f"top{count}: values of a regression have no ranks; give predicted, or an index.")
        return [self.ranked(rank, f"top {rank + 1}") for rank in range(count)]

    def ranked(self, rank: int, word: str) -> Target:
        order = np.argsort(-self.values.astype(np.float64), axis=1, kind="stable")  # ties: the lower index first
        winners = order[:, rank : rank + 1]
        seed = np.zeros_like(self.values, np.float32)
        np.put_along_axis(seed, winners, 1, axis=1)
        if self.values[0, 0].size > 1:
            return self.target(word, [f"{word} at each of {self.values[0, 0].size} positions"], seed, None)
        names = [label(int(winner), self.labels) for winner in winners.flat]
        return self.target(word, names, seed, self.index(*map(int, winners.flat)))

    def versus(self, one: str, other: str) -> Target:
        """+1 at one class, −1 at the other."""
        first, second = (
            self.checked(int(self.no_other_name(side))) if re.fullmatch(r"[+-]?\d+", side) else self.named(side)
            for side in (one, other)
        )
        if first == second:
            raise UsageError(f"{one!r} and {other!r} are the same class, {first}. Give two.")
        seed = np.zeros_like(self.values[:1], np.float32)
        seed[:, first], seed[:, second] = 1, -1
        name = f"{label(first, self.labels)} vs {label(second, self.labels)}"
        return self.target(name, [name], seed, None)

    def at(self, index: tuple[int, ...]) -> Target:
        """One integer: that class, summed over positions. As many as there are axes behind the first: one value."""
        axes = self.scores.shape if self.axis == 0 else self.scores.shape[1:]
        if len(index) == 1 and len(axes) != 1:
            return self.whole_class(self.checked(index[0]))
        if len(index) != len(axes):
            raise UsageError(
                f"index {','.join(map(str, index))}: scores of shape {self.scores.shape} take {len(axes)} integers, "
                f"or one, the class, for all its positions."
            )
        for place, size in zip(index, axes, strict=True):
            if not 0 <= place < size:
                raise UsageError(f"index {','.join(map(str, index))} is out of range. {_ranges(axes)}")
        if len(axes) == 1:
            return self.whole_class(index[0])
        seed = np.zeros(axes, np.float32)
        seed[index] = 1
        klass = index[self.axis - 1] if self.axis else index[0]
        name = f"{label(klass, self.labels)} at {','.join(map(str, index))}"
        return self.made(name, [name], seed if self.axis == 0 else seed[None], np.array([index], np.int64))

    def whole_class(self, klass: int) -> Target:
        """One class, at every position."""
        places = self.values[0, 0].size
        seed = np.zeros_like(self.values[:1], np.float32)
        seed[:, klass] = 1
        name = label(klass, self.labels) + (f", sum over {places} positions" if places > 1 else "")
        return self.target(name, [name], seed, self.index(klass) if places == 1 else None)

    def named(self, name: str) -> int:
        if self.unnamed:
            raise UsageError(f"class {name!r} cannot be looked up: {self.unnamed}. Or give an index.")
        return find(name, self.labels)

    def no_other_name(self, spec: str) -> str:
        """An index that is not another class's name too, as "3" is where the labels are digits in another order."""
        if spec.isdecimal() and spec in self.labels and list(self.labels).index(spec) != int(spec):
            at = list(self.labels).index(spec)
            own = label(int(spec), self.labels)
            raise UsageError(f"{spec!r} is class {at}'s name and class {own!r}'s index: write +{at} or +{spec}.")
        return spec

    def checked(self, klass: int) -> int:
        if not 0 <= klass < self.values.shape[1]:
            raise UsageError(f"class {klass} is out of range. {_ranges((self.values.shape[1],))}")
        return klass

    def index(self, *classes: int) -> NDArray[np.int64] | None:
        """One row a class: its place in a sample whose other axes have length 1. None: the scores have no classes."""
        if self.axis < 0:
            return None
        index = np.zeros((len(classes), self.scores.ndim - (self.axis != 0)), np.int64)
        index[:, max(self.axis - 1, 0)] = classes
        return index

    def target(self, name: str, names: Sequence[str], seed: Array, index: NDArray[np.int64] | None) -> Target:
        """From a seed in the order of `values` to the scores' own."""
        if self.axis < 0:
            seed = seed.reshape(self.scores.shape if self.scores.ndim == 0 else len(seed))
        elif self.axis == 0:
            seed = seed[0]
        else:
            seed = np.moveaxis(seed, 1, self.axis)
        return self.made(name, names, seed, index)

    def made(self, name: str, names: Sequence[str], seed: Array, index: NDArray[np.int64] | None) -> Target:
        products = seed.astype(np.float64) * self.scores
        score = products.sum() if self.axis == 0 else products.reshape(len(self.values), -1).sum(1)
        alike = names[0] if len(set(names)) == 1 else name
        kept = tuple(names) if len(set(names)) > 1 else (alike,)
        return Target(alike, kept, np.array(seed, np.float32, order="C"), index, np.atleast_1d(score))


def _class_axis(shape: tuple[int, ...], labels: Labels, given: int | None) -> int:
    """See `resolve_targets`; −1 where there are no classes."""
    if given is not None:
        if not -len(shape) <= given < len(shape):
            raise UsageError(f"class axis {given}: scores of shape {shape} have axes 0 to {len(shape) - 1}.")
        return given % len(shape)
    if len(shape) < 2:
        return -1
    fitting = [axis for axis in range(1, len(shape)) if labels and shape[axis] == len(labels)]
    if len(fitting) == 1:
        return fitting[0]
    return 2 if len(shape) == 3 else 1


def _ranges(axes: Sequence[int]) -> str:
    return "Valid: " + ", ".join(f"0 to {size - 1}" for size in axes) + "."
