"""Hostile and broken model files, and a judge that loads them as the service does.

`python tests/hostile.py ROOT SECONDS NAME…` writes the cases into the repository ROOT, loads each and prints a line of
JSON about what happened. Every case is deterministic; a maker gets the version folder and returns a proto or bytes.
"""

from __future__ import annotations

import ctypes
import gzip
import json
import os
import pickle
import resource
import struct
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Maker = Callable[[Path], "onnx.ModelProto | bytes | None"]
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
ADDRESS_SPACE = 8 << 30  # bytes; what no check foresees ends here, and not in the machine's memory


@dataclass(frozen=True)
class Case:
    """says: words of the refusal; "" for what may load as well, being odd but harmless."""

    make: Maker
    says: str


CASES: dict[str, Case] = {}


def case(says: str, *arguments: object, name: str = "") -> Callable[[Callable[..., object]], Callable[..., object]]:
    """Register a maker, once for each line above it. arguments: what it takes after the folder."""

    def register(make: Callable[..., object]) -> Callable[..., object]:
        key = name or make.__name__
        assert key not in CASES, key
        CASES[key] = Case(lambda folder: make(folder, *arguments), says)  # type: ignore[arg-type,return-value]
        return make

    return register


def value(name: str, shape: tuple[int | str, ...] = (2, 3), kind: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, list(shape))


def node(op: str, inputs: str | list[str], outputs: str | list[str], **attributes: object) -> onnx.NodeProto:
    split = lambda names: names.split() if isinstance(names, str) else names  # noqa: E731
    return helper.make_node(op, split(inputs), split(outputs), **attributes)


def model(nodes: list[onnx.NodeProto], *weights: TensorProto, opset: int = 17, **more: object) -> onnx.ModelProto:
    """x (2, 3) -> y through the nodes."""
    inputs, outputs = more.pop("inputs", [value("x")]), more.pop("outputs", [onnx.ValueInfoProto(name="y")])
    for output in outputs:
        if not output.HasField("type"):
            output.type.tensor_type.elem_type = FLOAT
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(weights))
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("here", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8, **more)


def ints(name: str, *numbers: int) -> TensorProto:
    return numpy_helper.from_array(np.array(numbers, np.int64), name)


def good() -> onnx.ModelProto:
    return model([node("Relu", "x", "a"), node("Neg", "a", "y")])


# Weights in other files


def external(location: str, dims: tuple[int, ...] = (3,), **entries: object) -> onnx.ModelProto:
    tensor = TensorProto(name="w", data_type=FLOAT, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, entry in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(entry))
    return model([node("Add", "x w", "y")], tensor)


def outside(folder: Path) -> Path:
    """A file that nobody may open; 12 bytes, as many as the weights need."""
    path = folder.parents[2] / "outside" / "secret.bin"
    path.parent.mkdir(exist_ok=True)
    if not path.exists():
        path.write_bytes(b"secret secret")
    return path


@case("outside", "../../../outside/secret.bin", name="external_above")
@case("outside", "sub/../../../../outside/secret.bin", name="external_above_through_a_folder")
@case("outside", "..\\..\\..\\outside\\secret.bin", name="external_backslashes")
@case("outside", "ABSOLUTE", name="external_absolute")
@case("outside", "/proc/self/environ", name="external_environ")
@case("outside", "/proc/self/mem", name="external_memory")
@case("no external file", "", name="external_nowhere")
@case("not beside", ".", name="external_is_the_folder")
@case("no external file", "w\0.bin", name="external_nul")
@case("cannot be followed", "w" * 5000, name="external_name_too_long")
def external_at(folder, location):
    secret = outside(folder)
    (folder / "sub").mkdir()
    return external(location.replace("ABSOLUTE", str(secret)))


@case("outside")
def external_link(folder):
    (folder / "w.bin").symlink_to(outside(folder))
    return external("w.bin")


@case("outside")
def external_linked_folder(folder):
    (folder / "sub").symlink_to(outside(folder).parent)
    return external("sub/secret.bin")


@case("outside", name="external_link_to_proc")
def external_link_to_proc(folder):
    (folder / "w.bin").symlink_to("/proc/self/environ")
    return external("w.bin")


@case("hard links")
def external_hard_link(folder):
    (folder / "w.bin").hardlink_to(outside(folder))
    return external("w.bin")


@case("not beside")
def external_pipe(folder):
    os.mkfifo(folder / "w.bin")
    return external("w.bin")


@case("outside")
def external_device(folder):
    (folder / "w.bin").symlink_to("/dev/zero")
    return external("w.bin")


@case("cannot be followed")
def external_link_to_itself(folder):
    (folder / "w.bin").symlink_to("w.bin")
    return external("w.bin")


@case("has 12 bytes", {"offset": 8}, name="external_offset_beyond")
@case("has 12 bytes", {"offset": -8}, name="external_offset_negative")
@case("has 12 bytes", {"offset": 2**64}, name="external_offset_overflowing")
@case("has 12 bytes", {"offset": 2**63 - 4, "length": 12}, name="external_end_overflowing")
@case("has 12 bytes", {"length": -1}, name="external_length_negative")
@case("has 12 bytes", {"length": 10**30}, name="external_length_overflowing")
@case("cannot be read", {"offset": "9" * 10_000}, name="external_offset_of_10_000_digits")
@case("cannot be read", {"offset": "__import__('os')"}, name="external_offset_is_code")
@case("unknown", {"__class__": "x", "basepath": "/etc"}, name="external_unknown_keys")  # CVE-2026-34445
@case("unknown", {"checksum": "0", "__dict__": "{}"}, name="external_attributes")
def external_entries(folder, entries):
    (folder / "w.bin").write_bytes(bytes(12))
    return external("w.bin", **entries)


@case("twice")
def external_location_twice(folder):
    (folder / "w.bin").write_bytes(bytes(12))
    found = external("w.bin")
    found.graph.initializer[0].external_data.add(key="location", value=str(outside(folder)))
    return found


@case("several times")
def external_one_file_a_thousand_times(folder):
    with (folder / "w.bin").open("wb") as file:
        file.truncate(1 << 30)
    found = external("w.bin", (1 << 28,))
    for i in range(1000):
        found.graph.initializer.add().CopyFrom(found.graph.initializer[0])
        found.graph.initializer[-1].name = f"w{i}"
    return found


@case("outside")
def external_in_an_attribute(folder):
    tensor = external("../../../outside/secret.bin").graph.initializer[0]
    outside(folder)
    return model([node("Constant", "", "w", value=tensor), node("Add", "x w", "y")])


@case("outside")
def external_in_a_function(folder):
    outside(folder)
    tensor = external("../../../outside/secret.bin").graph.initializer[0]
    body = [node("Constant", "", "w", value=tensor), node("Add", "x w", "y")]
    return functions({"f": body})


# Graphs that are none


@case("cycle")
def cycle(folder):
    return model([node("Add", "x b", "a"), node("Neg", "a", "b"), node("Neg", "b", "y")])


@case("cycle")
def cycle_of_one(folder):
    return model([node("Add", "x y", "y")])


@case("used twice")
def duplicate_names(folder):
    return model([node("Relu", "x", "y"), node("Neg", "x", "y")])


@case("two inputs")
def duplicate_inputs(folder):
    return model([node("Relu", "x", "y")], inputs=[value("x"), value("x")])


@case("two weights")
def duplicate_weights(folder):
    return model([node("Add", "x w", "y")], ints("w", 1), ints("w", 2))


@case("nothing makes")
def dangling_input(folder):
    return model([node("Add", "x nowhere", "y")])


@case("made by no node")
def dangling_output(folder):
    return model([node("Relu", "x", "a")])


@case("nothing makes")
def dangling_in_a_body(folder):
    body = helper.make_graph([node("Neg", "ghost", "z")], "b", [], [value("z")])
    return model(
        [node("If", "c", "y", then_branch=body, else_branch=body)], helper.make_tensor("c", TensorProto.BOOL, [], [1])
    )


@case("nothing makes")
def dangling_in_a_function(folder):
    return functions({"f": [node("Add", "x ghost", "y")]})


@case("no nodes")
def no_graph(folder):
    return model([])


# Weights that are not what they say


@case("dims", (3,), b"1234", name="weights_missing_bytes")
@case("dims", (3,), b"", name="weights_no_bytes")
@case("dims", (1,), bytes(100), name="weights_too_many_bytes")
@case("dims", (-3,), bytes(12), name="weights_negative_dims")
@case("dims", (-1, -3), bytes(12), name="weights_two_negative_dims")
@case("dims", (2**62, 4), b"", name="weights_overflowing_dims")
@case("dims", (2**32, 2**32), b"", name="weights_dims_that_wrap_to_zero")
@case("dims", (2**63 - 1,), bytes(12), name="weights_huge_dims")
@case("dims", (1,) * 1000, bytes(4), name="weights_of_rank_1000")
def weights(folder, dims, raw):
    return model([node("Add", "x w", "y")], TensorProto(name="w", data_type=FLOAT, dims=dims, raw_data=raw))


@case("type")
def weights_of_no_type(folder):
    return model([node("Add", "x w", "y")], TensorProto(name="w", data_type=9999, dims=[1], raw_data=bytes(4)))


@case("")
def weights_of_text(folder):
    weight = TensorProto(name="w", data_type=TensorProto.STRING, dims=[1], string_data=[b"\xff\0"])
    return model([node("Add", "x w", "y")], weight)


@case("dims")
def weights_in_an_attribute(folder):
    tensor = TensorProto(name="w", data_type=FLOAT, dims=[5], raw_data=bytes(4))
    return model([node("Constant", "", "w", value=tensor), node("Add", "x w", "y")])


@case("sparse")
def sparse_indices_outside(folder):
    sparse = onnx.SparseTensorProto(dims=[3])
    sparse.values.CopyFrom(helper.make_tensor("w", FLOAT, [1], [1.0]))
    sparse.indices.CopyFrom(ints("i", 10**12))
    found = model([node("Add", "x w", "y")])
    found.graph.sparse_initializer.append(sparse)
    return found


@case("sparse")
def sparse_bomb(folder):
    found = sparse_indices_outside(folder)
    found.graph.sparse_initializer[0].dims[:] = [10**6, 10**6]
    found.graph.sparse_initializer[0].indices.CopyFrom(ints("i", 0))
    return found


@case("onnxruntime")
def quantised_garbage(folder):
    w = TensorProto(name="w", data_type=TensorProto.INT8, dims=[3], raw_data=b"\x80\x7f\xff")
    scale = helper.make_tensor("s", FLOAT, [7], [float("nan")] * 7)
    return model([node("DequantizeLinear", "w s", "d", axis=9), node("Add", "x d", "y")], w, scale)


# Sizes that come out of nothing


def sized(*before: onnx.NodeProto, weights: tuple[TensorProto, ...]) -> onnx.ModelProto:
    """The nodes make b; what it holds is summed up, so that the output is small."""
    return model([*before, node("ReduceSum", "b", "s", keepdims=0), node("Add", "x s", "y")], *weights)


one = helper.make_tensor("v", FLOAT, [1], [1.0])


@case("elements", 16 * 2**30, name="bomb_constant_of_64_gb")
@case("elements", 2**62, name="bomb_constant_overflowing")
def bomb_constant(folder, *dims):
    return sized(node("ConstantOfShape", "n", "b", value=one), weights=(ints("n", *dims),))


@case("elements")
def bomb_constant_dims_overflow(folder):
    return sized(node("ConstantOfShape", "n", "b", value=one), weights=(ints("n", 2**32, 2**32),))


@case("elements")
def bomb_computed(folder):
    """The size is 100 000 * 100 000, computed by ops that shape inference does not follow."""
    return sized(
        node("Pow", "n two", "m"),
        node("Mod", "m n3", "r"),
        node("Abs", "r", "k"),
        node("ConstantOfShape", "k", "b", value=one),
        weights=(ints("n", 100_000), ints("two", 2), ints("n3", 10**12)),
    )


@case("elements")
def bomb_expand(folder):
    return sized(node("Expand", "v n", "b"), weights=(one, ints("n", 10**5, 10**6)))


@case("elements")
def bomb_tile(folder):
    return sized(node("Tile", "x n", "b"), weights=(ints("n", 10**5, 10**5),))


@case("elements")
def bomb_range(folder):
    scalars = [numpy_helper.from_array(np.array(k, np.int64), n) for k, n in ((0, "a"), (10**11, "e"), (1, "d"))]
    return sized(node("Range", "a e d", "r"), node("Cast", "r", "b", to=FLOAT), weights=tuple(scalars))


@case("elements", "RandomNormal", name="bomb_random_normal")
@case("elements", "RandomUniform", name="bomb_random_uniform")
def bomb_random(folder, op):
    return sized(node(op, "", "b", shape=[10**5, 10**6]), weights=())


@case("elements")
def bomb_pad(folder):
    return sized(node("Pad", "x n", "b"), weights=(ints("n", 10**6, 0, 10**6, 10**5),))


@case("elements")
def bomb_resize(folder):
    scales = helper.make_tensor("n", FLOAT, [2], [1e5, 1e5])
    return sized(node("Resize", ["x", "", "n"], "b"), weights=(scales,))


@case("elements")
def bomb_one_hot(folder):
    weights = (ints("i", *range(1000)), ints("n", 10**9), helper.make_tensor("v", FLOAT, [2], [0.0, 1.0]))
    return sized(node("OneHot", "i n v", "b"), weights=weights)


@case("elements")
def bomb_window(folder):
    n = numpy_helper.from_array(np.array(10**11, np.int64), "n")
    return sized(node("HannWindow", "n", "b"), weights=(n,))


@case("elements", {"output_padding": [10**5, 10**6], "strides": [10**6, 10**7]}, name="bomb_conv_transpose")
@case("elements", {"strides": [10**6, 10**7]}, name="bomb_conv_transpose_strides")
@case("elements", {"pads": [10**6] * 4}, "Conv", name="bomb_conv_pads")
@case("elements", {"pads": [10**6] * 4, "kernel_shape": [1, 1]}, "MaxPool", name="bomb_pool_pads")
def bomb_conv(folder, attributes, op="ConvTranspose"):
    w = helper.make_tensor("w", FLOAT, [1, 1, 1, 1], [1.0])
    shape = ints("n", 1, 1, 2, 3)
    inputs = "q w" if op != "MaxPool" else "q"
    return sized(node("Reshape", "x n", "q"), node(op, inputs, "b", **attributes), weights=(w, shape))


@case("elements")
def bomb_doubling(folder):
    names = ["x", *(f"b{i}" for i in range(39)), "b"]
    return sized(*(node("Concat", [a, a], [b], axis=0) for a, b in pairwise(names)), weights=())


@case("elements")
def bomb_outer_product(folder):
    """A million numbers times themselves."""
    v = numpy_helper.from_array(np.ones(10**6, np.float32), "v")
    nodes = [node("Reshape", "v col", "c"), node("Reshape", "v row", "r"), node("MatMul", "c r", "b")]
    return sized(*nodes, weights=(v, ints("col", -1, 1), ints("row", 1, -1)))


@case("onnxruntime cannot run")
def bomb_of_the_input(folder):
    """The size comes from the numbers in x, which nobody knows before: only a limit on memory stops it."""
    nodes = [
        node("Mul", "x zero", "o"),
        node("ReduceSum", "o", "p", keepdims=0),
        node("Cast", "p", "q", to=INT64),
        node("Add", "q n", "k"),
        node("Expand", "v k", "b"),
    ]
    zero = helper.make_tensor("zero", FLOAT, [1], [0.0])
    return sized(*nodes, weights=(one, zero, ints("n", 10**5, 10**6)))


@case("characters")
def bomb_of_text(folder):
    """Four letters, doubled forty times."""
    text = TensorProto(name="t0", data_type=TensorProto.STRING, dims=[1], string_data=[b"text"])
    nodes = [node("StringConcat", [f"t{i}"] * 2, [f"t{i + 1}"]) for i in range(40)]
    ends = [node("Shape", "t40", "n"), node("Cast", "n", "s", to=FLOAT), node("Add", "x s", "y")]
    return model([*nodes, *ends], text, opset=20)


@case("elements")
def bomb_out_of_order(folder):
    """The file lists readers before makers."""
    found = bomb_computed(folder)
    nodes = list(found.graph.node)[::-1]
    del found.graph.node[:]
    found.graph.node.extend(nodes)
    return found


@case("elements")
def bomb_by_an_attribute_of_a_call(folder):
    body = [node("RandomNormal", "", "e"), node("ReduceSum", "e", "s", keepdims=0), node("Add", "x s", "y")]
    body[0].attribute.add(name="shape", ref_attr_name="size", type=onnx.AttributeProto.INTS)
    found = functions({"f": body})
    found.functions[0].attribute.append("size")
    found.graph.node[0].attribute.append(helper.make_attribute("size", [10**5, 10**6]))
    return found


@case("elements")
def bomb_in_a_branch(folder):
    """The branch is never taken, but constants in it would be folded."""
    bomb = helper.make_graph(
        [node("Expand", "v n", "e"), node("ReduceSum", "e", "z", keepdims=0)], "b", [], [value("z", ())]
    )
    calm = helper.make_graph([node("ReduceSum", "v", "z", keepdims=0)], "b", [], [value("z", ())])
    condition = numpy_helper.from_array(np.array(False), "c")
    nodes = [node("If", "c", "s", then_branch=bomb, else_branch=calm), node("Add", "x s", "y")]
    return model(nodes, one, ints("n", 10**5, 10**6), condition)


@case("elements")
def bomb_in_a_function(folder):
    body = [
        node("Constant", "", "n", value_ints=[10**5, 10**6]),
        node("Constant", "", "v", value_float=1.0),
        node("Expand", "v n", "e"),
        node("ReduceSum", "e", "s", keepdims=0),
        node("Add", "x s", "y"),
    ]
    return functions({"f": body})


@case("live at once")
def bomb_of_many(folder):
    """Each tensor has half a gigabyte, and all are needed at the end."""
    names = [f"b{i}" for i in range(200)]
    make = [node("ConstantOfShape", "n", name, value=one) for name in names]
    return sized(*make, node("Sum", names, "b"), weights=(ints("n", 2**27),))


@case("multiplications")
def slow_product(folder):
    nodes = [
        node("Expand", "v n", "m"),
        *(node("MatMul", [a, a], [b]) for a, b in (("m", "k"), ("k", "b"))),
    ]
    return sized(*nodes, weights=(one, ints("n", 15_000, 15_000)))


@case("elements", (10**6, 10**6), name="input_of_a_terabyte")
@case("dims", tuple("abcdefghijklmnopqrstuvwxyz"), name="input_of_rank_26")
@case("elements", tuple("abcdefgh"), name="input_of_rank_8_without_numbers")
@case("elements", (2**62, 2**62), name="input_overflowing")
def huge_input(folder, shape):
    return model([node("Relu", "x", "y")], inputs=[value("x", shape)])


# Control flow and functions


@case("nested", 20, name="nested_20")
@case("not a readable", 60, name="nested_60")
def nested_ifs(folder, depth):
    """One branch is deep, the other flat, or the file would have 2**depth bodies."""
    flat = helper.make_graph([node("Identity", "x", "y")], "g", [], [value("y")]).SerializeToString()
    graph = flat
    for _ in range(depth):
        graph = field(1, conditional(graph, flat)) + field(2, b"g") + field(12, value("y").SerializeToString())
    rest = onnx.GraphProto(input=[value("x")], initializer=[numpy_helper.from_array(np.array(True), "c")])
    imports = helper.make_opsetid("", 17).SerializeToString()
    return b"\x08\x08" + field(7, graph + rest.SerializeToString()) + field(8, imports)


def conditional(then: bytes, otherwise: bytes) -> bytes:
    """An If node as bytes; protobuf's own writer stops at a depth of 100."""
    head = onnx.NodeProto(op_type="If", input=["c"], output=["y"]).SerializeToString()
    branches = (("then_branch", then), ("else_branch", otherwise))
    return head + b"".join(field(5, field(1, n.encode()) + field(6, g) + b"\xa0\x01\x05") for n, g in branches)


def field(number: int, content: bytes) -> bytes:
    """A length-delimited protobuf field."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def loop(trips: list[TensorProto], count: str, body_nodes: list[onnx.NodeProto], *scan: str) -> onnx.ModelProto:
    body = helper.make_graph(
        [node("Identity", "go", "again"), *body_nodes],
        "body",
        [value("i", (), INT64), value("go", (), TensorProto.BOOL), value("a")],
        [value("again", (), TensorProto.BOOL), value("z"), *(onnx.ValueInfoProto(name=name) for name in scan)],
    )
    for output in body.output[2:]:
        output.type.tensor_type.elem_type = FLOAT
    truth = numpy_helper.from_array(np.array(True), "true")
    outputs = ["w", *(f"scan_{name}" for name in scan)]
    nodes = [node("Loop", [count, "true", "x"], outputs, body=body), node("Neg", "w", "y")]
    return model(nodes, truth, *trips)


@case("took longer")
def loop_for_ever(folder):
    return loop([], "", [node("Neg", "a", "z")])


@case("took longer")
def loop_many_times(folder):
    return loop([numpy_helper.from_array(np.array(2**62), "n")], "n", [node("Neg", "a", "z")])


@case("elements")
def loop_that_collects(folder):
    fill = [node("Neg", "a", "z"), node("ConstantOfShape", "k", "big", value=one)]
    return loop([numpy_helper.from_array(np.array(10**7), "n"), ints("k", 10**4)], "n", fill, "big")


def functions(bodies: dict[str, list[onnx.NodeProto]], call: str = "f") -> onnx.ModelProto:
    found = model([node(call, "x", "y", domain="here")])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("here", 1)]
    for name, nodes in bodies.items():
        found.functions.append(helper.make_function("here", name, ["x"], ["y"], nodes, imports))
    return found


@case("calls itself")
def recursive_function(folder):
    return functions({"f": [node("f", "x", "y", domain="here")]})


@case("calls itself")
def mutually_recursive_functions(folder):
    there = lambda name: [node(name, "x", "a", domain="here"), node("Neg", "a", "y")]  # noqa: E731
    return functions({"f": there("g"), "g": there("h"), "h": there("f")})


@case("calls itself")
def recursive_through_a_branch(folder):
    body = helper.make_graph([node("f", "x", "z", domain="here")], "b", [], [value("z")])
    nodes = [node("Constant", "", "c", value=numpy_helper.from_array(np.array(True)))]
    return functions({"f": [*nodes, node("If", "c", "y", then_branch=body, else_branch=body)]})


@case("nodes with the functions inlined", 30, name="billion_laughs")
@case("deep", 40, name="trillion_laughs")
def laughs(folder, levels):
    twice = lambda name: [node(name, "x", "a", domain="here"), node(name, "a", "y", domain="here")]  # noqa: E731
    bodies = {f"f{i}": twice(f"f{i + 1}") for i in range(levels)}
    return functions({**bodies, f"f{levels}": [node("Neg", "x", "y")]}, "f0")


@case("deep")
def functions_1000_deep(folder):
    bodies = {f"f{i}": [node(f"f{i + 1}", "x", "y", domain="here")] for i in range(1000)}
    return functions({**bodies, "f1000": [node("Neg", "x", "y")]}, "f0")


@case("two functions")
def two_functions_of_one_name(folder):
    found = functions({"f": [node("Neg", "x", "y")]})
    found.functions.append(found.functions[0])
    return found


# Too much of something


@case("nodes")
def nodes_100_000(folder):
    names = ["x", *(f"t{i}" for i in range(99_999)), "y"]
    return model([node("Neg", [a], [b]) for a, b in pairwise(names)])


@case("nodes")
def nodes_in_a_body(folder):
    names = ["x", *(f"t{i}" for i in range(59_999)), "z"]
    body = helper.make_graph([node("Neg", [a], [b]) for a, b in pairwise(names)], "b", [], [value("z")])
    return model(
        [node("If", "c", "y", then_branch=body, else_branch=body)], numpy_helper.from_array(np.array(True), "c")
    )


@case("inputs", 11, name="inputs_a_million")
@case("outputs", 12, name="outputs_a_million")
@case("weights", 5, name="weights_a_million")
def million(folder, number):
    entries = []
    for i in range(10**6):
        name = b"n%07d" % i
        entries.append(field(number, (field(1, name) if number != 5 else b"\x08\x00\x10\x01" + field(8, name))))
    graph = field(7, good().graph.SerializeToString() + b"".join(entries))
    return b"\x08\x08" + graph + field(8, helper.make_opsetid("", 17).SerializeToString())


@case("inputs")
def one_node_with_a_million_inputs(folder):
    return model([node("Sum", ["x"] * 10**6, "y")])


@case("attributes")
def one_node_with_a_million_attributes(folder):
    found = good()
    attribute = onnx.AttributeProto(name="a", type=onnx.AttributeProto.INT, i=1).SerializeToString()
    found.graph.node[0].MergeFromString(field(5, attribute) * 10**6)
    return found


@case("bytes")
def metadata_bomb(folder):
    found = good()
    found.metadata_props.add(key="k", value="v" * (64 << 20))
    return found


@case("metadata")
def metadata_a_million(folder):
    entry = onnx.StringStringEntryProto(key="k", value="v").SerializeToString()
    return good().SerializeToString() + field(14, entry) * 10**6


@case("characters", "n" * 10_000_000, name="name_of_10_mb")
@case("character", "a\0b", name="name_with_nul")
@case("character", "a\nUnsupportedModel: all is well", name="name_with_newline")
@case("character", "a\x1b[2Jb", name="name_with_escape")
@case("", "../../../outside/secret.bin", name="name_like_a_path")
@case("", "\u202ea\u200b", name="name_with_direction")
def named(folder, name):
    return model([node("Relu", "x", [name]), node("Neg", [name], "y")])


@case("characters", "n" * 1_000_000, name="op_of_a_million_letters")
@case("character", "Relu\n", name="op_with_newline")
def op_named(folder, op):
    return model([node(op, "x", "y")])


@case("UTF-8")
def name_not_utf8(folder):
    return named(folder, "abcd").SerializeToString().replace(b"abcd", b"\xff\xfe\xc0\x80")


@case("UTF-8")
def op_not_utf8(folder):
    return good().SerializeToString().replace(b"Relu", b"\xff\xfe\xc0\x80")


# Ops and versions


@case("unknown domain", "Thing", "org.acme", name="custom_op")
@case("no op", "Exec", "", name="unknown_op")
@case("onnxruntime", "NoSuchThing", "com.microsoft", name="unknown_contributed_op")
@case("", "PyOp", "com.microsoft", name="python_op")
def op_of(folder, op, domain):
    found = model([node(op, "x", "y", domain=domain)])
    found.opset_import.add(domain=domain or "ai.onnx.ml", version=1)
    return found


@case("newer", 9999, name="opset_9999")
@case("opset", -1, name="opset_negative")
@case("opset", 0, name="opset_0")
@case("newer", 2**63 - 1, name="opset_overflowing")
def opset(folder, version):
    return model([node("Relu", "x", "y")], opset=version)


@case("")
def ir_99(folder):
    found = good()
    found.ir_version = 99
    return found


@case("")
def ir_negative(folder):
    found = good()
    found.ir_version = -1
    return found


@case("type")
def input_without_type(folder):
    found = good()
    found.graph.input[0].ClearField("type")
    return found


@case("")
def input_is_a_sequence(folder):
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(FLOAT, [2]))
    return model([node("ConcatFromSequence", "x", "y", axis=0)], inputs=[helper.make_value_info("x", kind)])


@case("")
def input_of_text(folder):
    return model(
        [node("StringNormalizer", "x", "y")],
        inputs=[value("x", (2,), TensorProto.STRING)],
        outputs=[value("y", (2,), TensorProto.STRING)],
    )


@case("")
def attribute_of_another_type(folder):
    return model([node("Softmax", "x", "y", axis="one")])


# Other files


@case("empty", b"", name="empty_file")
@case("LFS", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n", name="lfs_pointer")
@case("text", b"import os\nos.system('id')\n" * 99, name="a_script")
@case("pickle", pickle.dumps({"a": 1}, protocol=2), name="a_pickle")
@case("not a", pickle.dumps([1, 2], protocol=5), name="a_pickle_of_today")
@case("HDF5", b"\x89HDF\r\n\x1a\n" + bytes(99), name="an_hdf5_file")
@case("Lite", b"\x1c\0\0\0TFL3" + bytes(99), name="a_tflite_file")
@case("not a", b"\x7fELF" + bytes(999), name="a_program")
@case("not a", bytes(4096), name="zeros")
@case("not a", np.random.default_rng(0).bytes(65536), name="noise")
@case("not a", b"\xff" * 4096, name="ones")
@case("not a", b"\x0b" * 4096, name="groups")
@case("not a", field(7, b"")[:1] + b"\xff\xff\xff\xff\x0f", name="a_length_of_4_gb")
def content(folder, data):
    return data


@case("zip")
def a_zip(folder):
    with zipfile.ZipFile(folder / "model.onnx", "w") as archive:
        archive.writestr(zipfile.ZipInfo("../../evil"), b"x")


@case("gzip")
def a_gzip_bomb(folder):
    return gzip.compress(bytes(64 << 20), mtime=0)


@case("bytes")
def a_file_of_100_gb(folder):
    with (folder / "model.onnx").open("wb") as file:
        file.truncate(100 << 30)


@case("", 0.1, name="truncated_10")
@case("", 0.5, name="truncated_50")
@case("", 0.9, name="truncated_90")
@case("", 0.99, name="truncated_99")
def truncated(folder, share):
    whole = good().SerializeToString()
    return whole[: int(len(whole) * share)]


@case("not a")
def bits_flipped(folder):
    whole = bytearray(good().SerializeToString())
    whole[len(whole) // 3] ^= 0xFF
    return bytes(whole)


@case("pipe")
def a_pipe(folder):
    os.mkfifo(folder / "model.onnx")


# model.toml


@case("labels", 'labels = "../../../../../etc/passwd"', name="labels_above")
@case("labels", 'labels = "/etc/passwd"', name="labels_absolute")
@case("labels", 'labels = "/proc/self/environ"', name="labels_environ")
@case("labels", 'labels = "link.txt"', name="labels_link")
@case("hard links", 'labels = "hard.txt"', name="labels_hard_link")
@case("device", 'labels = "pipe"', name="labels_pipe")
def labels(folder, line):
    (folder / "model.toml").write_text(f"[output]\n{line}\n")
    (folder / "link.txt").symlink_to(outside(folder))
    (folder / "hard.txt").hardlink_to(outside(folder))
    os.mkfifo(folder / "pipe")
    return good()


@case("nested too deeply", "a = " + "[" * 200_000, name="settings_nested")
@case("bytes", "# " + "x" * 5_000_000, name="settings_huge")
@case("not valid TOML", "\0\1\2", name="settings_binary")
@case("named", "[__class__]\nx = 1", name="settings_unknown_table")
@case("expected", "[serving]\nmax_batch_rows = 99999999999999999999999999999999999999999999\nqueue_rows = -1",
      name="settings_negative_rows")  # fmt: skip
def settings(folder, text):
    (folder / "model.toml").write_text(text)
    return good()


# The judge


def write(root: Path, name: str) -> None:
    folder = root / name / "1"
    folder.mkdir(parents=True)
    made = CASES[name].make(folder)
    if made is not None:
        (folder / "model.onnx").write_bytes(made if isinstance(made, bytes) else made.SerializeToString())


class Watch:
    """Tells who opens files that nobody may open, native code included (inotify's IN_OPEN)."""

    def __init__(self, *paths: Path):
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._handle = self._libc.inotify_init1(os.O_NONBLOCK)
        for path in paths:
            self._libc.inotify_add_watch(self._handle, str(path).encode(), 0x20)

    def opened(self) -> int:
        try:
            return len(os.read(self._handle, 65536)) // struct.calcsize("iIII")
        except BlockingIOError:
            return 0


def status(key: str) -> int:
    """A line of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def judged(root: Path, names: list[str], seconds: float) -> Iterator[dict[str, object]]:
    """Load each case as the service does."""
    from onnxplain import cpu_session
    from onnxplain.errors import OnnxplainError
    from onnxplain.inputs import load_labels
    from onnxplain.sources import DirectoryRepository
    from onnxplain.subject import Subject

    cpu_session.SECONDS = seconds
    for name in names:
        write(root, name)
    warm = root.parent / "good.onnx"
    onnx.save(good(), warm)
    Subject.of(warm)  # what is imported later is imported now
    secret = outside(root / "x" / "1")
    watch = Watch(secret)
    package = str(Path(cpu_session.__file__).parent)
    known = (sys.prefix, sys.base_prefix, package, "/proc/self/status", "/sys/")  # modules, source lines, CPU counts
    opened: list[str] = []
    sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE + status("VmSize"),) * 2)
    for name in names:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = status("VmRSS")
        opened.clear()
        begun = time.perf_counter()
        kind, text, refused = "", "", False
        try:
            found = DirectoryRepository(root).get(name)
            if found.settings.output.labels:
                load_labels(found.settings.output.labels)
            Subject.of(found.path)
        except OnnxplainError as error:
            kind, text, refused = type(error).__name__, str(error), True
        except BaseException as error:
            kind, text = type(error).__name__, str(error)
        taken = time.perf_counter() - begun
        elsewhere = [path for path in opened if not Path(path).is_relative_to(root) and not path.startswith(known)]
        peak = status("VmHWM") - before
        elsewhere += ["a forbidden file"] * bool(watch.opened())
        yield {"name": name, "kind": kind, "text": text[:2000], "length": len(text), "refused": refused,
               "seconds": taken, "bytes": peak, "elsewhere": elsewhere}  # fmt: skip


if __name__ == "__main__":
    for record in judged(Path(sys.argv[1]), sys.argv[3:], float(sys.argv[2])):
        print(json.dumps(record), flush=True)
