"""What the tests of derivatives and rules share: one-node graphs, sampled inputs, a float64 evaluator."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
import onnxruntime
from onnx.reference.ops.op_conv_transpose import ConvTranspose
from onnx.reference.ops.op_pad import Pad_18 as Pad

from onnxplain.graph import signs, streams
from onnxplain.graph.backward import Backward, Facts
from onnxplain.graph.node import Node
from onnxplain.graph.walk import backward, prune
from onnxplain.vjp import OPS, axis_rules, lookup, sign_rules
from onnxplain.vjp.registry import Case

OPTIONAL = ""


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


def evaluate(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs of a small model in the dtype of its inputs (float64 included), by onnx's reference evaluator."""
    session = onnx.reference.ReferenceEvaluator(model, new_ops=[GroupedConvTranspose, NegativePad])
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
        if case.sample == "apart":
            return (rng.permutation(int(np.prod(shape))).reshape(shape) - np.prod(shape) / 2) * 0.13
        x = rng.standard_normal(shape)
        return np.sign(x) * (np.abs(x) + 0.2) if case.sample == "away" else x

    def typed(array: np.ndarray) -> np.ndarray:
        return array.astype(dtype) if array.dtype.kind == "f" else array

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


def one_node(
    op_type: str, case: Case, dtype: type, rule=None, free: bool = False, batch_one: bool = False, domain: str = ""
) -> OneNode:
    """Build the node of a case and its derivative (or `rule`).

    free: declare the first input's axis 0 as batch and let streams be free, where the registry proves the axis.
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
            shape = list(given)
            value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(float_type))
            graph_inputs.append(value)
            (constants if name in case.constant or (free and not first) else wanted).append(value)
        else:
            value = ir.Value(
                name=name,
                shape=ir.Shape(array.shape),
                type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
                const_value=ir.tensor(array, name=name),
            )
            constants.append(value)
        values.append(value)
    weights = op_type in ("Conv", "ConvTranspose", "LSTM", "GRU", "RNN", "BatchNormalization")
    if weights:
        for value in values[1:]:
            if value is not None and value in wanted:
                wanted.remove(value)
                constants.append(value)
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
    builder.infer(node)
    measured = None
    if any(not isinstance(dim, int) for dim in node.outputs[0].shape or [None]):  # known at run time only
        graph.outputs.append(node.outputs[0])
        bare = ir.to_proto(ir.Model(graph, ir_version=8 if case.opset < 19 else 10))
        measured = evaluate(bare, {str(v.name): feeds[str(v.name)] for v in graph_inputs})["y0"].shape
        graph.outputs.clear()
    view = Node.of(node, case.opset)
    axes = streams.track([view], [v for v in graph_inputs if v not in constants], axis_rules()) if free else {}
    facts = Facts(axes, free, signs.nonnegative([view], sign_rules()), set(constants))
    op = Backward(graph, facts)
    y = node.outputs[0]
    seed = ir.Value(name="seed", shape=ir.Shape(op.stream_shape(y)), type=ir.TensorType(float_type))
    graph.inputs.append(seed)
    with op.arithmetic():
        found = backward(op, [view], {y: seed}, set(wanted), lambda n: rule or lookup(n).vjp, lookup)
    graph.outputs.append(y)
    names = []
    for value in wanted:
        if value in found:
            result = found[value]
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
