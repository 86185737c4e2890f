"""How long an explanation takes."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping

import numpy as np

from onnxplain.evaluate.batches import batches
from onnxplain.evaluate.registry import data_metric
from onnxplain.explainer import Explainer
from onnxplain.runtime.session import Array

TIMED = 10  # single explanations whose median time is reported


@data_metric("seconds", seconds_per_explanation=np.median)
def seconds(explainer: Explainer, feeds: Mapping[str, Array]) -> Array:
    """Seconds of single explanations, as they are served: without the ledger, after one to warm up."""
    subject = explainer.subject
    plain = dataclasses.replace(subject, request=dataclasses.replace(subject.request, ledger=False))
    timed = Explainer(
        plain, explainer.recipe, bounds=explainer.bounds, labels=explainer.labels, kind=explainer.kind,
        background=explainer.background,
    )  # fmt: skip
    found = []
    for part in [*batches(timed, feeds, 1)][: TIMED + 1]:
        begun = time.perf_counter()
        timed.explain(part)
        found.append(time.perf_counter() - begun)
    return np.array(found[1:] or found)
