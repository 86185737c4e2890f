"""What a user of tritonclient calls; record.py keeps the bytes it sends. Usage: ask_triton.py HOST:PORT"""

import queue
import sys

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

client = triton.InferenceServerClient(sys.argv[1])
x = np.array([[5.1, 3.5, 1.4, 0.2], [6.7, 3.0, 5.2, 2.3]], np.float32)
tensor = triton.InferInput("X", x.shape, "FP32")
tensor.set_data_from_numpy(x)

client.is_server_live()
client.is_server_ready()
client.is_model_ready("iris_mlp")
client.is_model_ready("iris_mlp", "1")
client.get_server_metadata()
client.get_model_metadata("iris_mlp")
client.get_model_metadata("iris_mlp.explain", "1")
client.get_model_config("iris_mlp")
client.get_model_repository_index()
client.get_inference_statistics("iris_mlp")
client.infer("iris_mlp", [tensor])
client.infer(
    "iris_mlp",
    [tensor],
    model_version="1",
    request_id="seven",
    outputs=[triton.InferRequestedOutput("probabilities")],
    priority=1,
    timeout=20_000_000,
)
client.infer("iris_mlp.explain", [tensor], parameters={"onnxplain_target": "2"})
seed = triton.InferInput("add_result2.seed", [2, 3], "FP32")
seed.set_data_from_numpy(np.eye(3, dtype=np.float32)[:2])
client.infer("iris_mlp.explain", [tensor, seed], outputs=[triton.InferRequestedOutput("X.relevance")])
wrong = triton.InferInput("X", [2, 3], "FP32")
wrong.set_data_from_numpy(x[:, :3].copy())
for call in (lambda: client.infer("iris_mlp", [wrong]), lambda: client.infer("iris", [tensor])):
    try:
        call()
    except InferenceServerException:
        continue
    raise SystemExit("an error was expected")

answers: queue.Queue = queue.Queue()
client.start_stream(callback=lambda result, error: answers.put((result, error)))
client.async_stream_infer("iris_mlp", [tensor], request_id="first")
client.async_stream_infer("iris_mlp", [tensor], request_id="second")
for _ in range(2):
    answers.get(timeout=30)
client.stop_stream()
client.close()
