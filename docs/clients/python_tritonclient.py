"""NVIDIA's Triton client: MobileNetV2 is asked as a model, and its explanation as another model.

Install:  pip install "tritonclient[grpc]>=2.73" "protobuf<7" pillow     (with protobuf 7 pip picks a client of 2024)
Run:      python docs/clients/python_tritonclient.py localhost:8001 [MODEL [PICTURE]]
"""

import hashlib
import sys

import numpy as np
import tritonclient.grpc as triton
from PIL import Image
from tritonclient.utils import InferenceServerException

address = sys.argv[1]
model = sys.argv[2] if len(sys.argv) > 2 else "mobilenet_v2"
file = sys.argv[3] if len(sys.argv) > 3 else "models/mobilenet_v2/samples/chelsea.png"

# As the [input] table of its model.toml says (GetExplainability tells it): shorter side 256, the middle 224 x 224.
picture = Image.open(file).convert("RGB")
scale = 256 / min(picture.size)
picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BILINEAR)
left, top = round((picture.width - 224) / 2), round((picture.height - 224) / 2)
x = np.asarray(picture.crop((left, top, left + 224, top + 224)), np.float32) * np.float32(1 / 255)
x = (x - np.array([0.485, 0.456, 0.406], np.float32)) / np.array([0.229, 0.224, 0.225], np.float32)
x = np.ascontiguousarray(x.transpose(2, 0, 1)[None])

tensor = triton.InferInput("input", x.shape, "FP32")
tensor.set_data_from_numpy(x)
client = triton.InferenceServerClient(address)
try:
    scores = client.infer(model, [tensor], client_timeout=60).as_numpy("logits")
    # Without the input `logits.seed` the predicted class is explained; "onnxplain_target" names another.
    reply = client.infer(f"{model}.explain", [tensor], parameters={"onnxplain_target": "predicted"}, client_timeout=60)
except InferenceServerException as error:
    sys.exit(f"{error.status()}: {error.message()}")

relevance = reply.as_numpy("input.relevance")
print("class", scores[0].argmax())
print("scores", "x".join(map(str, scores.shape)), "sha256", hashlib.sha256(scores.tobytes()).hexdigest())
print("relevance", "x".join(map(str, relevance.shape)), "sha256", hashlib.sha256(relevance.tobytes()).hexdigest())
print("strongest", *np.argsort(-relevance.reshape(-1), kind="stable")[:3])
