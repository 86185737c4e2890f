"""Our own client: it prepares the picture as the model wants it, knows class names, and returns an Explanation.

Install:  pip install onnxplain
Run:      python docs/clients/onnxplain_client.py localhost:8001 [MODEL [FILE]]
"""

import hashlib
import sys

import numpy as np

import onnxplain
from onnxplain.errors import OnnxplainError

address = sys.argv[1]
model = sys.argv[2] if len(sys.argv) > 2 else "mobilenet_v2"
file = sys.argv[3] if len(sys.argv) > 3 else "models/mobilenet_v2/samples/chelsea.png"

try:
    with onnxplain.Client(address) as client:
        found = client.explain(model, file, target="predicted")
except OnnxplainError as error:
    sys.exit(f"{error.status}: {error}")

relevance = found.relevance  # found.plot() is a picture, found.save("why.npz") keeps the arrays
print("class", found.target)
print("relevance", "x".join(map(str, relevance.shape)), "sha256", hashlib.sha256(relevance.tobytes()).hexdigest())
print("strongest", *np.argsort(-relevance.reshape(-1), kind="stable")[:3])
