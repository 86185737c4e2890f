"""A builder that knows the forward graph: batch axes, signs, what is constant."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from onnxplain.errors import UnsupportedModel, UsageError
from onnxplain.graph.builder import Builder
from onnxplain.graph.masks import HUGE
from onnxplain.graph.node import Node, dims, rank
from onnxplain.graph.relevance import Relevance, common
from onnxplain.graph.streams import UNPROVEN

STREAMS = "streams"  # symbol of the stream axis in shapes


@dataclass
class Facts:
    """What is known of the forward graph.

    axes: batch axis of each tensor (`graph.streams`). free: whether the stream axis may differ from the batch; when it
    may not, every backward tensor has exactly its forward shape. nonnegative: `graph.signs`. constants: tensors that
    depend on no input. receptive: tensors that relevance can reach an input of the model through; None: all that are
    not constant. masks: tensors that hold -inf or the lowest float by design (`graph.masks`).
    unbounded: tensors whose gradient may be infinite, because an op above has such a derivative. references: the same
    tensors of the forward pass on reference inputs (`compile.reference_forward`); None: there is no such pass.
    channels: the axis of the channels of tensors that a map is made of (`compile.feature_maps`).
    """

    axes: Mapping[ir.Value, int] = field(default_factory=dict)
    free: bool = False
    nonnegative: Collection[ir.Value] = frozenset()
    constants: Collection[ir.Value] = frozenset()
    receptive: Collection[ir.Value] | None = None
    masks: Collection[ir.Value] = frozenset()
    unbounded: Collection[ir.Value] = frozenset()
    references: Mapping[ir.Value, ir.Value] | None = None
    channels: Mapping[ir.Value, int] = field(default_factory=dict)


class Backward(Builder):
    """`op` in every derivative and rule."""

    def __init__(self, graph: ir.Graph, facts: Facts, prefix: str = "backward"):
        super().__init__(graph, prefix)
        self.facts = facts
        self.constants = set(facts.constants)  # and what is emitted from constants alone
        self.absorbed: dict[str, list[ir.Value]] | None = None  # the ledger of the current node, when one is kept

    def stream_axis(self, value: ir.Value) -> int | None:
        """Axis along which the backward tensor of `value` may be longer than `value`; None: nowhere."""
        axis = self.facts.axes.get(value, UNPROVEN)
        return axis if self.facts.free and axis >= 0 else None

    def stream_shape(self, value: ir.Value) -> list[int | str | None]:
        """Shape of the backward tensor of `value`."""
        shape, axis = dims(value), self.stream_axis(value)
        return [STREAMS if i == axis else dim for i, dim in enumerate(shape)]

    def is_constant(self, value: ir.Value | None) -> bool:
        """Whether the tensor depends on no input of the model. An absent input is constant."""
        return value is None or value in self.constants or value.const_value is not None

    def receives(self, value: ir.Value | None) -> bool:
        """Whether a share of relevance can go on from this tensor to an input of the model.

        Constants, masks made by comparisons, lengths: what is given to them is lost, so rules give them nothing.
        """
        if value is None or self.is_constant(value):
            return False
        return self.facts.receptive is None or value in self.facts.receptive

    def books(self, value: ir.Value) -> bool:
        """Whether the ledger books what goes to this tensor although nobody asked for its relevance."""
        return self.absorbed is not None and self.receives(value)

    def infer(self, node: ir.Node) -> None:
        """Type and shape of a node's outputs; what depends on constants alone is constant too."""
        super().infer(node)
        if all(self.is_constant(value) for value in node.inputs):
            self.constants.update(node.outputs)

    def is_nonnegative(self, value: ir.Value) -> bool:
        """Whether the tensor is known to be >= 0."""
        return value in self.facts.nonnegative

    def reference(self, value: ir.Value) -> ir.Value:
        """A forward tensor's value on the reference inputs: 1 row, or as many as streams; itself where it has no other.

        Raises UsageError where the graph is compiled without them, UnsupportedModel for what is no forward tensor.
        """
        if self.facts.references is None:
            raise UsageError(
                f"{self._scope}: the rule reads a reference, and none is asked for: Request(reference=True)."
            )
        if value.producer() in self.emitted:
            raise UnsupportedModel(f"{self._scope}: {value.name} is no forward tensor and has no reference.")
        return self.facts.references.get(value, value)

    def differs(self, value: ir.Value | None) -> bool:
        """Whether the tensor may have another value on the reference inputs."""
        return value is not None and value in (self.facts.references or {})

    def difference(self, value: ir.Value) -> ir.Value:
        """A forward tensor minus the same on the reference inputs; of tokens, which have none, an error upstream."""
        return self.once(("difference", value), lambda: self.Sub(self.real(value), self.real(self.reference(value))))

    def midpoint(self, value: ir.Value) -> ir.Value:
        """A forward tensor half way between its value and that on the reference inputs; itself where they are one."""
        if not self.differs(value):
            return self.real(value)

        def make() -> ir.Value:
            made = self.Mul(self.Add(self.real(value), self.real(self.reference(value))), 0.5)
            if value in self.facts.axes:
                self.facts.axes = {**self.facts.axes, made: self.facts.axes[value]}
            return made  # type: ignore[no-any-return]

        return self.once(("midpoint", value), make)

    def on_reference(self, node: Node) -> Node:
        """The same step of the forward pass on the reference inputs."""
        twin = lambda value: None if value is None else self.reference(value)  # noqa: E731
        inputs, outputs = (tuple(map(twin, values)) for values in (node.inputs, node.outputs))
        return replace(node, inputs=inputs, outputs=outputs, members=())  # type: ignore[arg-type]

    def real(self, value: ir.Value) -> ir.Value:
        """A forward tensor in the precision relevance is carried in: float32 for float16 and bfloat16 ones.

        Of a transposed tensor the source is cast and transposed anew: onnxruntime 1.31 crashes on Transpose, Cast,
        MatMul when it fuses them.
        """
        if value.dtype not in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
            return value
        made = value.producer()
        if made is not None and made.op_type == "Transpose" and made.domain == "" and made.inputs[0] is not None:
            source, perm = made.inputs[0], made.attributes.get("perm")
            axes = None if perm is None else list(perm.as_ints())
            return self.once(("real", value), lambda: self.Transpose(self.real(source), perm=axes))
        return self.once(("real", value), lambda: self.Cast(value, to=int(ir.DataType.FLOAT)))

    def bounded(self, value: ir.Value) -> ir.Value:
        """`real`, with the -inf of a mask as a huge number: divided by itself it is 1."""
        if value not in self.facts.masks:
            return self.real(value)
        return self.once(("bounded", value), lambda: self.Max(self.Min(self.real(value), HUGE), -HUGE))

    def target_shape(self, x: ir.Value, streams: int = -1) -> ir.Value:
        """Shape of `x` as a Reshape (streams = -1) or Expand (streams = 1) wants it, free along the stream axis."""
        axis, shape = self.stream_axis(x), dims(x)
        lengths = [streams if i == axis else dim for i, dim in enumerate(shape)]
        if all(isinstance(length, int) for length in lengths):
            return self.ints([length for length in lengths if isinstance(length, int)])
        open_axes = [i for i, length in enumerate(lengths) if not isinstance(length, int)]
        if streams == -1 and axis is None and len(open_axes) == 1:
            return self.ints([length if isinstance(length, int) else -1 for length in lengths])
        parts = [
            self.ints([length]) if isinstance(length, int) else self.size(x, i) for i, length in enumerate(lengths)
        ]
        return self.once(("target shape", x, streams), lambda: self.Concat(*parts, axis=0))

    def like(self, g: ir.Value, x: ir.Value) -> ir.Value:
        """`g` laid out as `x`: same number of elements per stream, other axes."""
        if rank(g) == rank(x) and self.stream_shape(x) == dims(g):
            return g
        return self.reshaped(self.Reshape(g, self.target_shape(x)), self.stream_shape(x))

    def expand(self, g: ir.Value, x: ir.Value) -> ir.Value:
        """`g` stretched to the shape of `x`."""
        if rank(g) == rank(x) and self.stream_shape(x) == dims(g):
            return g
        return self.reshaped(self.Expand(g, self.target_shape(x, streams=1)), self.stream_shape(x))

    def zeros(self, g: ir.Value, x: ir.Value) -> ir.Value:
        """Zeros in the shape of `x`, with the streams of `g` (any tensor of the same stream count)."""
        axis, dtype = self.stream_axis(x), g.dtype
        assert dtype is not None
        if axis is None:
            return self.expand(self.constant(0.0, dtype), x)
        streams = self.size(g, dims(g).index(STREAMS))
        shape = self.Concat(*(streams if i == axis else self.size(x, i) for i in range(rank(x))), axis=0)
        return self.reshaped(self.Expand(self.constant(0.0, dtype), shape), self.stream_shape(x))

    def unbroadcast(self, r: ir.Value, x: ir.Value) -> ir.Value:
        """Sum `r` over the axes along which `x` was stretched; never over the stream axis."""
        have, want = dims(r), self.stream_shape(x)
        lead = len(have) - len(want)
        axes = list(range(lead))
        unknown = []
        for i, dim in enumerate(want):
            if dim == 1 and have[lead + i] != 1:
                axes.append(lead + i)
            elif not isinstance(dim, int) and dim != STREAMS and dim != have[lead + i]:
                unknown.append(lead + i)
        if unknown:
            r = self._sum_where_one(r, x, lead)
        if axes:
            r = self.ReduceSum(r, self.ints(axes), keepdims=0 if axes == list(range(lead)) else 1)
            if lead and rank(r) != len(want):
                r = self.Squeeze(r, self.ints(range(lead)))
        return self.reshaped(r, want) if dims(r) != want else r

    def _sum_where_one(self, r: ir.Value, x: ir.Value, lead: int) -> ir.Value:
        """Axes whose length only the run knows: summed where `x` has length 1 and `r` does not stream."""
        flags = self.Equal(self.Shape(x), self.ints([1]))
        axis = self.stream_axis(x)
        if axis is not None:
            import numpy as np

            flags = self.And(flags, self.constant(np.arange(rank(x)) != axis, ir.DataType.BOOL))
        at = self.Reshape(self.NonZero(flags), self.ints([-1])) + self.constant(lead, ir.DataType.INT64)
        return self.reshaped(
            self.ReduceSum(r, at, keepdims=1, noop_with_empty_axes=1), [*dims(r)[:lead], *self.stream_shape(x)]
        )

    def total(self, parts: Sequence[Relevance]) -> Relevance:
        """Sum of what arrives at a tensor from its consumers."""
        if len(parts) == 1:
            return parts[0]
        arrived = [part.value for part in parts]
        result = self.Add(*arrived) if len(parts) == 2 else self.Sum(*arrived)
        return Relevance(self.reshaped(result, dims(arrived[0])), common(parts))

    def absorb(self, column: str, amount: ir.Value, node: Node) -> None:
        """Book relevance that does not reach an input (per stream: everything else is summed later)."""
        if self.absorbed is not None:
            self.absorbed.setdefault(column, []).append(amount)
