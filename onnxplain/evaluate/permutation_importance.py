"""Permutation importance: how much worse a model is on a data set when a feature's values go to other rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxplain.errors import InputError, UnknownName, UsageError
from onnxplain.inputs.tables import columns_by_input, feeds_of
from onnxplain.methods.feature_groups import FeatureGroups, Groups, partition
from onnxplain.methods.named_groups import with_numbers
from onnxplain.methods.tensors import Tensors
from onnxplain.runtime.chunking import chunks
from onnxplain.runtime.session import Array
from onnxplain.subject import Subject

Goodness = Callable[[Array, Array], float]
"""`(labels, values of the explained tensor) -> how good they are`: more is better."""
CELLS = 7  # patches along the longer side of a picture, by default
BATCH = 256  # rows of a run at most, where the batch is open


def accuracy(labels: Array, values: Array) -> float:
    """Share of rows whose highest class is the label; of one value a row, whether it is above 0 as the label says."""
    scores = values.reshape(len(values), -1)
    found = scores.argmax(1) if scores.shape[1] > 1 else (scores[:, 0] > 0).astype(np.int64)
    return float(np.mean(found == labels))


def squared_error(labels: Array, values: Array) -> float:
    """Minus the mean squared error of a regression."""
    return -float(np.mean(np.square(values.reshape(len(values), -1)[:, 0].astype(np.float64) - labels)))


def r2(labels: Array, values: Array) -> float:
    """Coefficient of determination of a regression."""
    return 1.0 + squared_error(labels, values) / float(np.var(labels.astype(np.float64)))


GOODNESS: dict[str, Goodness] = {"accuracy": accuracy, "r2": r2, "squared_error": squared_error}


@dataclass(frozen=True)
class Importance:
    """mean: how far the goodness falls, for each element of a row, float64, by input. standard_error: of that, over
    the repeats. goodness: of the data as they are. falls: of each repeat and group, float64 (repeats, groups), the
    groups numbered by the order of their first elements. names: of the columns of each group, where they are known.
    """  # noqa: D205

    mean: Mapping[str, Array]
    standard_error: Mapping[str, Array]
    goodness: float
    falls: Array
    names: tuple[str, ...]


def permutation_importance(
    subject: Subject,
    inputs: Array | Mapping[str, Array],
    labels: Array,
    *,
    metric: str | Goodness = "accuracy",
    groups: Groups = "auto",
    patch: int | None = None,
    repeats: int = 10,
    random_seed: int = 0,
    columns: Sequence[str] | Mapping[str, Sequence[str]] = (),
    attribute_to: Sequence[str] = (),
) -> Importance:
    """The fall of the goodness when the values of a feature group are dealt out anew among the rows.

    I_g = goodness(x) - mean over permutations of goodness(x, group g of row n taken from row pi(n)). Breiman 2001,
    Random Forests, sect. 10; Fisher, Rudin and Dominici 2019, All Models are Wrong, but Many are Useful. Each group has
    the whole fall; two that say the same hide one another, and belong in one group.

    inputs: (N, …), N at least 2, all inputs with N rows. labels: (N,), what is right. metric: accuracy, r2,
    squared_error, or a function (labels, values of the explained tensor) -> number, more is better. groups, patch,
    columns: as the perturbation methods take them. attribute_to: inputs that are permuted, all of them by default.
    Raises InputError, UsageError, UnknownName.
    """
    if isinstance(metric, str) and metric not in GOODNESS:
        raise UnknownName("metric", metric, GOODNESS)
    good = GOODNESS[metric] if isinstance(metric, str) else metric
    if repeats < 2:
        raise UsageError(f"repeats={repeats}: at least 2 are needed to tell how far off their mean is.")
    known = columns_by_input(columns, subject.inputs)
    specs = [
        replace(spec, shape=spec.shape and (None, *spec.shape[1:])) for spec in subject.inputs
    ]  # any number of rows
    feeds = feeds_of(inputs, specs, known)
    moved = list(attribute_to) or list(feeds)
    for name in moved:
        if name not in feeds:
            raise UnknownName("input", name, feeds)
    lengths = {len(array) if array.ndim else 0 for array in feeds.values()} | {len(labels)}
    if len(lengths) != 1 or (rows := lengths.pop()) < 2:
        raise InputError(
            "permutation importance goes over a data set: two rows or more, as many of every input as labels, not "
            f"{', '.join(f'{name} {list(array.shape)}' for name, array in feeds.items())} and {len(labels)} labels."
        )
    x = Tensors({name: feeds[name] for name in moved})
    chosen = with_numbers({"groups": tuple(groups) if isinstance(groups, list) else groups}, moved, known)["groups"]
    if chosen in ("superpixels", "quickshift", "bands"):
        raise UsageError(f"groups={chosen} are each picture's own, and rows exchange theirs: take patches.")
    features = partition(x.map(lambda array: array[:1]), chosen, patch, CELLS)
    labels = np.asarray(labels)
    whole = good(labels, _values(subject, feeds))
    generator = np.random.default_rng(random_seed)
    falls = np.zeros((repeats, features.count))
    for repeat in range(repeats):
        for group in range(features.count):
            order = generator.permutation(rows)
            present = np.arange(features.count)[None] != group
            points = features.points(x, x.map(lambda array, order=order: array[order]), present)  # type: ignore[misc]
            falls[repeat, group] = whole - good(labels, _values(subject, {**feeds, **points}))
    error = falls.std(0, ddof=1) / np.sqrt(repeats)
    spread = [{name: array[0] for name, array in features.spread(v).items()} for v in (falls.mean(0), error)]
    return Importance(spread[0], spread[1], whole, falls, _names(features, known))


def _values(subject: Subject, feeds: Mapping[str, Array]) -> Array:
    """The explained tensor of all rows."""
    (name,) = subject.resolved.explained[:1]
    rows = len(next(iter(feeds.values())))
    fixed = [spec.shape[0] for spec in subject.inputs if spec.shape and isinstance(spec.shape[0], int)]
    size = fixed[0] if fixed else BATCH
    found = []
    for part in chunks(rows, size):
        held = {n: array[part] for n, array in feeds.items()}
        missing = size - (part.stop - part.start) if fixed else 0
        filled = {n: np.concatenate([array, np.repeat(array[-1:], missing, 0)]) for n, array in held.items()}
        found.append(subject.forward(filled, [name])[name][: part.stop - part.start])
    values = np.concatenate(found)
    if len(values) != rows:
        raise UsageError(f"{name} has {len(values)} rows for {rows} of the inputs: axis 0 does not count samples.")
    return values


def _names(features: FeatureGroups, columns: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """The columns of each group, where all inputs are tables with names; else its number."""
    found: list[list[str]] = [[] for _ in range(features.count)]
    for name, numbers in features.numbers.items():
        flat = np.broadcast_to(numbers, features.like[name].shape).reshape(-1)
        own = columns.get(name) or ([name] if len(flat) == 1 else ())
        if len(own) != len(flat):
            return tuple(map(str, range(features.count)))
        for number, column in zip(flat, own, strict=True):
            found[int(number)].append(column)
    return tuple(" + ".join(group) for group in found)
