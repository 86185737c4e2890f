"""Input for verification: what is given is used, what is guessed is likely, and an error says how to give it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxplain.cli import main
from onnxplain.errors import UnsupportedModel, UsageError
from onnxplain.explainer import Explainer
from onnxplain.frontend.load import from_proto
from onnxplain.frontend.normalise import normalise
from onnxplain.frontend.verify import reference
from onnxplain.subject import Subject

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def model(nodes, inputs, **initializers):
    """inputs: name -> (type, shape)."""
    io = [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()]
    constants = [numpy_helper.from_array(np.asarray(a), n) for n, a in initializers.items()]
    made = [helper.make_tensor_value_info("y", FLOAT, None)]
    graph = helper.make_graph(nodes, "g", io, made, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def choosy() -> onnx.ModelProto:
    """The second input is a shape for the first: no random numbers are."""
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["r"]), helper.make_node("Exp", ["r"], ["y"])]
    return model(nodes, {"x": (FLOAT, ["N", 4]), "shape": (INT64, [2])})


def sized() -> onnx.ModelProto:
    """Pictures of 20 x 21 only, and the file does not say so."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Flatten", ["c"], ["f"]),
        helper.make_node("Gemm", ["f", "v"], ["y"]),
    ]
    rng = np.random.default_rng(0)
    w, v = rng.standard_normal((2, 3, 1, 1)), rng.standard_normal((2 * 20 * 21, 5))
    return model(nodes, {"x": (FLOAT, ["N", 3, "H", "W"])}, w=w.astype(np.float32), v=v.astype(np.float32))


SAMPLE = {"x": np.ones((2, 4), np.float32), "shape": np.int64([4, 2])}


def written(proto: onnx.ModelProto, folder) -> str:
    onnx.save(proto, folder / "m.onnx")
    return str(folder / "m.onnx")


def test_a_model_that_random_input_cannot_run_is_verified_on_a_sample(tmp_path):
    with pytest.raises(UnsupportedModel, match=r"--sample FILE .*--shape"):
        normalise(from_proto(choosy()))
    explainer = Explainer(written(choosy(), tmp_path), "gradient", sample=SAMPLE)
    explainer.verify()
    assert explainer.subject.normalised.reference.outputs["y"].shape == (4, 2)


def test_a_model_of_one_size_is_verified_at_a_shape(tmp_path):
    with pytest.raises(UnsupportedModel, match="--shape"):
        normalise(from_proto(sized()))
    subject = Subject.of(written(sized(), tmp_path), shapes={"x": (2, 3, 20, 21)})
    assert subject.normalised.reference.feeds["x"].shape == (2, 3, 20, 21)
    Subject.of(written(sized(), tmp_path), sample=np.zeros((1, 3, 20, 21)))  # float64 becomes what the model takes


@pytest.mark.parametrize(
    ("sample", "says"),
    [
        ({"z": np.zeros(3)}, "no input 'z'; it has 'x', 'shape'"),
        ({"x": np.zeros((2, 5), np.float32)}, r"declared as \['N', 4\]; \[2, 5\] does not fit"),
        ({"shape": np.float32([4, 2])}, "takes int64; the sample has float32"),
    ],
)
def test_a_sample_that_does_not_fit_is_refused(sample, says):
    with pytest.raises(UsageError, match=says):
        normalise(from_proto(choosy()), sample=sample)


def test_what_a_sample_says_of_a_symbol_holds_for_other_inputs():
    nodes = [helper.make_node("Add", ["x", "z"], ["y"])]
    proto = model(nodes, {"x": (FLOAT, ["N", "L"]), "z": (FLOAT, ["N", "L"])})
    feeds = reference(from_proto(proto), sample={"x": np.zeros((3, 7), np.float32)}).feeds
    assert feeds["z"].shape == (3, 7)
    feeds = reference(from_proto(proto), shapes={"z": (5, 6)}).feeds
    assert feeds["x"].shape == feeds["z"].shape == (5, 6)


def test_a_symbol_has_one_length_wherever_it_stands():
    """Also where it is the first axis here and the second there, and in the sums that exporters write."""
    nodes = [helper.make_node("MatMul", ["x", "z"], ["m"]), helper.make_node("MatMul", ["m", "u"], ["y"])]
    inputs = {"x": (FLOAT, ["N", "past + 1"]), "z": (FLOAT, ["past + 1", "N"]), "u": (FLOAT, ["N", "past"])}
    feeds = reference(from_proto(model(nodes, inputs))).feeds
    rows, more = feeds["x"].shape
    assert feeds["z"].shape == (more, rows)


def test_one_row_is_tried_before_every_length_has_been():
    """A batch of 1 written into the graph, and a length that is not the first tried."""
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
    proto = model(nodes, {"x": (FLOAT, ["N", "C", "H", "W"])}, shape=np.int64([1, 48 * 48 * 48]))
    assert reference(from_proto(proto)).feeds["x"].shape == (1, 48, 48, 48)


@pytest.fixture
def onnxplain(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        try:
            main(list(arguments))
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return call


@pytest.mark.parametrize("command", ["run", "compile", "inspect"])
def test_commands_take_a_sample_and_shapes(command, onnxplain, tmp_path):
    method = ["--method", "gradient", "--attribute-to", "x"]
    np.savez(tmp_path / "s.npz", **SAMPLE)
    path = written(choosy(), tmp_path)
    assert onnxplain(command, path, *method)[0] == 3
    code, _, err = onnxplain(command, path, *method, "--sample", "s.npz")
    assert code == 0, err
    path = written(sized(), tmp_path)
    code, _, err = onnxplain(command, path, *method, "--shape", "x=2,3,20,21")
    assert code == 0, err
    np.save(tmp_path / "s.npy", np.zeros((1, 3, 20, 21)))
    code, _, err = onnxplain(command, path, *method, "--sample", "s.npy")
    assert code == 0, err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--shape", "x=2,3,a,21"], "whole numbers"),
        (["--shape", "2,3,20,21"], "whole numbers"),
        (["--shape", "z=2,3"], "no input 'z'"),
        (["--sample", "m.onnx"], "not an npz or npy file"),
        (["--sample", "gone.npz"], "not an npz or npy file"),
    ],
)
def test_a_sample_or_shape_that_cannot_be_read_is_one_line(options, says, onnxplain, tmp_path):
    code, out, err = onnxplain("inspect", written(sized(), tmp_path), *options)
    assert code in (2, 4) and says in err and err.count("\n") == 1 and not out
