"""A part of a model in a session of its own: what some of its tensors are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir

from onnxplain.compile.contract import tensors
from onnxplain.compile.needed import keep_needed
from onnxplain.runtime.open import Graph
from onnxplain.runtime.session import Array, Runs

Opens = Callable[[Graph, str], Runs]


class ModelPart:
    """The tensors `outputs` of a model, computed of its inputs; what else the model does is left out."""

    def __init__(self, model: ir.Model, outputs: Sequence[str], opens: Opens):
        part = model.clone()
        values = tensors(part.graph)
        keep_needed(part, list(part.graph.inputs), [values[name] for name in outputs])
        self.inputs = [str(value.name) for value in part.graph.inputs]
        self.outputs = list(outputs)
        self._session = opens(part, f"up to {', '.join(outputs)}")

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Values of the outputs. feeds: of the whole model's inputs, by name."""
        return self._session.run({name: feeds[name] for name in self.inputs}, self.outputs)
