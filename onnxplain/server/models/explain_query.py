"""What a client wants explained of a model, and what comes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from onnxplain.compile import Request
from onnxplain.explainer import Ask
from onnxplain.explanation import Explanation
from onnxplain.recipes import Recipe
from onnxplain.runtime.session import Array
from onnxplain.server.models.variant import Variant
from onnxplain.server.scheduling.ticket import RunReport


@dataclass(frozen=True)
class ExplainQuery:
    """What a client wants explained. asks: the targets. recipe None: the model's default."""

    feeds: Mapping[str, Array]
    asks: Sequence[Ask]
    recipe: Recipe | None = None
    request: Request | None = None


class ExplainResult(NamedTuple):
    """What `LoadedModel.explain` returns. report: of all runs it took."""

    explanation: Explanation
    variant: Variant
    report: RunReport
