"""New names and new weights of a graph."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir


class Names:
    """The names of a graph, gone through once; those given since are taken too."""

    def __init__(self, graph: ir.Graph):
        self.graph = graph
        self._taken = {value.name for node in graph for value in node.outputs} | set(graph.initializers)
        self._taken |= {value.name for value in graph.inputs}
        self._last: dict[str, int] = {}  # a weight that a thousand layers share is asked for a thousand times

    def free(self, name: str) -> str:
        """`name`, or with a number where it is taken."""
        n = self._last.get(name, 0)
        free = f"{name}_{n}" if n else name
        while free in self._taken:
            n += 1
            free = f"{name}_{n}"
        self._taken.add(free)
        self._last[name] = n
        return free


def initializer(names: Names, name: str, array: np.ndarray, dtype: ir.DataType) -> ir.Value:
    """A new weight of the graph under a free name like `name`."""
    name = names.free(name)
    numbers = np.asarray(array, dtype=dtype.numpy(), order="C")  # not ascontiguousarray: it makes vectors of scalars
    tensor = ir.tensor(numbers, dtype=dtype, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(dtype), const_value=tensor)
    names.graph.register_initializer(value)
    return value
