"""A model with one recipe: the compiled explainer and the queues its graphs run in."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property

from onnxplain.explainer import Explainer
from onnxplain.recipes import Recipe
from onnxplain.runtime.open import nbytes_of_weights, serialised
from onnxplain.server.models.inference_metadata import TensorMetadata, tensor_metadata
from onnxplain.server.scheduling.queue import ModelQueue

NODE = 4096  # bytes that a node takes in Python, its outputs with it; 2000 to 2400 were measured


@dataclass(eq=False)
class Variant:
    """An explainer, the queue of its graph and that of the model alone.

    seconds: it took to compile. users, dropped: how many calls are answered by it, and whether new ones no longer are;
    VariantCache's.
    """

    explainer: Explainer
    queue: ModelQueue
    forward_queue: ModelQueue
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    users: int = 0
    dropped: bool = False

    def over(self, recipe: Recipe) -> Explainer:
        """The explainer of a recipe whose graph this is: of the graph's own, or of a method that runs it many times."""
        if not recipe.looped:
            return self.explainer
        e = self.explainer
        return Explainer(e.subject, recipe, bounds=e.bounds, labels=e.labels, kind=e.kind, graph=e.graph)

    @cached_property
    def nbytes(self) -> int:
        """What it holds beside the model, its session open: about, in bytes."""
        explainer = self.explainer
        model, shared = explainer.compiled.model, nbytes_of_weights(explainer.subject.normalised.model)
        return NODE * len(model.graph) + max(0, nbytes_of_weights(model) - shared) + self.queue.nbytes

    @cached_property
    def digest(self) -> str:
        """sha256 of the compiled graph's bytes, in hex; found when first asked for."""
        return hashlib.sha256(serialised(self.explainer.compiled.model)).hexdigest()

    @cached_property
    def recipe_digest(self) -> str:
        """The recipe's digest."""
        return self.explainer.recipe.digest

    @cached_property
    def signature(self) -> tuple[list[TensorMetadata], list[TensorMetadata]]:
        """Inputs and outputs of the compiled graph."""
        graph = self.explainer.compiled.model.graph
        inputs = tensor_metadata(v for v in graph.inputs if v.name not in graph.initializers)
        return inputs, tensor_metadata(graph.outputs)
