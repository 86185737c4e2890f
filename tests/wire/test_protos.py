"""The .proto files, the stubs and the committed descriptors say the same, and claim nothing of anybody else's."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import text_format
from google.protobuf.descriptor import FieldDescriptor

from onnxplain.v1 import explainer_pb2, tensor_pb2
from onnxplain.wire import inference

ROOT = Path(__file__).parents[2]
PROTOS = ROOT / "protos"
TOOLS = "1.76.0"
OURS = {"onnxplain/v1/tensor.proto": tensor_pb2.DESCRIPTOR, "onnxplain/v1/explainer.proto": explainer_pb2.DESCRIPTOR}
FILES = {**OURS, **{f"inference/{n}.proto": None for n in ("grpc_service", "model_config")}}
GENERATED = [
    *(f"onnxplain/v1/{name}" for name in ("tensor_pb2.py", "tensor_pb2.pyi", "explainer_pb2.py", "explainer_pb2.pyi")),
    "onnxplain/v1/explainer_pb2_grpc.py",
    "onnxplain/wire/inference.binpb",
]
FIELD = re.compile(r"(repeated |optional )?(map<\w+, \w+>|[\w.]+) (\w+) = (\d+);")
RPC = re.compile(r"rpc (\w+)\((stream )?(\w+)\) returns \((stream )?(\w+)\)")


def generator() -> str:
    """A python with the pinned grpcio-tools; skips the test where there is none."""
    python = os.environ.get("ONNXPLAIN_PROTOGEN", "")
    if not python and importlib.util.find_spec("grpc_tools"):
        python = sys.executable
    if not python:
        pytest.skip(f"ONNXPLAIN_PROTOGEN names no python with grpcio-tools=={TOOLS}")
    asked = "from importlib.metadata import version; print(version('grpcio-tools'))"
    found = subprocess.run([python, "-c", asked], capture_output=True, text=True, timeout=60)
    if found.stdout.strip() != TOOLS:
        pytest.skip(f"{python} has grpcio-tools {found.stdout.strip() or 'not at all'}, stubs are made by {TOOLS}")
    return python


def text(file: str) -> str:
    """A .proto file without its comments."""
    return re.sub(r"//.*", "", (PROTOS / file).read_text())


def described(file: str):
    return OURS[file] if file in OURS else inference.POOL.FindFileByName(file)


def within(messages) -> list:
    """Messages and those nested in them, but for the entries of maps."""
    return [m for message in messages for m in (message, *within(message.nested_types)) if not m.GetOptions().map_entry]


def word(field: FieldDescriptor) -> str:
    """A field's type as it is written, without its package."""
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        key, value = field.message_type.fields
        return f"map<{word(key)}, {word(value)}>"
    named = field.message_type or field.enum_type
    if named is not None:
        return named.name
    return next(n for n, v in vars(FieldDescriptor).items() if n.startswith("TYPE_") and v == field.type)[5:].lower()


@pytest.mark.clients
def test_generating_again_changes_nothing(tmp_path):
    environment = {**os.environ, "ONNXPLAIN_PROTOGEN": generator()}
    subprocess.run([PROTOS / "generate", tmp_path], check=True, env=environment, timeout=120)
    made = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert made == sorted(GENERATED)
    for name in GENERATED:
        assert (tmp_path / name).read_bytes() == (ROOT / name).read_bytes(), f"{name} is old: run protos/generate"


@pytest.mark.clients
def test_buf_has_nothing_to_say():
    buf = shutil.which("buf", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if buf is None:
        pytest.skip("there is no buf here: pip install buf-bin")
    found = subprocess.run([buf, "lint"], cwd=PROTOS, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stdout + found.stderr
    formatted = subprocess.run([buf, "format", "-d"], cwd=PROTOS, capture_output=True, text=True, timeout=120)
    assert not formatted.stdout, formatted.stdout


@pytest.mark.parametrize("file", FILES)
def test_the_descriptors_hold_the_fields_of_the_text(file):
    written = sorted((name, int(number)) for _, _, name, number in FIELD.findall(text(file)))
    messages = within(described(file).message_types_by_name.values())
    assert written == sorted((field.name, field.number) for message in messages for field in message.fields)
    kinds = sorted(kind.split(".")[-1] for _, kind, _, _ in FIELD.findall(text(file)))
    assert kinds == sorted(word(field) for message in messages for field in message.fields)
    names = re.findall(r"^ *message (\w+)", text(file), re.MULTILINE)
    assert sorted(names) == sorted(message.name for message in messages)


@pytest.mark.parametrize("file", FILES)
def test_the_descriptors_hold_the_calls_of_the_text(file):
    found = [
        (method.name, method.client_streaming, method.input_type.name, method.server_streaming, method.output_type.name)
        for service in described(file).services_by_name.values()
        for method in service.methods
    ]
    written = [(name, bool(up), asked, bool(down), given) for name, up, asked, down, given in RPC.findall(text(file))]
    assert found == written


@pytest.mark.parametrize("file", OURS)
def test_every_field_of_ours_is_explained(file):
    lines = (PROTOS / file).read_text().splitlines()
    silent = [
        line.strip()
        for above, line in zip(["", *lines], lines, strict=False)
        if re.match(r" *(message|enum|oneof|rpc|service) |.* = \d+;", line) and not above.strip().startswith("//")
    ]
    assert not silent


def test_the_stubs_are_the_pinned_generators():
    assert f"GRPC_GENERATED_VERSION = '{TOOLS}'" in (ROOT / "onnxplain/v1/explainer_pb2_grpc.py").read_text()
    for name in ("tensor_pb2.py", "explainer_pb2.py"):
        made_by = re.search(r"Protobuf Python Version: (\d+)", (ROOT / "onnxplain/v1" / name).read_text())
        assert made_by and made_by[1] == "6", f"{name} would not import on protobuf 6"


def test_the_default_pool_has_no_package_inference():
    code = """
from google.protobuf import descriptor_pool
from onnxplain.v1 import explainer_pb2, explainer_pb2_grpc, tensor_pb2
from onnxplain.wire import inference
lookups = (("FindMessageTypeByName", "inference.ServerLiveRequest"), ("FindServiceByName", inference.INFERENCE))
for find, name in lookups:
    getattr(inference.POOL, find)(name)
    try:
        getattr(descriptor_pool.Default(), find)(name)
    except KeyError:
        continue
    raise SystemExit(f"{name} is in the default pool")
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_reflection_finds_every_service_in_our_pool():
    for name in (
        inference.INFERENCE,
        "onnxplain.v1.ExplainerService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    ):
        service = inference.POOL.FindServiceByName(name)
        assert inference.POOL.FindFileContainingSymbol(name) is service.file
        assert all(method.input_type and method.output_type for method in service.methods)


def test_methods_carry_the_classes_of_their_messages():
    assert set(inference.RPCS) == {
        *("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer"),
        *("ModelStreamInfer", "ModelConfig", "ModelStatistics"),
        *("RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload"),
    }
    infer = inference.RPCS["ModelInfer"]
    assert infer == (inference.messages.ModelInferRequest, inference.messages.ModelInferResponse, False, False)
    assert inference.RPCS["ModelStreamInfer"][2:] == (True, True)
    assert infer.request.FromString(infer.request(model_name="m").SerializeToString()).model_name == "m"


def test_a_config_of_triton_is_read_as_text():
    config = text_format.Parse(
        """
        name: "digits" backend: "onnxruntime" max_batch_size: 8
        input [{ name: "x" data_type: TYPE_FP32 dims: [ 1, 28, 28 ] }]
        output [{ name: "y" data_type: TYPE_FP32 dims: [ 10 ] }]
        instance_group [{ kind: KIND_CPU count: 1 }]
        version_policy { latest { num_versions: 1 } }
        dynamic_batching { }
        parameters { key: "intra_op_thread_count" value { string_value: "2" } }
        """,
        inference.messages.ModelConfig(),
    )
    assert config.WhichOneof("scheduling_choice") == "dynamic_batching" and config.input[0].dims[:] == [1, 28, 28]
    with pytest.raises(text_format.ParseError):
        text_format.Parse('naem: "digits"', inference.messages.ModelConfig())
