"""The registry of metrics: a number for every row, and what is said of all rows together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from onnxplain.explainer import Explainer
from onnxplain.explanation import Explanation
from onnxplain.registry import Registry
from onnxplain.runtime.session import Array

Summary = Callable[[Array], float]


@dataclass(frozen=True)
class Judged:
    """One explained batch, N rows.

    explainer: made it, and can be asked more. explanation: of the predicted target of every row. baseline: what a
    deleted feature becomes, in model units. generator: of random numbers, each metric's own.
    """

    explainer: Explainer
    explanation: Explanation
    baseline: float
    generator: np.random.Generator


@dataclass(frozen=True)
class Metric:
    """rows: of one batch (`metric`) or of all data (`data_metric`). summaries: over all rows, name -> how."""

    rows: Callable[..., Array | None]
    summaries: Mapping[str, Summary]
    of_data: bool = False


METRICS: Registry[Metric] = Registry("metric")

BatchRows = Callable[[Judged], "Array | None"]
DataRows = Callable[[Explainer, Mapping[str, Array]], "Array | None"]


def metric(name: str, **summaries: Summary) -> Callable[[BatchRows], BatchRows]:
    """Register `function(judged) -> float64 (N,)`, or None where the explanation has no such number.

    summaries: what is logged of all rows, by name; the mean, by the name of the metric, where none is given.
    """

    def register(function: BatchRows) -> BatchRows:
        METRICS.add(name, Metric(function, summaries or {name: np.mean}))
        return function

    return register


def data_metric(name: str, **summaries: Summary) -> Callable[[DataRows], DataRows]:
    """Register `function(explainer, feeds) -> float64 (rows,)`: a metric that makes explanations of its own."""

    def register(function: DataRows) -> DataRows:
        METRICS.add(name, Metric(function, summaries or {name: np.mean}, of_data=True))
        return function

    return register
