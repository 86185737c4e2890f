"""Which axes of two models are equally long once tensors of one are fed to the other: symbols and numbers unified."""

from __future__ import annotations

import onnx_ir as ir

from onnxplain.frontend.sample_inputs import MEANINGLESS, fixed, symbol
from onnxplain.graph.node import dims

Symbol = tuple[int, str]
"""Of the first (0) or second (1) model, by its name there; `<port>.<axis>` for an axis without a name."""
Length = int | Symbol
Dim = int | str | None


class Lengths:
    """Sets of equal lengths. A set is known by its number, else by a symbol somebody chose, else by any of it."""

    def __init__(self) -> None:
        self._known_by: dict[Length, Length] = {}
        self._names: dict[Symbol, str] = {}  # in the whole: two sets never have one name

    def of(self, length: Length) -> Length:
        """What a set is known by."""
        while length in self._known_by:
            length = self._known_by[length]
        return length

    def unify(self, a: Length, b: Length) -> bool:
        """Say that two lengths are equal; False where both are numbers, and not the same."""
        a, b = sorted((self.of(a), self.of(b)), key=_order)
        if isinstance(a, int) and isinstance(b, int):
            return a == b
        if a != b:
            self._known_by[b] = a
        return True

    def dim(self, length: Length) -> Dim:
        """How a length is written in the whole; None where nobody gave it a name."""
        length = self.of(length)
        if isinstance(length, int):
            return length
        if not _chosen(length):
            return None
        if length not in self._names:
            n, name = 1, length[1]
            while name in self._names.values():
                n += 1
                name = f"{length[1]}_{n}"
            self._names[length] = name
        return self._names[length]

    def rewrite(self, model: ir.Model, which: int) -> None:
        """Write every shape of a model as it is in the whole: `which` is 0 for the first, 1 for the second."""
        values = {*model.graph.inputs, *model.graph.outputs}
        for node in model.graph.all_nodes():
            values.update(node.outputs)
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.GRAPH:
                    values.update(attribute.as_graph().inputs)
        for value in sorted(values, key=lambda value: not value.is_graph_input()):  # inputs name their symbols first
            if value.shape is not None:
                value.shape = ir.Shape([self.dim(length) for length in axes(value, which)])


def axes(value: ir.Value, which: int) -> list[Length]:
    """The lengths of a tensor's axes. Its rank must be known."""
    return [
        int(dim) if isinstance(dim, int) and fixed(dim) else (which, symbol(str(value.name), axis, dim))
        for axis, dim in enumerate(dims(value))
    ]


def _chosen(length: Symbol) -> bool:
    """Whether somebody gave a length its name; `<tensor>.<axis>` is made by us."""
    head, _, axis = length[1].rpartition(".")
    return length[1] not in MEANINGLESS and not (head and axis.isdigit())


def _order(length: Length) -> tuple[bool, bool, int]:
    return (False, False, 0) if isinstance(length, int) else (True, not _chosen(length), length[0])
