"""Constants out of the way: shape arithmetic, `If` on a constant, Identity, Dropout, casts that change nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
import onnxscript.optimizer
import onnxscript.rewriter
from onnxscript.rewriter.pattern import RewriteRuleSet
from onnxscript.rewriter.rules import common as rules

from onnxplain.frontend.passes.replacement import Replacement
from onnxplain.graph.node import ints

INPUT_LIMIT = 8192  # elements; larger constants are left to onnxruntime, which folds them without a copy in the file
OUTPUT_LIMIT = 65536
COMPUTED = {"Abs", "Add", "And", "Cast", "CastLike", "Ceil", "Clip", "Concat", "Constant", "Cos", "Div", "Equal", "Erf"}
COMPUTED |= {"Exp", "Expand", "Flatten", "Floor", "Gather", "GatherElements", "GatherND", "Greater", "GreaterOrEqual"}
COMPUTED |= {
    "Identity",
    "If",
    "Less",
    "LessOrEqual",
    "Log",
    "MatMul",
    "Max",
    "Mean",
    "Min",
    "Mod",
    "Mul",
    "Neg",
    "NonZero",
}
COMPUTED |= {
    "Not",
    "Or",
    "Pow",
    "Range",
    "Reciprocal",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
}
COMPUTED |= {
    "Relu",
    "Reshape",
    "Round",
    "ScatterND",
    "Shape",
    "Sigmoid",
    "Sign",
    "Sin",
    "Size",
    "Slice",
    "Split",
    "Sqrt",
}
COMPUTED |= {"Squeeze", "Sub", "Sum", "Tanh", "Tile", "Transpose", "Trilu", "Unsqueeze", "Where", "Xor"}
ROUNDS = 3
LOGGERS = ("onnxscript", "onnx_ir")

SIMPLIFICATIONS = {  # name -> (op that the rule's pattern ends in, rule)
    "cast of a cast": ("Cast", rules.cast_cast_rule),
    "cast to the same": ("Cast", rules.no_op_cast_rule),
    "transpose that moves nothing": ("Transpose", rules.no_op_transpose_rule),
    "expand to the same": ("Expand", rules.no_op_expand_rule),
    "transpose of a transpose": ("Transpose", rules.transpose_transpose_rule),
    "reshape of a reshape": ("Reshape", rules.reshape_reshape_rule),
    "unsqueeze of an unsqueeze": ("Unsqueeze", rules.unsqueeze_unsqueeze_rule),
    "reshape of a squeeze": ("Reshape", rules.squeeze_reshape_1d_rule),
    "slice of everything": ("Slice", rules.collapse_slice_rule),
    "slice of everything, by shape": ("Slice", rules.collapse_slice2_rule),
    "reshape to a known shape": ("Reshape", rules.materialize_reshape_shape_rule),
    "times 1": ("Mul", rules.mul_by_1_rule),
    "plus 0": ("Add", rules.add_0_rule),
    "minus 0": ("Sub", rules.sub_0_rule),
    "divided by 1": ("Div", rules.div_by_1_rule),
    "dropout of nothing": ("Dropout", rules.dropout_zero_rule),
    "dropout outside training": ("Dropout", rules.dropout_inference_rule),
    "min of a min": ("Min", rules.min_min_rule),
    "max of a max": ("Max", rules.max_max_rule),
    "max of a min": ("Max", rules.min_max_rule),
    "min of a max": ("Min", rules.max_min_rule),
    "pads of a convolution in numbers": ("Conv", rules.normalize_pad_format_conv_rule),
    "pad before a convolution": ("Conv", rules.fuse_pad_into_conv_rule),
}


class ByOp:
    """Rules as one, each tried only on nodes of the op its pattern ends in: onnxscript builds a match for every node.

    Any other question is answered by the rule that matched last.
    """

    def __init__(self, allowed: Sequence[str]):
        self._rules: dict[str, list[Any]] = {}
        for op_type, rule in map(SIMPLIFICATIONS.__getitem__, allowed):
            self._rules.setdefault(op_type, []).append(rule)
            self._last = rule

    def __getattr__(self, name: str) -> Any:
        return getattr(self._last, name)

    def try_rewrite(self, model: ir.Model, owner: Any, node: ir.Node, **more: Any) -> Any:
        """What the first rule that matches makes of a node, None where none does."""
        for rule in self._rules.get(node.op_type, ()):
            rewritten = rule.try_rewrite(model, owner, node, **more)
            if rewritten is not None:
                self._last = rule
                return rewritten
        return None


def inline_functions(model: ir.Model) -> None:
    """Put the body of every model-local function where it is called."""
    if model.functions:
        passes.InlinePass()(model)


def fold_constants(model: ir.Model, permits: Callable[[str], bool] = lambda rewrite: True) -> None:
    """Compute what depends on no input, and remove what does nothing. Large weights are never copied.

    permits: asked by name before each kind of rewrite.
    """
    allowed = [name for name in SIMPLIFICATIONS if permits(name)]
    with silence():
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        for _ in range(ROUNDS):
            before, modified = len(model.graph), False
            if permits("constants computed"):
                folded = onnxscript.optimizer.fold_constants_ir(
                    model,
                    onnx_shape_inference=False,
                    input_size_limit=INPUT_LIMIT,
                    output_size_limit=OUTPUT_LIMIT,
                    should_fold=lambda node: _may_compute(node) if permits(f"{node.op_type} of constants") else False,
                )
                modified = folded.modified
            if allowed:
                onnxscript.rewriter.rewrite(model, RewriteRuleSet([ByOp(allowed)]))  # type: ignore[list-item]
            if permits("Identity removed"):
                remove_identities(model.graph)
            passes.RemoveUnusedNodesPass()(model)
            passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
            if not modified and len(model.graph) == before:
                break
        passes.LiftSubgraphInitializersToMainGraphPass()(model)
        _own_weights(model.graph)
        if permits("equal nodes made one"):
            passes.CommonSubexpressionEliminationPass()(model)


def _own_weights(graph: ir.Graph) -> None:
    """A transposed weight is a view that keeps the other in memory, and is copied by all who want it in order."""
    for value in graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.Tensor) and isinstance(tensor.raw, np.ndarray) and not tensor.raw.flags.c_contiguous:
            value.const_value = ir.Tensor(np.asarray(tensor.raw, order="C"), dtype=tensor.dtype, name=value.name)


def remove_identities(graph: ir.Graph) -> None:
    """Read what Identity reads. Bodies of If and Loop must keep theirs, and outputs their names."""
    replacement, returned = Replacement(graph), _returned_by_bodies(graph)

    def used_in_bodies(value: ir.Value) -> bool:
        return value in returned or any(user.graph is not graph for user, _ in value.uses())

    for node in list(graph):
        if node.op_type != "Identity" or node.domain != "":
            continue
        x, y = node.inputs[0], node.outputs[0]
        if x is None or (y.is_graph_output() and not replacement.is_output(y)):
            continue
        if y.is_graph_output():
            producer = x.producer()
            if producer is None or producer.graph is not graph or x.is_graph_output() or used_in_bodies(x):
                continue
            replacement.replace(y, x)
            replacement.detach(node)
            x.name = y.name
        elif not used_in_bodies(y):
            replacement.replace(y, x)
            replacement.detach(node)
    replacement.finish()


def _returned_by_bodies(graph: ir.Graph) -> set[ir.Value]:
    """Outputs of the bodies directly below a graph: what is made outside may be among them."""
    return {
        output
        for node in graph
        for attribute in node.attributes.values()
        if attribute.type == ir.AttributeType.GRAPH
        for output in attribute.as_graph().outputs
    }


def tidy(model: ir.Model) -> None:
    """Nothing unused, topological order, a unique name for every node."""
    with silence():
        passes.RemoveUnusedNodesPass()(model)
        model.functions.clear()
        model.graph.sort()
        for node in model.graph:
            if not node.name:
                node.name = node.outputs[0].name
        passes.NameFixPass()(model)


def _may_compute(node: ir.Node) -> bool | None:
    """Whether a node on constants is computed here.

    By onnx's evaluator, which is trusted with arithmetic and layout only: its LRN and others differ from onnxruntime's,
    which computes what is left when it loads the model. ConstantOfShape is folded where it makes a vector; weights made
    by it (up to 100 MB) stay one node.
    """
    if node.op_type != "ConstantOfShape":
        return None if node.op_type in COMPUTED and node.domain == "" else False
    shape = ints(node.inputs[0])
    return shape is not None and prod(shape) <= INPUT_LIMIT


@contextmanager
def silence() -> Iterator[None]:
    """onnxscript and onnx-ir log every step they skip."""
    before = {name: logging.getLogger(name).level for name in LOGGERS}
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
