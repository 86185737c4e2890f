#!/usr/bin/env bash
# Explain with no protocol files at all: the server describes itself (gRPC reflection).
#
# Install:  pip install buf-bin      (or https://buf.build; grpcurl takes the same JSON, see below)
# Run:      docs/clients/reflection.sh localhost:8001 [MODEL [FILE.npy]]
#
# With grpcurl:
#   grpcurl -plaintext localhost:8001 list
#   grpcurl -plaintext -d "$request" localhost:8001 onnxplain.v1.ExplainerService/Explain
set -euo pipefail

address=$1 model=${2:-digits_cnn} file=${3:-models/digits_cnn/samples/three.npy}
pixels=$(tail -c $((4 * 28 * 28)) "$file" | base64 | tr -d '\n') # float32, little-endian: the end of an .npy file
request='{"model": {"name": "'$model'"}, "targets": [{"expression": "predicted"}],
          "inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 1, 28, 28], "raw": "'$pixels'"}]}'

reply=$(buf curl --protocol grpc --http2-prior-knowledge --data "$request" \
    "http://$address/onnxplain.v1.ExplainerService/Explain")

python3 - "$reply" <<'PYTHON'
import base64, hashlib, json, struct, sys

reply = json.loads(sys.argv[1])
relevance = reply["attributions"][0]["relevance"]
raw = base64.b64decode(relevance["raw"])
values = struct.unpack(f"<{len(raw) // 4}f", raw)
print("class", reply["targets"][0]["name"])
print("relevance", "x".join(relevance["shape"]), "sha256", hashlib.sha256(raw).hexdigest())
print("strongest", *sorted(range(len(values)), key=lambda n: -values[n])[:3])
PYTHON
