"""What the tests of derivatives and rules share: one-node graphs, sampled inputs, a float64 evaluator."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
import onnxruntime
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_conv_transpose import ConvTranspose
from onnx.reference.ops.op_pad import Pad_18 as Pad
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, RuntimeException

from onnxplain.compile.reference_forward import add_reference
from onnxplain.errors import UnsupportedModel
from onnxplain.graph import signs, streams
from onnxplain.graph.backward_builder import Backward, Facts
from onnxplain.graph.node import Node, is_float
from onnxplain.graph.relevance import Relevance
from onnxplain.graph.walk import backward, prune
from onnxplain.vjp import OPS, axis_rules, lookup, sign_rules, silent_inputs
from onnxplain.vjp.registry import Case

REFUSED = (Fail, InvalidArgument, RuntimeException)  # by onnxruntime


class GroupedConvTranspose(ConvTranspose):
    """onnx's evaluator fails on grouped ConvTranspose: one call per group is the same thing."""

    op_domain = ""

    def _run(self, x, w, b=None, group=None, **attributes):  # type: ignore[override]
        group = group or 1
        if attributes.get(
            "output_shape"
        ):  # the evaluator honours pads beside output_shape; ONNX says they follow from it
            shape, strides = attributes.pop("output_shape"), attributes["strides"]
            totals = [s * (i - 1) + k - o for s, i, k, o in zip(strides, x.shape[2:], w.shape[2:], shape, strict=True)]
            attributes["pads"] = [t - t // 2 for t in totals] + [t // 2 for t in totals]
        parts = [
            super(GroupedConvTranspose, self)._run(xg, wg, None, group=1, **attributes)[0]
            for xg, wg in zip(np.split(x, group, 1), np.split(w, group, 0), strict=True)
        ]
        y = np.concatenate(parts, axis=1)
        return (y if b is None else y + b.reshape(1, -1, *[1] * (y.ndim - 2)),)


GroupedConvTranspose.__name__ = "ConvTranspose"


class NegativePad(Pad):
    """onnx's evaluator refuses negative pads: cut first, then pad the rest."""

    op_domain = ""

    def _run(self, data, pads, constant_value=None, axes=None, mode=None):  # type: ignore[override]
        axes = range(data.ndim) if axes is None else axes
        cut = [slice(None)] * data.ndim
        for axis, begin, end in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
            cut[axis] = slice(max(0, -begin), data.shape[axis] - max(0, -end))
        return super()._run(data[tuple(cut)], np.maximum(pads, 0), constant_value, np.array(axes), mode=mode)


NegativePad.__name__ = "Pad"


class WindowMaxPool(OpRun):
    """Every window by a loop; Indices as onnxruntime's, from which onnx's evaluator differs."""

    op_domain = ""

    def _run(self, x, auto_pad=None, ceil_mode=0, dilations=None, kernel_shape=None, pads=None, storage_order=0, strides=None):  # type: ignore[override]  # fmt: skip  # noqa: E501
        n = x.ndim - 2
        strides, dilations, pads = strides or [1] * n, dilations or [1] * n, list(pads or [0] * 2 * n)
        outs, taps = [], []
        for i, (size, k, s, d) in enumerate(zip(x.shape[2:], kernel_shape, strides, dilations, strict=True)):
            span = d * (k - 1) + 1
            if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
                total = max(0, (-(-size // s) - 1) * s + span - size)
                pads[i] = total // 2 if auto_pad == "SAME_UPPER" else total - total // 2
                pads[n + i] = total - pads[i]
            room = size + pads[i] + pads[n + i] - span
            out = (-(-room // s) if ceil_mode else room // s) + 1
            out -= bool(ceil_mode and (out - 1) * s >= size + pads[i])
            outs.append(out)
            begins = range(-pads[i], out * s - pads[i], s)
            taps.append([[j for j in range(b, b + span, d) if 0 <= j < size] for b in begins])
        y, index = np.empty((*x.shape[:2], *outs), x.dtype), np.empty((*x.shape[:2], *outs), np.int64)
        order = "F" if storage_order else "C"
        plane = np.arange(np.prod(x.shape[2:])).reshape(x.shape[2:], order=order)
        for at in np.ndindex(*outs):
            box = np.ix_(*(taps[i][o] for i, o in enumerate(at)))
            for sample, channel in np.ndindex(*x.shape[:2]):
                inside = x[sample, channel][box]
                y[(sample, channel, *at)] = inside.max()
                index[(sample, channel, *at)] = plane[box].reshape(-1)[inside.argmax()] + plane.size * (
                    sample * x.shape[1] + channel
                )
        return (y, index)[: len(self.onnx_node.output)]


WindowMaxPool.__name__ = "MaxPool"


class GlobalMaxPool(OpRun):
    """onnx's evaluator knows two spatial axes only."""

    op_domain = ""

    def _run(self, x):  # type: ignore[override]
        return (x.max(axis=tuple(range(2, x.ndim)), keepdims=True),)


class GlobalLpPool(OpRun):
    """Missing in onnx's evaluator."""

    op_domain = ""

    def _run(self, x, p=None):  # type: ignore[override]
        return ((np.abs(x) ** p).sum(axis=tuple(range(2, x.ndim)), keepdims=True) ** (1 / p),)


class Erf(OpRun):
    """onnx's evaluator computes it in float32."""

    op_domain = ""

    def _run(self, x):  # type: ignore[override]
        return (np.vectorize(math.erf, otypes=[x.dtype])(x),)


class Gelu(OpRun):
    """onnx's evaluator expands it with its own Erf."""

    op_domain = ""

    def _run(self, x, approximate=None):  # type: ignore[override]
        if approximate == "tanh":
            return (0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),)
        return (0.5 * x * (1 + np.vectorize(math.erf, otypes=[x.dtype])(x * np.sqrt(0.5))),)


class LRN(OpRun):
    """onnx's evaluator counts its channels by the batch."""

    op_domain = ""

    def _run(self, x, alpha=None, beta=None, bias=None, size=None):  # type: ignore[override]
        y = np.empty_like(x)
        for c in range(x.shape[1]):
            window = x[:, max(0, c - (size - 1) // 2) : c + size // 2 + 1]
            y[:, c] = x[:, c] / (bias + alpha / size * (window**2).sum(1)) ** beta
        return (y,)


class LpNormalization(OpRun):
    """onnx's evaluator forgets the absolute value at p = 1."""

    op_domain = ""

    def _run(self, x, axis=None, p=None):  # type: ignore[override]
        return (x / np.linalg.norm(x, p, axis, keepdims=True),)


class MeanVarianceNormalization(OpRun):
    """onnx's evaluator expands it with float32 constants."""

    op_domain = ""

    def _run(self, x, axes=None):  # type: ignore[override]
        axes = (0, 2, 3) if axes is None else tuple(axes)
        return ((x - x.mean(axes, keepdims=True)) / (x.std(axes, keepdims=True) + 1e-9),)


class GroupNormalization(OpRun):
    """onnx's evaluator computes it in float32."""

    op_domain = ""

    def _run(self, x, scale, bias, epsilon=1e-5, num_groups=None, stash_type=None):  # type: ignore[override]
        channels, y = x.shape[1], np.empty_like(x)
        for group in np.split(np.arange(channels), num_groups):
            part = x[:, group]
            over = tuple(range(1, x.ndim))
            y[:, group] = (part - part.mean(over, keepdims=True)) / np.sqrt(part.var(over, keepdims=True) + epsilon)
        scale, bias = (np.repeat(v, channels // len(v)).reshape(-1, *[1] * (x.ndim - 2)) for v in (scale, bias))
        return (y * scale + bias,)


def _unrolled(op_type, x, w, r, b, h, c, p, direction, layout, activations, linear_before_reset=0, input_forget=0):
    """One recurrent op, step by step, as the equations in ONNX's text have it: Y, Y_h, Y_c."""
    functions = {"Sigmoid": lambda a: 1 / (1 + np.exp(-a)), "Tanh": np.tanh, "Relu": lambda a: np.maximum(a, 0)}
    defaults = {"RNN": ["Tanh"], "GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"]}[op_type]
    if layout:
        x, h, c = (None if a is None else np.swapaxes(a, 0, 1) for a in (x, h, c))
    directions, size = w.shape[0], r.shape[2]
    names = activations or defaults * directions
    ys, hs, cs = [], [], []
    for d in range(directions):
        act = [functions[name] for name in names[d * len(defaults) : (d + 1) * len(defaults)]]
        ht, ct = (np.zeros((x.shape[1], size), x.dtype) if a is None else a[d] for a in (h, c))
        wb, rb = np.split(np.zeros(2 * w.shape[1], x.dtype) if b is None else b[d], 2)
        pi, po, pf = np.split(np.zeros(3 * size, x.dtype) if p is None else p[d], 3)
        y = np.empty((len(x), x.shape[1], size), x.dtype)
        for t in range(len(x))[:: -1 if d == 1 or direction == "reverse" else 1]:
            from_x, from_h = x[t] @ w[d].T + wb, ht @ r[d].T + rb
            if op_type == "RNN":
                ht = act[0](from_x + from_h)
            elif op_type == "GRU":
                z, reset = (act[0](from_x[:, k : k + size] + from_h[:, k : k + size]) for k in (0, size))
                last = slice(2 * size, None)
                recur = from_h[:, last] * reset if linear_before_reset else (reset * ht) @ r[d][last].T + rb[last]
                ht = (1 - z) * act[1](from_x[:, last] + recur) + z * ht
            else:
                i, o, f, n = np.split(from_x + from_h, 4, 1)
                i = act[0](i + pi * ct)
                f = 1 - i if input_forget else act[0](f + pf * ct)
                ct = f * ct + i * act[1](n)
                ht = act[0](o + po * ct) * act[2](ct)
            y[t] = ht
        for collected, last_one in ((ys, y), (hs, ht), (cs, ct)):
            collected.append(last_one)
    y, h, c = np.stack(ys, 1), np.stack(hs), np.stack(cs)
    return (y.transpose(2, 0, 1, 3), h.swapaxes(0, 1), c.swapaxes(0, 1)) if layout else (y, h, c)


class Unrolled(OpRun):
    """onnx's evaluator leaves out activations, input_forget and more."""

    op_domain = ""

    def _run(self, x, w, r, b=None, lengths=None, h=None, c=None, p=None, **attributes):  # type: ignore[override]
        names = ("direction", "layout", "activations", "linear_before_reset", "input_forget")
        given = {name: attributes[name] for name in names if attributes.get(name) is not None}
        given = {"direction": "forward", "layout": 0, "activations": None, **given}
        return _unrolled(type(self).__name__, x, w, r, b, h, c, p, **given)[: len(self.onnx_node.output)]


RNN, GRU, LSTM = (type(name, (Unrolled,), {}) for name in ("RNN", "GRU", "LSTM"))


OWN_KERNELS = [
    RNN,
    GRU,
    LSTM,
    LRN,
    LpNormalization,
    MeanVarianceNormalization,
    GroupNormalization,
    Erf,
    Gelu,
    GroupedConvTranspose,
    NegativePad,
    WindowMaxPool,
    GlobalMaxPool,
    GlobalLpPool,
]


def evaluate(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs of a small model in the dtype of its inputs (float64 included), by onnx's reference evaluator."""
    session = onnx.reference.ReferenceEvaluator(model, new_ops=OWN_KERNELS)
    return dict(zip([o.name for o in model.graph.output], session.run(None, feeds), strict=True))


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs of a model in plain onnxruntime."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))


def sample(case: Case, rng: np.random.Generator, dtype: type) -> dict[str, np.ndarray]:
    """Random inputs as the case asks."""

    def draw(shape: tuple[int, ...]) -> np.ndarray:
        if case.sample == "positive":
            return rng.uniform(0.5, 2.0, shape)
        if case.sample == "unit":
            return rng.uniform(-0.9, 0.9, shape)
        if case.sample == "above":
            return rng.uniform(1.2, 3.0, shape)
        if case.sample == "apart":
            return (rng.permutation(int(np.prod(shape))).reshape(shape) - np.prod(shape) / 2) * 0.13
        x = rng.standard_normal(shape)
        return np.sign(x) * (np.abs(x) + 0.2) if case.sample == "away" else x

    def typed(array: np.ndarray) -> np.ndarray:
        return array.astype(dtype) if array.dtype == np.float64 else array

    return {
        name: draw(given).astype(dtype) if isinstance(given, tuple) else typed(given)
        for name, given in case.inputs.items()
        if given is not None
    }


@dataclass
class OneNode:
    """A model of one node with its backward pass: inputs, `seed`; outputs y0…, `<input>.relevance`."""

    proto: onnx.ModelProto
    outputs: list[str]
    wanted: list[str]
    shape: tuple[int, ...]
    free: bool
    axes: dict[str, int]


class Misfit(ValueError):
    """The inputs of a case do not go together: the forward node itself refuses them."""


def precision(op_type: str, case: Case, domain: str) -> type:
    """float64 where the op allows it, else float32 (Celu, ai.onnx.ml)."""
    schema = onnx.defs.get_schema(op_type, 1 if domain else case.opset, domain)
    taken = {formal.type_str for formal in schema.inputs}
    allowed = [set(c.allowed_type_strs) for c in schema.type_constraints if c.type_param_str in taken]
    single = any("tensor(float)" in types and "tensor(double)" not in types for types in allowed)
    return np.float32 if domain or single else np.float64


def batch_axes(view: Node, inputs: Mapping[str, int]) -> dict[ir.Value, int]:
    """Batch axis of every tensor of one node; inputs that are not named are constant."""
    given = [streams.CONSTANT if v is None else inputs.get(str(v.name), streams.CONSTANT) for v in view.inputs]
    axes = {value: axis for value, axis in zip(view.inputs, given, strict=True) if value is not None}
    rule = axis_rules().get(view.op_type)
    known = rule is not None and all(v.shape is not None for v in (*view.outputs, *axes))
    found = rule(view, given) if rule is not None and known else streams.UNPROVEN
    for i, value in enumerate(view.outputs):
        axes[value] = found if isinstance(found, int) else found[i] if i < len(found) else streams.UNPROVEN
    return axes


def one_node(
    op_type: str,
    case: Case,
    dtype: type,
    rule=None,
    free: bool = False,
    domain: str = "",
    batch: Mapping[str, int] | None = None,
    open_axes: bool = False,
    positive: bool = False,
    reference: bool = False,
) -> OneNode:
    """Build the node of a case and its derivative (or `rule`).

    free: declare the first input's axis 0 as batch and let streams be free, where the registry proves the axis.
    batch: input → its batch axis, where it is not the first input's axis 0; inputs that are not named are constant.
    open_axes: the first input's lengths, but for the channels', are symbols. reference: with inputs `<input>.reference`
    for a rule of differences.
    """
    float_type = ir.DataType.from_numpy(np.dtype(dtype))
    feeds = sample(case, np.random.default_rng(0), dtype)
    values: list[ir.Value | None] = []
    graph_inputs, wanted, constants = [], [], []
    for name, given in case.inputs.items():
        if given is None:
            values.append(None)
            continue
        array = feeds[name]
        if isinstance(given, tuple):
            first = not graph_inputs
            shape = [f"d{i}" if open_axes and first and i != 1 else d for i, d in enumerate(given)]
            value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(float_type))
            graph_inputs.append(value)
            fixed = name not in batch if batch else free and not first
            (constants if name in case.constant or fixed else wanted).append(value)
        else:
            value = ir.Value(
                name=name,
                shape=ir.Shape(array.shape),
                type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
                const_value=ir.tensor(array, name=name),
            )
            constants.append(value)
        values.append(value)
    opsets = {"": case.opset} | ({domain: 1} if domain else {})
    node = ir.Node(
        domain,
        op_type,
        values,
        ir.convenience.convert_attributes(case.attributes),
        num_outputs=case.outputs,
        name="node",
    )
    for i, value in enumerate(node.outputs):
        value.name = f"y{i}"
    graph = ir.Graph(
        graph_inputs,
        [],
        nodes=[node],
        opset_imports=opsets,
        name="test",
        initializers=[v for v in constants if v.const_value is not None],
    )
    builder = Backward(graph, Facts())
    try:
        builder.infer(node)
    except UnsupportedModel as error:
        raise Misfit(str(error)) from error
    y = next((value for value in node.outputs if value.type is not None and is_float(value)), node.outputs[0])
    y.name, node.outputs[0].name = "y0", "y0" if y is node.outputs[0] else "other"  # LinearClassifier: labels, scores
    measured = None
    unknown = any(not isinstance(dim, int) for dim in (y.shape if y.shape is not None else [None]))
    if (unknown and not open_axes) or batch:  # known at run time only
        graph.outputs.append(y)
        bare = ir.to_proto(ir.Model(graph, ir_version=8 if case.opset < 19 else 10))
        execute = run if batch else evaluate
        try:
            measured = execute(bare, {str(v.name): feeds[str(v.name)] for v in graph_inputs})["y0"].shape
        except (IndexError, *REFUSED) as error:
            raise Misfit(str(error)) from error
        graph.outputs.clear()
    view = Node.of(node, case.opset)
    axes = batch_axes(view, batch or dict.fromkeys([str(v.name) for v in wanted], 0)) if free else {}
    known = [v for v in graph_inputs if v not in constants] if positive else []
    free = free and axes.get(y, -1) >= 0  # as the compiler: exact seeds where the axis is not proven
    facts = Facts(axes, free, signs.nonnegative([view], sign_rules(), known), set(constants), receptive=wanted)
    op = Backward(graph, facts)
    if reference:
        add_reference(op, wanted)
    carried = ir.DataType.DOUBLE if float_type == ir.DataType.DOUBLE else ir.DataType.FLOAT  # as the compiler has it
    seed = ir.Value(name="seed", shape=ir.Shape(op.stream_shape(y)), type=ir.TensorType(carried))
    graph.inputs.append(seed)
    with op.arithmetic():
        active = set(wanted)
        found = backward(
            op,
            [view],
            {y: Relevance(seed)},
            active,
            lambda n: rule or lookup(n).rule,
            lookup,
            lambda n, i: i not in silent_inputs(n),
        )
    graph.outputs.append(y)
    names = []
    for value in wanted:
        if value in found:
            result = found[value].value
            if result.name in ("seed",) or result in graph.outputs:
                result = op.Identity(result)
            result.name = f"{value.name}.relevance"
            graph.outputs.append(result)
            names.append(str(value.name))
    prune(graph, 1)
    model = ir.Model(graph, ir_version=8 if case.opset < 19 else 10)
    shape = measured or tuple(ir_dim if isinstance(ir_dim, int) else 1 for ir_dim in y.shape)  # type: ignore[union-attr]
    return OneNode(ir.to_proto(model), ["y0"], names, shape, free, {str(v.name): a for v, a in axes.items()})


def registered_cases():
    """(op type, index of the case, case) of every derivative."""
    return [(name, i, case) for name, entry in OPS.items() for i, case in enumerate(entry.cases)]
