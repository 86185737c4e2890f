"""Every file a user may take for a model, and the one line said about it."""

from __future__ import annotations

import hashlib
import os
import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from onnxplain.errors import InputError, OnnxplainError, UnsupportedModel
from onnxplain.frontend.load import from_proto, load
from onnxplain.frontend.verify import reference

TEXT = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 3] x) => (float[N, 3] y) { a = Relu (x)  y = Neg (a) }"""


def good() -> onnx.ModelProto:
    return parser.parse_model(TEXT)


def external(location: str = "weights.bin", offset: int = 0, length: int | None = None) -> onnx.ModelProto:
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3] x) => (float[N, 3] y) { y = Add (x, w) }'
    )
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[3], data_location=TensorProto.EXTERNAL)
    entries = {"location": location, "offset": str(offset), **({"length": str(length)} if length is not None else {})}
    tensor.external_data.extend(onnx.StringStringEntryProto(key=k, value=v) for k, v in entries.items())
    model.graph.initializer.append(tensor)
    return model


def refused(path, kind, *words, code):
    with pytest.raises(OnnxplainError) as caught:
        load(path)
    text = str(caught.value)
    assert type(caught.value) is kind and caught.value.exit_code == code
    assert "\n" not in text and all(word in text for word in words), text


def write(path, model):
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path


def test_a_missing_file_and_a_directory_are_input_errors(tmp_path):
    refused(tmp_path / "none.onnx", InputError, "no such file", code=4)
    refused(tmp_path, InputError, "directory", code=4)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_an_input_error(tmp_path):
    path = write(tmp_path / "m.onnx", good())
    path.chmod(0)
    refused(path, InputError, "cannot be read", code=4)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["empty"]),
        (b"a recipe for onion soup\n" * 300, ["text file"]),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", ["git lfs pull"]),
        (b"PK\x03\x04" + bytes(60), ["zip"]),
        (good().SerializeToString()[:-20], ["not a readable ONNX model"]),
        (bytes(range(256)) * 4, ["not a readable ONNX model"]),
    ],
)
def test_other_files_are_named_for_what_they_are(tmp_path, content, words):
    refused(write(tmp_path / "m.onnx", content), UnsupportedModel, *words, code=3)


def edited(edit) -> onnx.ModelProto:
    model = good()
    edit(model)
    return model


def set_op(op_type="Relu", domain=""):
    def edit(model):
        model.graph.node[0].op_type, model.graph.node[0].domain = op_type, domain

    return edit


def cycle(model):
    del model.graph.node[:]
    model.graph.node.extend(
        [
            helper.make_node("Add", ["x", "c"], ["a"], name="first"),
            helper.make_node("Relu", ["a"], ["b"], name="second"),
            helper.make_node("Neg", ["b"], ["c"], name="third"),
            helper.make_node("Neg", ["c"], ["y"], name="after"),
        ]
    )


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda m: m.graph.ClearField("node"), ["no nodes"]),
        (lambda m: m.graph.ClearField("output"), ["no outputs"]),
        (lambda m: m.ClearField("opset_import"), ["no opset"]),
        (cycle, ["cycle", "first", "second", "third"]),
        (set_op("Rleu"), ["a (Rleu)", "did you mean Relu"]),
        (set_op("Gelu"), ["Gelu", "opset 20"]),
        (set_op("Thing", "org.acme"), ["a (Thing)", "org.acme"]),
        (set_op("Conv", "com.microsoft.nchwc"), ["optimised it for one machine"]),
        (lambda m: setattr(m.opset_import[0], "version", 27), ["opset 27", "26"]),
        (lambda m: setattr(m.opset_import[0], "domain", "ai.onnx.ml"), ["no opset for the domain"]),
        (lambda m: m.graph.node[1].output.__setitem__(0, "a"), ["'a' is used twice"]),
        (lambda m: m.graph.node[1].input.__setitem__(0, "q"), ["'q'", "nothing makes"]),
        (lambda m: setattr(m.graph.output[0], "name", "q"), ["'q'", "no node"]),
    ],
)
def test_graphs_that_are_not_well_formed_are_refused_with_the_node(tmp_path, edit, words):
    refused(write(tmp_path / "m.onnx", edited(edit)), UnsupportedModel, *words, code=3)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (external("missing.bin"), ["'w'", "missing.bin", "not beside"]),
        (external("../weights.bin"), ["'w'", "outside"]),
        (external("/etc/hostname"), ["'w'", "outside"]),
        (external("link.bin"), ["'w'", "outside"]),
        (external("weights.bin", offset=8), ["12 bytes", "offset 8"]),
        (external("weights.bin", length=4), ["12 bytes", "length 4"]),
    ],
)
def test_external_weights_must_lie_beside_the_model_and_be_complete(tmp_path, model, words):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights.bin").write_bytes(np.ones(3, np.float32).tobytes())
    (tmp_path / "weights.bin").write_bytes(np.ones(3, np.float32).tobytes())
    (folder / "link.bin").symlink_to(tmp_path / "weights.bin")
    refused(write(folder / "m.onnx", model), UnsupportedModel, *words, code=3)


def test_external_weights_stay_on_disk_until_read(tmp_path):
    (tmp_path / "weights.bin").write_bytes(np.float32([1, 2, 3]).tobytes())
    source = load(write(tmp_path / "m.onnx", external()))
    tensor = source.model.graph.initializers["w"].const_value
    assert type(tensor).__name__ == "ExternalTensor"
    assert tensor.numpy().tolist() == [1, 2, 3]


def test_the_fingerprint_is_that_of_the_file(tmp_path):
    path = write(tmp_path / "m.onnx", good())
    assert load(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_weights_among_the_inputs_are_detached_and_remembered():
    model = good()
    model.graph.node[0].CopyFrom(helper.make_node("Add", ["x", "w"], ["a"]))
    model.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "w"))
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [3]))
    source = from_proto(model)
    assert source.weight_inputs == ("w",)
    assert [value.name for value in source.model.graph.inputs] == ["x"]


def test_a_newer_ir_version_is_lowered_where_the_opset_allows():
    model = good()
    model.ir_version = 14
    source = from_proto(model)
    assert source.model.ir_version == 13 and not source.faithful


def test_nodes_out_of_order_are_sorted():
    model = good()
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    assert [node.op_type for node in from_proto(model).model.graph] == ["Relu", "Neg"]


def test_com_microsoft_is_let_through():
    assert from_proto(edited(set_op("Gelu", "com.microsoft"))).model is not None


def test_a_model_that_never_runs_is_refused_before_its_feeds_fill_the_memory():
    """Five open axes: lengths are tried in turn, and 512 of each would be 37 terabytes."""
    axes = [None] * 5
    node = helper.make_node("Reshape", ["x", "shape"], ["y"])
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [7, 11])  # never as many elements as x has
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, axes)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [7, 11])],
        [shape],
    )
    source = from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8))
    begun = time.monotonic()
    with pytest.raises(UnsupportedModel, match="does not run on random input"):
        reference(source)
    assert time.monotonic() - begun < 30  # seconds; it takes 3 on an idle machine


def test_a_scalar_among_the_inputs_is_fed():
    node = helper.make_node("Mul", ["x", "scale"], ["y"])
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", ["N", 3]), ("scale", []))]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])
    graph = helper.make_graph([node], "g", ports, [output])
    source = from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8))
    assert reference(source).feeds["scale"].shape == ()
