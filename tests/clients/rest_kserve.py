"""kserve's client over both of its protocols: URL MODEL IN.npz OUT.npz. Runs without this package."""

import asyncio
import sys

import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.constants.constants import PredictorProtocol

address, model, source, result = sys.argv[1:]


async def main():
    arrays = dict(np.load(source))
    v2 = InferenceRESTClient(RESTConfig(protocol=PredictorProtocol.REST_V2, retries=1, timeout=30))
    assert await v2.is_server_live(address)
    assert await v2.is_server_ready(address)
    assert await v2.is_model_ready(address, model)
    found = {}
    for binary in (False, True):
        inputs = []
        for name, array in arrays.items():
            kind = {"float32": "FP32", "int64": "INT64", "float64": "FP64"}[array.dtype.name]
            inputs.append(InferInput(name, list(array.shape), kind))
            inputs[-1].set_data_from_numpy(array, binary_data=binary)
        request = InferRequest(model_name=model, infer_inputs=inputs, request_id="7")
        answer = await v2.infer(address, request, model_name=model)
        for output in answer.outputs:
            array = output.as_numpy()
            if output.name in found:
                assert found[output.name].tobytes() == array.tobytes()
            found[output.name] = array
    v1 = InferenceRESTClient(RESTConfig(protocol=PredictorProtocol.REST_V1, retries=1, timeout=30))
    assert await v1.is_model_ready(address, model)
    ((name, array),) = arrays.items()
    rows = {"instances": array.tolist()}
    predictions = (await v1.infer(address, rows, model_name=model))["predictions"]
    for output, array in found.items():
        assert np.array_equal(np.array([row[output] for row in predictions], array.dtype), array)
    explanations = (await v1.explain(address, model_name=model, data=rows))["explanations"]
    targets = [explanation["targets"][0] for explanation in explanations]
    found["relevance"] = np.array([target["attributions"][name] for target in targets], np.float32)
    np.savez(result, **found)


asyncio.run(main())
