"""Explain by gRPC alone: stubs made from protos/, nothing of onnxplain installed.

Install:  pip install grpcio grpcio-tools==1.76.0 "protobuf>=6.33,<7"
Stubs:    mkdir -p stubs && python -m grpc_tools.protoc -I protos --python_out=stubs --grpc_python_out=stubs \
              protos/onnxplain/v1/tensor.proto protos/onnxplain/v1/explainer.proto
Run:      PYTHONPATH=stubs python docs/clients/python_plain.py localhost:8001 [MODEL [FILE.npy]]
"""

import hashlib
import struct
import sys

import grpc

from onnxplain.v1 import explainer_pb2 as v1
from onnxplain.v1 import explainer_pb2_grpc, tensor_pb2

address = sys.argv[1]
model = sys.argv[2] if len(sys.argv) > 2 else "digits_cnn"
file = sys.argv[3] if len(sys.argv) > 3 else "models/digits_cnn/samples/three.npy"

with open(file, "rb") as stream:
    pixels = stream.read()[-4 * 28 * 28 :]  # float32, little-endian: the end of an .npy file are its numbers
request = v1.ExplainRequest(
    model=v1.ModelRef(name=model),
    inputs=[tensor_pb2.Tensor(name="input", datatype="FP32", shape=[1, 1, 28, 28], raw=pixels)],
    targets=[v1.Target(expression="predicted")],
)
with grpc.insecure_channel(address) as channel:
    try:
        reply = explainer_pb2_grpc.ExplainerServiceStub(channel).Explain(request, timeout=30)
    except grpc.RpcError as error:
        sys.exit(f"{error.code().name}: {error.details()}")

relevance = reply.attributions[0].relevance
values = struct.unpack(f"<{len(relevance.raw) // 4}f", relevance.raw)
strongest = sorted(range(len(values)), key=lambda n: -values[n])[:3]
print("class", reply.targets[0].name)
print("relevance", "x".join(map(str, relevance.shape)), "sha256", hashlib.sha256(relevance.raw).hexdigest())
print("strongest", *strongest)
