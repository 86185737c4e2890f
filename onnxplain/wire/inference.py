"""Messages of the Open Inference Protocol in a descriptor pool of our own.

Code generated from these files cannot be imported beside tritonclient, kserve or mlserver: all claim the package
`inference` in protobuf's default pool. A pool of our own claims nothing. The other services are added to it, so that
reflection finds all in one.
"""

from __future__ import annotations

from importlib import resources
from types import SimpleNamespace
from typing import Any, NamedTuple

from google.protobuf import descriptor_pb2, message_factory
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from onnxplain.v1 import explainer_pb2 as v1
from onnxplain.v1 import tensor_pb2

INFERENCE = "inference.GRPCInferenceService"


class Rpc(NamedTuple):
    """One RPC: the message classes of both directions, and whether each is a stream."""

    request: Any
    response: Any
    client_streaming: bool
    server_streaming: bool


def _pool() -> tuple[DescriptorPool, list[str]]:
    """The pool, and the names of the protocol's own files in it."""
    filled = DescriptorPool()
    files = descriptor_pb2.FileDescriptorSet.FromString(
        resources.files("onnxplain.wire").joinpath("inference.binpb").read_bytes()
    ).file
    for file in files:  # protoc writes a file behind those it imports
        filled.AddSerializedFile(file.SerializeToString())
    added: set[str] = set()
    for module in (v1, tensor_pb2, health_pb2, reflection_pb2):
        _copy(module.DESCRIPTOR, filled, added)
    return filled, [file.name for file in files]


def _copy(file: FileDescriptor, into: DescriptorPool, added: set[str]) -> None:
    """Add a file of the default pool, imports first."""
    if file.name in added:
        return
    added.add(file.name)
    for imported in file.dependencies:
        _copy(imported, into, added)
    into.AddSerializedFile(file.serialized_pb)


def _classes(names: list[str]) -> dict[str, Any]:
    """Classes of the messages at the top of the files, by name."""
    files = (POOL.FindFileByName(name) for name in names)
    return {
        name: message_factory.GetMessageClass(described)
        for file in files
        for name, described in file.message_types_by_name.items()
    }


POOL, _names = _pool()
messages = SimpleNamespace(
    **_classes(_names)
)  # messages.ModelInferRequest; nested ones are attributes of their parents
RPCS: dict[str, Rpc] = {
    method.name: Rpc(
        getattr(messages, method.input_type.name),
        getattr(messages, method.output_type.name),
        method.client_streaming,
        method.server_streaming,
    )
    for method in POOL.FindServiceByName(INFERENCE).methods
}
