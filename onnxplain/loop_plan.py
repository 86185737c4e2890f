"""What a looped method moves, reads and answers for, of one model: decided before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onnxplain.composites import Bounds
from onnxplain.explanation_graph import ExplanationGraph
from onnxplain.inputs.targets import Target
from onnxplain.loop_answers import LoopAnswers
from onnxplain.loops import Loop, Progress, Read
from onnxplain.methods.moved import moved
from onnxplain.methods.registry import Looped, one_pass
from onnxplain.recipes import Recipe
from onnxplain.runtime.session import Array
from onnxplain.subject import Subject


class LoopPlan:
    """notes: what was chosen, in sentences. Raises UsageError and UnsupportedModel for what cannot be moved or read."""

    def __init__(
        self, subject: Subject, recipe: Recipe, method: Looped, graph: ExplanationGraph | None, bounds: Bounds
    ):
        """graph: of the recipe's base, None for a forward-only method."""
        self._subject, self._recipe, self._method, self._graph, self._bounds = subject, recipe, method, graph, bounds
        self._base = None if recipe.base is None else one_pass(recipe.base.method, "a looped method's base")
        (self._explained,) = subject.resolved.explained[:1]
        self._maps: dict[str, Mapping[str, Any]] = {}
        self._proven = True
        self.notes: list[str] = []
        inputs = [spec.name for spec in subject.inputs]
        floats = [spec.name for spec in subject.inputs if "float" in spec.dtype]
        named = subject.request.attribute_to
        if method.maps:
            self._plan_maps()
            self._moved, _ = moved(inputs, floats, False, method.name)
        else:
            attributed = list(named or inputs) if graph is None else list(graph.compiled.relevances.values())
            self._moved, notes = moved(attributed, floats, bool(named), method.name)
            self.notes += notes

    @property
    def provenance(self) -> dict[str, Any]:
        """Of the feature maps that the method answers for."""
        return {"maps": self._maps} if self._maps else {}

    @property
    def _channels(self) -> dict[str, int]:
        return {name: about["channels"] for name, about in self._maps.items()}

    def answer(
        self, feeds: Mapping[str, Array], targets: Sequence[Target], values: Array, samples: bool,
        progress: Progress | None,
    ) -> LoopAnswers:  # fmt: skip
        """See `Loop.relevances`. samples: whether axis 0 of the explained tensor counts samples."""
        graph, axes = self._graph, self._subject.row_axes()
        proven = graph.compiled.streams if graph is not None else axes is not None and axes.get(self._explained) == 0
        loop = Loop(
            self._subject, graph, self._explained, self._moved, self._base, self._bounds, samples,
            proven and self._proven, progress, self._channels, self._reader(),
        )  # fmt: skip
        return loop.relevances(self._method, self._recipe.options, feeds, targets, values)

    # Inside

    def _plan_maps(self) -> None:
        """Of the graph, whose base has found them, or by themselves."""
        if self._graph is not None:
            maps = self._graph.compiled.provenance["maps"]
            self._maps = {name: maps[name] for name in self._graph.compiled.relevances.values()}
            return
        found = self._subject.map_layers()
        self._maps, self._proven = dict(found.maps), found.proven
        self.notes += found.notes

    def _reader(self) -> Read | None:
        if self._method.layer != "read":
            return None
        return self._subject.part(tuple(self._channels)).run
