"""A graph that grows node by node, every tensor of it known by value, so that what is drawn is valid and moderate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from random_graphs.kernels import Array, evaluator, wide

LARGEST = 100.0  # no drawn float exceeds it
MOST = 400  # elements of a tensor


class Unfit(Exception):
    """A step that cannot be taken here: its nodes are taken back."""


@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor by name with its value for each number of rows (one where the batch is fixed)."""

    name: str
    values: tuple[Any, ...]
    varies: bool = True  # computed from an input
    producer: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values[0].shape

    @property
    def open(self) -> tuple[bool, ...]:
        """Which axes have a length that is known at run time only."""
        return tuple(len({v.shape[i] for v in self.values}) > 1 for i in range(self.rank))

    @property
    def rank(self) -> int:
        return self.values[0].ndim

    @property
    def kind(self) -> str:
        return self.values[0].dtype.kind

    def low(self) -> float:
        return float(min(v.min() for v in self.values))

    def high(self) -> float:
        return float(max(v.max() for v in self.values))

    def size(self) -> float:
        """Largest absolute value."""
        return max(abs(self.low()), abs(self.high()))


@dataclass
class Canvas:
    """What has been drawn so far. rows: lengths of the batch that are tried; two where it is open."""

    rng: np.random.Generator
    opset: int = 18
    double: bool = False
    rows: tuple[int, ...] = (2,)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)  # computed ones and inputs, in the order of their making
    constants: dict[str, Array] = field(default_factory=dict)
    inputs: dict[str, Tensor] = field(default_factory=dict)
    counter: int = 0
    computed: float = 0.3  # how often a parameter is computed from an input

    @property
    def elem(self) -> int:
        return onnx.TensorProto.DOUBLE if self.double else onnx.TensorProto.FLOAT

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def choice(self, options: Sequence[Any]) -> Any:
        return options[int(self.rng.integers(len(options)))]

    def int(self, low: int, high: int) -> int:
        """low to high, both included."""
        return int(self.rng.integers(low, high + 1))

    def normal(self, *shape: int, scale: float = 1.0) -> Array:
        """Random numbers that float32 holds exactly."""
        return np.asarray(self.rng.standard_normal(shape) * scale, np.float32).astype(np.float64)

    def name(self, stem: str) -> str:
        self.counter += 1
        return f"{stem.lower()}{self.counter}"

    def input(self, shape: Sequence[int | None]) -> Tensor:
        """A new input; None stands for the rows."""
        name = f"x{len(self.inputs)}"
        values = tuple(self.normal(*[rows if d is None else d for d in shape]) for rows in self.rows)
        tensor = Tensor(name, values)
        self.inputs[name] = tensor
        self.tensors.append(tensor)
        return tensor

    def const(self, array: Any) -> Tensor:
        """A constant: floats in the type of the graph, whole numbers as int64; now and then by a node."""
        array = np.asarray(array)
        if array.dtype.kind == "f":
            array = array.astype(np.float32).astype(np.float64)
        name = self.name("c")
        self.constants[name] = array
        return Tensor(name, (array,) * len(self.rows), varies=False)

    def add(self, op_type: str, *inputs: Tensor | None, outputs: int = 1, domain: str = "", aside: bool = False, **attributes: Any) -> Any:  # fmt: skip  # noqa: E501
        """A node; its output, or the tuple of its outputs. Raises Unfit where it fails or its values are wild.

        aside: the output has another type than the graph's floats, and only its step uses it.
        """
        names = [self.name(op_type) for _ in range(outputs)]
        while inputs and inputs[-1] is None:  # an empty name at the end makes onnxruntime's optimiser crash
            inputs = inputs[:-1]
        node = helper.make_node(
            op_type, ["" if t is None else t.name for t in inputs], names, name=self.node_name(op_type), domain=domain
        )
        node.attribute.extend(helper.make_attribute(k, v) for k, v in sorted(attributes.items()) if v is not None)
        given = [t for t in inputs if t is not None] + [self.by_name[n] for n in captured(node) if n in self.by_name]
        made = self._evaluated(node, given)
        self.nodes.append(node)
        varies = op_type != "Shape" and any(t.varies for t in given)
        found = tuple(Tensor(n, values, varies, op_type) for n, values in zip(names, made, strict=True))
        for tensor in found:
            self._check(tensor)
        self.tensors += [t for t in found if isinstance(t.values[0], np.ndarray) and not aside]
        return found[0] if outputs == 1 else found

    @property
    def by_name(self) -> dict[str, Tensor]:
        found = {t.name: t for t in self.tensors}
        found |= {n: Tensor(n, (a,) * len(self.rows), False) for n, a in self.constants.items()}
        return found

    def node_name(self, op_type: str) -> str:
        prefix = "backward/" if self.chance(0.02) else ""
        return f"{prefix}{op_type}_{len(self.nodes)}"

    def _evaluated(self, node: onnx.NodeProto, given: Sequence[Tensor]) -> list[tuple[Any, ...]]:
        made = []
        for trial in range(len(self.rows)):
            feeds = {t.name: t.values[trial] for t in given}
            graph = helper.make_graph(
                [node],
                "one",
                [helper.make_tensor_value_info(n, onnx.TensorProto.DOUBLE, None) for n in feeds],
                [helper.make_tensor_value_info(n, onnx.TensorProto.DOUBLE, None) for n in node.output],
            )
            model = helper.make_model(graph, opset_imports=self.opsets(), ir_version=10)
            try:
                with np.errstate(all="ignore"):
                    found = evaluator(wide(model)).run(None, feeds)
                    made.append([np.asarray(v) if isinstance(v, np.generic) else v for v in found])
            except Exception as error:
                raise Unfit(f"{node.op_type}: {error}") from error
        return [tuple(trial[i] for trial in made) for i in range(len(node.output))]

    def _check(self, tensor: Tensor) -> None:
        for value in tensor.values:
            if not isinstance(value, np.ndarray):
                continue
            if value.size == 0 or value.size > MOST:
                raise Unfit(f"{value.shape}")
            assert value.dtype.kind != "f" or value.dtype == np.float64, (
                f"{tensor.producer} is not evaluated in float64"
            )
            if value.dtype.kind == "f" and not (np.isfinite(value).all() and np.abs(value).max() <= LARGEST):
                raise Unfit("wild values")

    def opsets(self) -> list[onnx.OperatorSetIdProto]:
        return [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]

    @contextmanager
    def step(self) -> Iterator[None]:
        """What is drawn inside is taken back when it turns out Unfit, which is raised on."""
        nodes, tensors, constants, counter = len(self.nodes), len(self.tensors), set(self.constants), self.counter
        try:
            yield
        except Unfit:
            del self.nodes[nodes:], self.tensors[tensors:]
            for name in set(self.constants) - constants:
                del self.constants[name]
            self.counter = counter
            raise

    def floats(self, fits: Callable[[Tensor], bool] = lambda t: True) -> list[Tensor]:
        """Float tensors computed from an input that fit."""
        return [t for t in self.tensors if t.kind == "f" and t.varies and fits(t)]

    def pick(self, fits: Callable[[Tensor], bool] = lambda t: True) -> Tensor:
        """A float tensor computed from an input, the newer ones more often. Raises Unfit where none fits."""
        found = self.floats(fits)
        if not found:
            raise Unfit("no tensor of that form")
        back = min(int(self.rng.geometric(0.35)), len(found))
        return found[-back]


def captured(node: onnx.NodeProto) -> list[str]:
    """Names that the bodies of a node may take from outside."""
    names: list[str] = []
    for attribute in node.attribute:
        if attribute.HasField("g"):
            made = {v.name for v in attribute.g.input} | {o for n in attribute.g.node for o in n.output}
            inner = [i for n in attribute.g.node for i in (*n.input, *captured(n))]
            names += [i for i in (*inner, *(o.name for o in attribute.g.output)) if i and i not in made]
    return list(dict.fromkeys(names))


def initializers(canvas: Canvas) -> list[onnx.TensorProto]:
    """The constants in the type of the graph."""
    single = np.float64 if canvas.double else np.float32
    return [
        numpy_helper.from_array(a.astype(single) if a.dtype.kind == "f" else a, n) for n, a in canvas.constants.items()
    ]
