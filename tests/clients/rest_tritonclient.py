"""tritonclient.http asks all that REST has of a model: HOST:PORT MODEL IN.npz OUT.npz. Runs without this package."""

import sys

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

address, model, source, result = sys.argv[1:]
client = triton.InferenceServerClient(address, concurrency=2)
assert client.is_server_live() and client.is_server_ready() and client.is_model_ready(model, "1")
assert not client.is_model_ready("nope")
assert client.get_server_metadata()["name"] == "onnxplain"
assert client.get_model_metadata(model)["platform"] == "onnxruntime_onnx"
assert client.get_model_config(model)["input"]
assert any(entry["name"] == model and entry["state"] == "READY" for entry in client.get_model_repository_index())
assert client.get_inference_statistics(model)["model_stats"][0]["name"] == model
for refused in (lambda: client.load_model(model), lambda: client.unload_model(model), lambda: client.infer("nope", [])):
    try:
        refused()
    except InferenceServerException as error:
        assert error.message(), error
    else:
        raise AssertionError("this was to be refused")

arrays = dict(np.load(source))
found = {}
for binary in (True, False):
    inputs = []
    for name, array in arrays.items():
        tensor = triton.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array, binary_data=binary)
        inputs.append(tensor)
    for packed in (None, "gzip", "deflate"):
        metadata = client.get_model_metadata(model)["outputs"]
        for outputs in (None, [triton.InferRequestedOutput(m["name"], binary_data=binary) for m in metadata]):
            answer = client.infer(
                model, inputs, outputs=outputs, request_id="7", request_compression_algorithm=packed,
                response_compression_algorithm=packed, timeout=10_000_000,
            )  # fmt: skip
            assert answer.get_response()["id"] == "7"
            for entry in metadata:
                array = answer.as_numpy(entry["name"])
                key = entry["name"]
                if key in found:
                    assert found[key].dtype == array.dtype and found[key].tobytes() == array.tobytes(), (binary, packed)
                found[key] = array
    raw = client.async_infer(model, inputs).get_result()
    assert raw.as_numpy(metadata[0]["name"]).tobytes() == found[metadata[0]["name"]].tobytes()
np.savez(result, **found)
