"""A model with one recipe: the compiled explainer and the queues its graphs run in."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property

from onnxplain.errors import ConversionChanged
from onnxplain.explainer import Explainer
from onnxplain.graph.stored_graph import nodes_of
from onnxplain.inputs.background import Background
from onnxplain.recipes import Recipe
from onnxplain.runtime.open import nbytes_of_weights, serialised
from onnxplain.server.models.inference_metadata import TensorMetadata, tensor_metadata
from onnxplain.server.models.probe import probe_rows, probe_seeds, share_runs
from onnxplain.server.scheduling.queue import ModelQueue

NODE = 4096  # bytes that a node takes in Python, its outputs with it; 2000 to 2400 were measured


@dataclass(eq=False)
class Variant:
    """An explainer, the queue of its graph and that of the model alone; of a forward-only recipe both are the latter.

    background: the model's. seconds: it took to compile. users, dropped: how many calls are answered by it, and whether
    new ones no longer are; VariantCache's.
    """

    explainer: Explainer
    queue: ModelQueue
    forward_queue: ModelQueue
    notes: list[str] = field(default_factory=list)
    background: Background | None = None
    seconds: float = 0.0
    users: int = 0
    dropped: bool = False

    def verify(self, name: str) -> None:
        """The graph must answer as the model did when it was normalised, and as without optimisation; raises else.

        Then it is tried whether its rows go apart. name: of the model, for the error.
        """
        explainer = self.explainer
        try:
            self.notes += explainer.verify(users=self.queue.session)
        except ConversionChanged as error:
            raise ConversionChanged(f"{name}: {error}") from error
        if self.queue.max_rows > 1 and (axes := explainer.row_axes()) is not None:
            subject = explainer.subject
            rows = probe_rows(subject.normalised.reference.feeds)
            share_runs(self.forward_queue, subject, subject.row_axes(), rows, self.notes)
            seeds = probe_seeds(explainer, self.forward_queue, rows)
            share_runs(self.queue, subject, axes, {**rows, **seeds}, self.notes)

    def over(self, recipe: Recipe) -> Explainer:
        """The explainer of a recipe whose graph this is: of the graph's own, or of a method that looks many times."""
        if not recipe.looped:
            return self.explainer
        e = self.explainer
        graph = None if self.forward_only else e.graph
        background = self.background if recipe.background != "none" else None
        return Explainer(
            e.subject, recipe, bounds=e.bounds, labels=e.labels, kind=e.kind, columns=e.columns, graph=graph,
            background=background,
        )  # fmt: skip

    @property
    def forward_only(self) -> bool:
        """Whether its method runs the model itself, and there is no graph."""
        return self.explainer.recipe.looped

    @cached_property
    def nbytes(self) -> int:
        """What it holds beside the model, its session open: about, in bytes."""
        if self.forward_only:
            return NODE
        explainer = self.explainer
        graph, subject = explainer.compiled.held, explainer.subject
        shared = nbytes_of_weights(subject.forward_graph or subject.normalised.held)
        return NODE * nodes_of(graph) + max(0, nbytes_of_weights(graph) - shared) + self.queue.nbytes

    @cached_property
    def digest(self) -> str:
        """sha256 of the compiled graph's bytes, in hex, "" where there is none; found when first asked for."""
        if self.forward_only:
            return ""
        return hashlib.sha256(serialised(self.explainer.compiled.held)).hexdigest()

    @cached_property
    def recipe_digest(self) -> str:
        """The recipe's digest."""
        return self.explainer.recipe.digest

    @cached_property
    def signature(self) -> tuple[list[TensorMetadata], list[TensorMetadata]]:
        """Inputs and outputs of the compiled graph."""
        ports = self.explainer.compiled.ports
        return tensor_metadata(ports.inputs), tensor_metadata(ports.outputs)
