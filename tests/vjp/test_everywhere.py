"""Every registered op wherever it may stand, run as users run it: by onnxruntime's default optimisation.

Alone, the op's output is explained and its inputs are attributed to. In the middle it stands between Reshapes,
Transposes and products, which onnxruntime's optimisers move through the forward and the backward pass.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from support import registered_cases, sample

from onnxplain import Explainer
from onnxplain.errors import ConversionChanged, OnnxplainError
from onnxplain.graph.outline import runtime
from onnxplain.vjp import OPS
from onnxplain.vjp.registry import Case

CASES = registered_cases()
IDS = [f"{name}-{i}" for name, i, _ in CASES]
WEIGHTED = ("Conv", "ConvTranspose", "LSTM", "GRU", "RNN", "BatchNormalization")
FACTOR = np.array([1.0625], np.float32)  # exact in float32, and no optimiser drops it
SCALES: dict[str, tuple[int, ...]] = {"factor": (1,), "single": ()}
WRONG_IN_ONNXRUNTIME = ("Normalizer",)  # it loses signs where it works in place


def turned(rank: int) -> list[int]:
    """An exchange of axes that is its own inverse and leaves the batch in front."""
    return [*range(min(rank, 1)), *range(rank - 1, 0, -1)]


class Placed:
    """A model with the node of a case, named "subject"; feeds: its inputs; y: what is explained."""

    def __init__(self, op_type: str, case: Case, middle: bool) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants = [numpy_helper.from_array(FACTOR.reshape(shape), name) for name, shape in SCALES.items()]
        self.feeds: dict[str, np.ndarray] = {}
        inputs, arguments = [], []
        values = sample(case, np.random.default_rng(0), np.float32)
        for name, given in case.inputs.items():
            fixed = not isinstance(given, tuple) or name in case.constant or (op_type in WEIGHTED and inputs)
            if given is None:
                arguments.append("")
            elif fixed:
                self.constants.append(numpy_helper.from_array(values[name], name))
                arguments.append(name)
            else:
                x, argument = self._before(name, values[name]) if middle else (values[name], name)
                self.feeds[name] = x
                open_batch = not inputs and op_type not in ("LSTM", "GRU", "RNN")
                shape = ["N", *x.shape[1:]] if open_batch and x.ndim else list(x.shape)
                inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
                arguments.append(argument)
        outputs = [f"y{i}" for i in range(case.outputs)]
        self.y = outputs[1 if op_type == "LinearClassifier" else 0]  # labels, then scores
        domain = OPS[op_type].domain
        self.nodes.append(
            helper.make_node(op_type, arguments, outputs, name="subject", domain=domain, **case.attributes)
        )
        opsets = [helper.make_opsetid("", case.opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
        graph = helper.make_graph(self.nodes, "g", inputs, [], self.constants)
        self.model = helper.make_model(graph, opset_imports=opsets, ir_version=8 if case.opset < 19 else 10)
        answer = self._answer()
        if middle and answer.dtype == np.float32:
            self._behind(answer.ndim)
            answer = self._answer()
        kind = helper.np_dtype_to_tensor_dtype(answer.dtype)
        self.shape, self.dtype = answer.shape, answer.dtype
        self.model.graph.output.append(helper.make_tensor_value_info(self.y, kind, None))

    def _before(self, name: str, x: np.ndarray) -> tuple[np.ndarray, str]:
        """The input as rows, laid out again, transposed to what the node takes, times a number."""
        cut = np.asarray(x / FACTOR[0])
        if x.ndim < 2:
            self._node("Mul", [name, "factor" if x.ndim else "single"], f"{name}_scaled")
            return cut, f"{name}_scaled"
        perm = turned(x.ndim)
        laid = np.ascontiguousarray(cut.transpose(perm))
        self.constants.append(numpy_helper.from_array(np.array([0, *laid.shape[1:]]), f"{name}_shape"))
        self._node("Reshape", [name, f"{name}_shape"], f"{name}_laid")
        self._node("Transpose", [f"{name}_laid"], f"{name}_turned", perm=perm)
        self._node("Mul", [f"{name}_turned", "factor"], f"{name}_scaled")
        return laid.reshape(len(laid), -1), f"{name}_scaled"

    def _behind(self, rank: int) -> None:
        """A product, the transposition back, one row a sample."""
        first, nodes = self.y, self.model.graph.node
        if rank:
            nodes.append(helper.make_node("Mul", [first, "factor"], ["scaled"]))
            nodes.append(helper.make_node("Transpose", ["scaled"], ["turned"], perm=turned(rank)))
            nodes.append(helper.make_node("Flatten", ["turned"], ["rows"], axis=min(rank, 1)))
            self.y = "rows"

    def _node(self, op_type: str, inputs: list[str], output: str, **attributes) -> None:
        self.nodes.append(helper.make_node(op_type, inputs, [output], **attributes))

    def _answer(self) -> np.ndarray:
        probe = onnx.ModelProto()
        probe.CopyFrom(self.model)
        probe.graph.output.append(helper.make_value_info(self.y, onnx.TypeProto()))
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return session.run(None, self.feeds)[0]


@pytest.mark.parametrize("place", ["alone", "middle"])
@pytest.mark.parametrize(("op_type", "index", "case"), CASES, ids=IDS)
def test_an_op_anywhere_is_explained_alike_by_any_session_or_refused_by_name(op_type, index, case, place, tmp_path):
    try:
        placed = Placed(op_type, case, place == "middle")
    except onnxruntime.capi.onnxruntime_pybind11_state.Fail as error:
        if "not supported" not in str(error):
            raise
        pytest.skip(f"onnxruntime has no kernel for the model itself: {error}")
    path = tmp_path / "m.onnx"
    onnx.save(placed.model, path)
    seed = np.random.default_rng(1).standard_normal(placed.shape)
    seed = np.asarray(seed, np.float64 if placed.dtype == np.float64 else np.float32)
    for method in ("gradient", "lrp"):
        try:
            explainer = Explainer(path, method, explain=placed.y, threads=1)
            users = explainer.run(placed.feeds, seed)
        except OnnxplainError as error:
            assert any(name in str(error) for name in ("subject", placed.y, *placed.feeds)), error
            assert not isinstance(error, ConversionChanged) or op_type in WRONG_IN_ONNXRUNTIME
            continue
        name = next(iter(explainer.compiled.seeds))
        plain = runtime(explainer.compiled.model).run({**placed.feeds, name: seed})
        assert list(users) == list(plain)
        for output, expected in plain.items():
            found = users[output]
            assert found.shape == expected.shape and found.dtype == expected.dtype, (method, output)
            if output.endswith(".relevance"):
                assert found.shape == placed.feeds[output.removesuffix(".relevance")].shape
            # float32, other orders of summation and other kernels: some tens of roundings of 6e-8
            scale = np.abs(expected).max(initial=1e-6, where=np.isfinite(expected))
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * scale, err_msg=f"{method} {output}")
