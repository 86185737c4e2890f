"""Whatever order a formula is written in, it is recognised; what only looks like it, is not."""

from __future__ import annotations

from math import pi, sqrt
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnxplain.frontend.load import from_proto, load
from onnxplain.frontend.normalise import normalise
from onnxplain.graph.node import Node
from onnxplain.graph.patterns import recognise

MODELS = Path(__file__).parents[2] / "models"
CONSTANTS = {
    "half": 0.5,
    "one": 1.0,
    "two": 2.0,
    "three": 3.0,
    "zero": 0.0,
    "six": 6.0,
    "sixth": 1 / 6,
    "root2": sqrt(2),
    "over2": 1 / sqrt(2),
    "k": sqrt(2 / pi),
    "cubic": 0.044715,
    "kc": 0.044715 * sqrt(2 / pi),
    "alpha": 1.702,
    "eps": 1e-5,
    "minus_half": -0.5,
}
VECTORS = {"scale": (8,), "bias": (8,), "w": (8, 6), "b": (6,), "other": (8,)}


def nodes(body: str, outputs: str = "float[N, 5, 8] y") -> list[Node]:
    rng = np.random.default_rng(0)
    proto = parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 18]> g (float[N, 5, 8] x, float[N, 5, 8] z) => ({outputs}) {{ {body} }}'
    )
    used = {name for node in proto.graph.node for name in node.input}
    known = {name: np.float32(value) for name, value in CONSTANTS.items()}
    known |= {name: rng.standard_normal(shape).astype(np.float32) for name, shape in VECTORS.items()}
    known |= {"last": np.int64([-1]), "mid": np.int64([1])}
    for name in sorted(used & known.keys()):
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(known[name]), name))
    proto = onnx.shape_inference.infer_shapes(proto)
    return [Node.of(node) for node in from_proto(proto).model.graph]


def found(body: str, protected=(), **how) -> list[Node]:
    these = nodes(body, **how)
    values = {value for node in these for value in node.outputs if value.name in protected}
    return recognise(these, values)


GELU = [
    "a = Div (x, root2) e = Erf (a) p = Add (e, one) m = Mul (x, p) y = Mul (m, half)",
    "h = Mul (x, half) a = Mul (x, over2) e = Erf (a) p = Add (one, e) y = Mul (h, p)",
    "a = Mul (over2, x) e = Erf (a) p = Add (e, one) h = Mul (half, p) y = Mul (h, x)",
    "a = Div (x, root2) e = Erf (a) p = Add (e, one) m = Mul (p, x) y = Div (m, two)",
    "a = Mul (x, over2) e = Erf (a) h = Mul (e, half) p = Add (h, half) y = Mul (x, p)",
]
TANH = [
    "c = Pow (x, three) d = Mul (cubic, c) s = Add (x, d) u = Mul (k, s) t = Tanh (u) p = Add (one, t) "
    "h = Mul (half, x) y = Mul (h, p)",
    "q = Mul (x, x) d = Mul (q, cubic) o = Add (d, one) kx = Mul (x, k) u = Mul (kx, o) t = Tanh (u) p = Add (t, one) "
    "m = Mul (x, p) y = Mul (m, half)",
    "c = Pow (x, three) d = Mul (c, kc) e = Mul (x, k) u = Add (d, e) t = Tanh (u) p = Add (t, one) m = Mul (p, half) "
    "y = Mul (m, x)",
]
HARD_SWISH = [
    "a = Add (x, three) c = Clip (a, zero, six) m = Mul (x, c) y = Div (m, six)",
    "a = Add (three, x) c = Clip (a, zero, six) d = Div (c, six) y = Mul (d, x)",
    "h = HardSigmoid <alpha = 0.16666667, beta = 0.5> (x) y = Mul (x, h)",
    "d = Mul (x, sixth) a = Add (d, half) c = Clip (a, zero, one) y = Mul (x, c)",
]
CENTRED = "m = ReduceMean (x, last) d = Sub (x, m) q = Pow (d, two) v = ReduceMean (q, last) e = Add (v, eps)"
LAYER_NORM = [
    f"{CENTRED} s = Sqrt (e) n = Div (d, s) g = Mul (n, scale) y = Add (g, bias)",
    f"{CENTRED} s = Sqrt (e) r = Reciprocal (s) n = Mul (d, r) g = Mul (scale, n) y = Add (bias, g)",
    f"{CENTRED} r = Pow (e, minus_half) n = Mul (r, d) g = Mul (n, scale) y = Add (g, bias)",
    f"{CENTRED.replace('Pow (d, two)', 'Mul (d, d)')} s = Pow (e, half) n = Div (d, s) g = Mul (n, scale) "
    "y = Add (g, bias)",
]
RMS_NORM = "q = Pow (x, two) v = ReduceMean (q, last) e = Add (v, eps) s = Sqrt (e) n = Div (x, s) y = Mul (n, scale)"
UNIT = [
    "n = ReduceL2 (x, last) c = Clip (n, eps) y = Div (x, c)",
    "n = ReduceL2 (x, last) c = Max (n, eps) s = Shape (x) wide = Expand (c, s) y = Div (x, wide)",
    "q = Mul (x, x) t = ReduceSum (q, last) n = Sqrt (t) y = Div (x, n)",
]
CASES = [
    *((body, "Gelu", {"approximate": "none"}) for body in GELU),
    *((body, "Gelu", {"approximate": "tanh"}) for body in TANH),
    *((body, "HardSwish", {}) for body in HARD_SWISH),
    *((body, "LpNormalization", {"axis": -1, "p": 2}) for body in UNIT),
    ("s = Sigmoid (x) y = Mul (s, x)", "Swish", {"alpha": 1.0}),
    ("a = Mul (x, alpha) s = Sigmoid (a) y = Mul (x, s)", "Swish", {"alpha": 1.702}),
    ("a = Add (x, three) c = Clip (a, zero, six) y = Div (c, six)", "HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}),
    ("s = Softplus (x) t = Tanh (s) y = Mul (t, x)", "Mish", {}),
    *((body, "LayerNormalization", {"axis": 2, "epsilon": 1e-5}) for body in LAYER_NORM),
    (RMS_NORM, "RMSNormalization", {"axis": 2, "epsilon": 1e-5}),
]


@pytest.mark.parametrize(("body", "op_type", "attributes"), CASES)
def test_a_formula_is_one_step_in_every_order(body, op_type, attributes):
    steps = [step for step in found(body) if step.op_type != "Shape"]
    (step,) = steps
    assert step.op_type == op_type and step.x.name == "x" and step.y.name == "y"
    assert step.attributes.keys() == attributes.keys()
    for name, value in attributes.items():
        assert step.attributes[name] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-5))


@pytest.mark.parametrize("body", LAYER_NORM)
def test_layer_normalisation_knows_its_scale_and_bias(body):
    (step,) = found(body)
    assert [value.name for value in step.inputs] == ["x", "scale", "bias"]


def test_layer_normalisation_without_scale_and_bias():
    (step,) = found(f"{CENTRED} s = Sqrt (e) y = Div (d, s)")
    assert step.op_type == "LayerNormalization" and step.inputs[1:] == (None, None)


def test_a_matmul_takes_its_constant_bias():
    (step,) = found("m = MatMul (x, w) y = Add (b, m)", outputs="float[N, 5, 6] y")
    assert step.op_type == "MatMul" and [value.name for value in step.inputs] == ["x", "w", "b"]


@pytest.mark.parametrize(
    "body",
    [
        "a = Div (x, two) e = Erf (a) p = Add (e, one) m = Mul (x, p) y = Mul (m, half)",  # not the root of 2
        "a = Div (z, root2) e = Erf (a) p = Add (e, one) m = Mul (x, p) y = Mul (m, half)",  # of another tensor
        "a = Div (x, root2) e = Erf (a) p = Add (e, two) m = Mul (x, p) y = Mul (m, half)",
        "s = Sigmoid (z) y = Mul (s, x)",  # a gate, not a SiLU
        "a = Add (x, three) c = Clip (a, zero, six) y = Mul (x, c)",  # six times too large
        "m = ReduceMean (x, last) d = Sub (z, m) q = Mul (d, d) v = ReduceMean (q, last) e = Add (v, eps) "
        "s = Sqrt (e) y = Div (d, s)",
        "n = ReduceL2 (z, last) c = Clip (n, eps) y = Div (x, c)",
    ],
)
def test_what_only_looks_alike_is_left(body):
    assert not {step.op_type for step in found(body)} & {
        "Gelu",
        "Swish",
        "HardSwish",
        "LayerNormalization",
        "LpNormalization",
    }


def test_a_mean_over_middle_axes_is_no_layer_normalisation():
    body = f"{CENTRED} s = Sqrt (e) y = Div (d, s)".replace("last", "mid")
    assert not any(step.op_type == "LayerNormalization" for step in found(body))


@pytest.mark.parametrize("inside", ["a", "e", "p", "m"])
def test_a_protected_tensor_keeps_a_group_apart(inside):
    steps = found(GELU[0], protected=[inside])
    assert not any(step.op_type == "Gelu" for step in steps)
    assert any(value.name == inside for step in steps for value in step.outputs)


def test_a_tensor_that_is_an_output_or_read_outside_keeps_a_group_apart():
    assert len(found(GELU[0], outputs="float[N, 5, 8] y, float[N, 5, 8] p")) == 5
    assert not any(
        step.op_type == "Gelu" for step in found(f"{GELU[0]} o = Neg (e)", outputs="float[N, 5, 8] y, float[N, 5, 8] o")
    )


def test_groups_stand_in_order_and_lose_no_node():
    body = (
        "s = Sigmoid (x) a = Mul (s, x) r = Relu (a) d = Div (r, root2) e = Erf (d) p = Add (e, one) "
        "m = Mul (r, p) y = Mul (m, half)"
    )
    steps = found(body)
    assert [step.op_type for step in steps] == ["Swish", "Relu", "Gelu"]
    assert sum(len(step.members) or 1 for step in steps) == 8
    seen = {"x", "z"}
    for step in steps:
        assert {value.name for value in step.inputs if value is not None and value.const_value is None} <= seen
        seen |= {value.name for value in step.outputs}


def model_steps(name: str) -> list[Node]:
    path = MODELS / name / "1" / "model.onnx"
    if not path.exists():
        pytest.skip(f"no {name} in the repository")
    return recognise([Node.of(node) for node in normalise(load(path)).model.graph], set())


def test_a_vision_transformer_is_read_as_written():
    steps = [step.op_type for step in model_steps("digits_vit") if step.members]
    assert steps.count("Gelu") == 3 and steps.count("MatMul") == 12


def test_local_response_normalisation_of_torch_is_one_step():
    (step,) = [step for step in model_steps("digits_cnn") if step.op_type == "LRN"]
    assert step.attributes == pytest.approx({"size": 5, "alpha": 1e-4, "beta": 0.75, "bias": 2.0})
