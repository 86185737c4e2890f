"""What a looped method moves, reads and answers for, of one model: decided before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onnxplain.composites import Bounds
from onnxplain.errors import InputError
from onnxplain.explanation_graph import ExplanationGraph
from onnxplain.inner_tensors import InnerTensors
from onnxplain.inputs.background import Background
from onnxplain.inputs.tables import Columns
from onnxplain.inputs.targets import Target
from onnxplain.layer_tail import LayerTail
from onnxplain.loop_answers import LoopAnswers
from onnxplain.loops import Loop, Progress
from onnxplain.methods.moved import moves
from onnxplain.methods.named_groups import with_numbers
from onnxplain.methods.registry import Looped, one_pass
from onnxplain.recipes import Recipe
from onnxplain.runtime.session import Array
from onnxplain.subject import Subject


class LoopPlan:
    """What moves: the attributed inputs; all float inputs, where the method reads inner tensors; or inner tensors.

    Where these move, the model and its explanation graph are cut there (`LayerTail`). notes: what was chosen, in
    sentences. Raises UsageError and UnsupportedModel for what cannot be moved or read.
    """

    def __init__(
        self, subject: Subject, recipe: Recipe, method: Looped, graph: ExplanationGraph | None, bounds: Bounds,
        background: Background | None, columns: Columns, labels: Sequence[str],
    ):  # fmt: skip
        """graph: of the recipe's base, None for a forward-only method. background: where the recipe takes one.

        columns, labels: names of a table's columns and of the classes, where they are known.
        """
        self._columns, self._labels = columns, labels
        self._background = background
        self._subject, self._recipe, self._method, self._graph, self._bounds = subject, recipe, method, graph, bounds
        self._base = None if recipe.base is None else one_pass(recipe.base.method, "a looped method's base")
        self._inputs = [spec.name for spec in subject.inputs]
        self._floats = [spec.name for spec in subject.inputs if "float" in spec.dtype]
        self._about: Mapping[str, Mapping[str, Any]] = {}
        self._proven = True
        self.notes: list[str] = []
        types = {spec.name: spec.dtype for spec in subject.inputs}
        named = subject.request.attribute_to
        attributed = list(named or self._inputs)
        if method.maps:
            self._about = self._maps()
            attributed = list(self._about)
        elif graph is not None:
            attributed = list(graph.compiled.relevances.values())
        found = moves(method, recipe.options, attributed, types, bool(named), subject.looked_up)
        self._moved, self._answered = found.moved, found.answered
        self.notes += found.notes
        self._tail = LayerTail.of(subject, graph, found.moved) if found.inner else None
        self._options = with_numbers(recipe.options, self._moved, columns)

    @property
    def provenance(self) -> dict[str, Any]:
        """Of the feature maps that the method answers for, and of the background."""
        found: dict[str, Any] = {}
        if self._about:
            found["maps"] = dict(self._about)
        if (rows := self._background) is not None:
            found["background"] = {"rows": rows.rows, "sha256": rows.sha256}
        return found

    @property
    def _channels(self) -> dict[str, int]:
        return {name: about["channels"] for name, about in self._about.items()}

    def answer(
        self, feeds: Mapping[str, Array], targets: Sequence[Target], values: Array, samples: bool,
        progress: Progress | None,
    ) -> LoopAnswers:  # fmt: skip
        """See `Loop.relevances`. samples: whether axis 0 of the explained tensor counts samples."""
        (explained,) = self._subject.resolved.explained
        subject, graph, axes = self._subject, self._graph, self._subject.row_axes()
        proven = graph.compiled.streams if graph is not None else axes is not None and axes.get(explained) == 0
        inner, fed = self._read(), feeds
        if self._tail is not None:
            rows = values.shape[0] if samples and values.ndim else 1
            if rows > 1 and not self._tail.proven:
                raise InputError(
                    f"axis 0 of {', '.join(self._moved)} is not known to count samples, of which there are {rows}: "
                    f"method {self._method.name} moves each by itself. Explain one at a time."
                )
            proven = proven and self._tail.proven
            subject, graph, fed = self._tail.subject, self._tail.graph, self._tail.feeds(feeds, values)
            inner = InnerTensors(self._tail.read, self._subject.inputs, feeds, self._floats)
        loop = Loop(
            subject, graph, explained, self._moved, self._base, self._bounds, samples, proven and self._proven,
            progress, self._background, self._answered, self._channels, inner, self._columns, self._labels,
        )  # fmt: skip
        return loop.relevances(self._method, self._options, fed, targets, values)

    # Inside

    def _maps(self) -> Mapping[str, Mapping[str, Any]]:
        """Of the graph, whose base has found them, or by themselves."""
        if self._graph is not None:
            maps = self._graph.compiled.provenance["maps"]
            return {name: maps[name] for name in self._graph.compiled.relevances.values()}
        found = self._subject.map_layers()
        self._proven = found.proven
        self.notes += found.notes
        return found.maps

    def _read(self) -> InnerTensors | None:
        """What a method reads that moves the inputs."""
        inner = tuple(name for name in self._answered if name not in self._inputs)
        return InnerTensors(self._subject.part(inner).run) if inner and self._tail is None else None
