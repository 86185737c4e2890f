"""Metrics with labels, looked up once: each lookup of prometheus_client's takes microseconds, and a call makes ten."""

from __future__ import annotations

from contextlib import suppress
from typing import Generic, TypeVar

from prometheus_client.metrics import MetricWrapperBase

M = TypeVar("M", bound=MetricWrapperBase)


class Labelled(Generic[M]):
    """A metric's children by the values of its labels. Not for several threads: Metrics' lock is around it."""

    __slots__ = ("_children", "_metric")

    def __init__(self, metric: M):
        self._metric = metric
        self._children: dict[tuple[str, ...], M] = {}

    def labels(self, *values: str) -> M:
        """The child of these values."""
        child = self._children.get(values)
        if child is None:
            child = self._children[values] = self._metric.labels(*values)
        return child

    def remove(self, *values: str) -> None:
        """Forget a child, if there is one."""
        self._children.pop(values, None)
        with suppress(KeyError):  # older prometheus_client: never observed
            self._metric.remove(*values)
