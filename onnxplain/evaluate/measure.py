"""All metrics of an explainer on some data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from onnxplain.errors import UsageError
from onnxplain.evaluate.batches import batches
from onnxplain.evaluate.registry import METRICS, Judged
from onnxplain.explainer import Explainer
from onnxplain.runtime.session import Array


@dataclass
class Measured:
    """What is said of all rows, and the numbers of every row, by name."""

    metrics: dict[str, float] = field(default_factory=dict)
    rows: dict[str, list[float]] = field(default_factory=dict)


def measure(explainer: Explainer, feeds: Mapping[str, Array], baseline: float = 0.0, random_seed: int = 0) -> Measured:
    """Explain the predicted target of every row and judge it by every metric that has a number for it.

    explainer: compiled with a ledger. feeds: (N, …) by input name. baseline: what a deleted feature becomes, in model
    units. random_seed: of what metrics draw; each draws by itself, so that one more changes no other.
    """
    generators = {name: np.random.default_rng(random_seed) for name in METRICS}
    found: dict[str, list[Array]] = {}
    for part in batches(explainer, feeds):
        explanation = explainer.explain(part)
        if explanation.samples < max(len(array) for array in part.values()):
            raise UsageError("axis 0 of the model's inputs does not count samples, so rows of a table are none.")
        for name, entry in METRICS.items():
            values = None
            if not entry.of_data:
                values = entry.rows(Judged(explainer, explanation, baseline, generators[name]))
            if values is not None:
                found.setdefault(name, []).append(values)
    for name, entry in METRICS.items():
        values = entry.rows(explainer, feeds) if entry.of_data else None
        if values is not None:
            found[name] = [values]
    rows = {name: np.concatenate(parts) for name, parts in found.items()}
    metrics = {
        label: float(summary(values))
        for name, values in rows.items()
        for label, summary in METRICS[name].summaries.items()
    }
    return Measured(
        {**metrics, "random_seed": float(random_seed)}, {name: values.tolist() for name, values in rows.items()}
    )
