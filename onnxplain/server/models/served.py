"""What answers for one version of one model: in this process (`LocalModel`) or in a worker (`IsolatedModel`)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

from onnxplain.v1 import explainer_pb2 as v1

EXPLAIN = ".explain"  # M.explain is M's default recipe as an ordinary model, M.explain.NAME the recipe NAME

Progress = Callable[[int, int], None]


class Served(Protocol):
    """Requests in, replies out, both as messages. Open Inference messages are of the private pool, hence Any.

    Every method raises OnnxplainError for what the caller can mend.
    """

    name: str
    version: str

    @property
    def nbytes(self) -> int:
        """Memory that it holds now, about."""
        ...

    async def infer(self, request: Any) -> Any:
        """ModelInfer of the model, or of its explanation as a model."""
        ...

    async def metadata(self, name: str) -> Any:
        """ModelMetadata."""
        ...

    async def config(self, name: str) -> Any:
        """ModelConfig."""
        ...

    async def statistics(self) -> list[Any]:
        """ModelStatistics of the model and of its explanations."""
        ...

    async def explain(self, request: v1.ExplainRequest, progress: Progress | None = None) -> v1.ExplainResponse:
        """The reasons for an answer. progress: told (done, total) from any thread, where it takes many looks."""
        ...

    async def explainability(self, request: v1.GetExplainabilityRequest) -> v1.GetExplainabilityResponse:
        """What can be explained of the model, and how its inputs are prepared."""
        ...

    def compile(self, request: v1.CompileGraphRequest) -> AsyncIterator[v1.CompileGraphResponse]:
        """The compiled graph in pieces."""
        ...

    async def ready(self, name: str) -> bool:
        """Whether this name (the model or one of its explanations) answers."""
        ...

    async def explanations(self) -> list[tuple[str, str]]:
        """Served names of the explanations there are, each with why it does not answer ("": it does)."""
        ...

    async def close(self) -> None:
        """Free everything."""
        ...


def split(name: str) -> tuple[str, str | None]:
    """(model, recipe) of a served name: m -> (m, None), m.explain -> (m, ""), m.explain.lrp -> (m, lrp)."""
    model, marker, rest = name.partition(EXPLAIN)
    if not marker or (rest and not rest.startswith(".")) or rest == ".":
        return name, None
    return model, rest[1:]
