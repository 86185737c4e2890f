"""What a looped method moves, reads and answers for, of one model: decided before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onnxplain.composites import Bounds
from onnxplain.explanation_graph import ExplanationGraph
from onnxplain.inputs.background import Background
from onnxplain.inputs.tables import Columns
from onnxplain.inputs.targets import Target
from onnxplain.loop_answers import LoopAnswers
from onnxplain.loops import Loop, Progress, Read
from onnxplain.methods.moved import moved
from onnxplain.methods.named_groups import with_numbers
from onnxplain.methods.registry import Looped, one_pass
from onnxplain.recipes import Recipe
from onnxplain.runtime.session import Array
from onnxplain.subject import Subject


class LoopPlan:
    """notes: what was chosen, in sentences. Raises UsageError and UnsupportedModel for what cannot be moved or read."""

    def __init__(
        self, subject: Subject, recipe: Recipe, method: Looped, graph: ExplanationGraph | None, bounds: Bounds,
        background: Background | None, columns: Columns,
    ):  # fmt: skip
        """graph: of the recipe's base, None for a forward-only method. background: where the recipe takes one.

        columns: names of the columns of tables, by input.
        """
        self._background = background
        self._subject, self._recipe, self._method, self._graph, self._bounds = subject, recipe, method, graph, bounds
        self._base = None if recipe.base is None else one_pass(recipe.base.method, "a looped method's base")
        (self._explained,) = subject.resolved.explained[:1]
        self._channels: Mapping[str, int] = {}
        self._proven = True
        self.notes: list[str] = []
        inputs = [spec.name for spec in subject.inputs]
        types = {spec.name: spec.dtype for spec in subject.inputs}
        named = subject.request.attribute_to
        if method.maps:
            self._plan_maps()
            self._moved, _ = moved(inputs, types, False, method, recipe.options, subject.looked_up)
        else:
            attributed = list(named or inputs) if graph is None else list(graph.compiled.relevances.values())
            more = (method, recipe.options, subject.looked_up)
            self._moved, notes = moved(attributed, types, bool(named), *more)
            self.notes += notes
        self._options = with_numbers(recipe.options, self._moved, columns)

    @property
    def provenance(self) -> dict[str, Any]:
        """Of the feature maps that the method answers for, and of the background."""
        found: dict[str, Any] = {}
        if self._channels:
            found["maps"] = {name: {"channels": n} for name, n in self._channels.items()}
        if (rows := self._background) is not None:
            found["background"] = {"rows": rows.rows, "sha256": rows.sha256}
        return found

    def answer(
        self, feeds: Mapping[str, Array], targets: Sequence[Target], values: Array, samples: bool,
        progress: Progress | None,
    ) -> LoopAnswers:  # fmt: skip
        """See `Loop.relevances`. samples: whether axis 0 of the explained tensor counts samples."""
        graph, axes = self._graph, self._subject.row_axes()
        proven = graph.compiled.streams if graph is not None else axes is not None and axes.get(self._explained) == 0
        loop = Loop(
            self._subject, graph, self._explained, self._moved, self._base, self._bounds, samples,
            proven and self._proven, progress, self._background, self._channels, self._reader(),
        )  # fmt: skip
        return loop.relevances(self._method, self._options, feeds, targets, values)

    # Inside

    def _plan_maps(self) -> None:
        """Of the graph, whose base has found them, or by themselves."""
        if self._graph is not None:
            maps = self._graph.compiled.provenance["maps"]
            self._channels = {name: maps[name]["channels"] for name in self._graph.compiled.relevances.values()}
            return
        found = self._subject.map_layers()
        self._channels, self._proven = found.channels, found.proven
        self.notes += found.notes

    def _reader(self) -> Read | None:
        if self._method.layer != "read":
            return None
        return self._subject.part(tuple(self._channels)).run
