"""Clients of REST that others wrote, each in its own environment: what they read is what gRPC says."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from over_http import served
from PIL import Image
from running import MODELS
from service.rpc import explain, explain_request, infer, infer_arrays, infer_request

from onnxplain.sources import DirectorySource
from onnxplain.wire.tensors import v1_array

from .conftest import environment

pytestmark = [pytest.mark.clients, pytest.mark.timeout(300)]
HERE = Path(__file__).parent
SEVEN = MODELS / "digits_cnn" / "samples" / "digit_7.png"
X = np.array([[5.1, 3.5, 1.4, 0.2], [6.7, 3.0, 5.2, 2.3]], np.float32)
PLAIN = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "HOME": os.environ.get("HOME", "/")}


@pytest.fixture(scope="module")
def rest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name in ("iris_mlp", "digits_cnn"):
        shutil.copytree(MODELS / name, folder / name, ignore=shutil.ignore_patterns("samples"))
    with served([DirectorySource(folder)]) as server:
        yield server


def told(*command: str | Path) -> bytes:
    done = subprocess.run([str(word) for word in command], env=PLAIN, capture_output=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def curl(rest):
    if shutil.which("curl") is None:
        pytest.skip("no curl on this machine")

    def run(path: str, *options: str | Path) -> bytes:
        return told("curl", "-sS", "--fail-with-body", *options, f"http://127.0.0.1:{rest.port}{path}")

    return run


def grpc_answer(rest, model, arrays):
    with rest.channel() as channel:
        return infer_arrays(infer(channel)(infer_request(model, arrays)))


def test_curl_infers(rest, curl):
    tensor = {"name": "X", "datatype": "FP32", "shape": [2, 4], "data": X.tolist()}
    found = json.loads(curl("/v2/models/iris_mlp/infer", "-d", json.dumps({"inputs": [tensor]})))
    by_name = {output["name"]: np.array(output["data"]) for output in found["outputs"]}
    expected = grpc_answer(rest, "iris_mlp", {"X": X})
    assert np.array_equal(by_name["probabilities"].astype(np.float32), expected["probabilities"].reshape(-1))


def test_curl_explains_a_picture(curl):
    path = "/v2/models/digits_cnn/explain"
    sent = curl(path, "-H", "Accept: image/png", "--data-binary", f"@{SEVEN}")
    assert Image.open(io.BytesIO(sent)).size[0] > 200
    assert (
        curl(f"{path}?format=png", "-F", f"file=@{SEVEN}")
        == sent
        == curl(f"{path}?format=png", "-T", SEVEN, "-X", "POST")
    )
    assert json.loads(curl(path, "--data-binary", f"@{SEVEN}"))["classes"][0][0]["name"] == "7"
    assert b"<!doctype html>" in curl(f"{path}?format=html", "--compressed", "--data-binary", f"@{SEVEN}")


def test_curl_sends_more_than_it_is_asked_to_wait_for(rest, curl, tmp_path):
    """curl asks before it sends a megabyte (Expect: 100-continue)."""
    large = tmp_path / "large"
    large.write_bytes(bytes(70 * 2**20))
    done = subprocess.run(
        ["curl", "-sS", "--data-binary", f"@{large}", f"http://127.0.0.1:{rest.port}/v2/models/iris_mlp/infer"],
        capture_output=True, timeout=60,
    )  # fmt: skip
    assert "--max-message-bytes" in json.loads(done.stdout)["error"]


@pytest.mark.parametrize("model", ["iris_mlp", "iris_mlp.explain"])
def test_tritonclient(rest, tmp_path, model):
    np.savez(tmp_path / "in.npz", X=X)
    python = environment("triton") / "bin" / "python"
    told(
        python,
        HERE / "rest_tritonclient.py",
        f"127.0.0.1:{rest.port}",
        model,
        tmp_path / "in.npz",
        tmp_path / "out.npz",
    )
    expected = grpc_answer(rest, model, {"X": X})
    with np.load(tmp_path / "out.npz") as found:
        assert {name: found[name].tobytes() for name in found} == {n: a.tobytes() for n, a in expected.items()}


def test_kserve(rest, tmp_path):
    np.savez(tmp_path / "in.npz", X=X)
    python, address = environment("kserve") / "bin" / "python", f"http://127.0.0.1:{rest.port}"
    told(python, HERE / "rest_kserve.py", address, "iris_mlp", tmp_path / "in.npz", tmp_path / "out.npz")
    expected = grpc_answer(rest, "iris_mlp", {"X": X})
    with rest.channel() as channel:
        reasons = explain(channel)(explain_request("iris_mlp", {"X": X}))
    expected["relevance"] = v1_array(reasons.attributions[0].relevance, "relevance")
    with np.load(tmp_path / "out.npz") as found:
        assert {name: found[name].tobytes() for name in found} == {n: a.tobytes() for n, a in expected.items()}


def test_a_browser_explains_a_picture(rest, tmp_path):
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium on this machine")
    python, picture = environment("browser") / "bin" / "python", tmp_path / "seen.png"
    address = f"http://127.0.0.1:{rest.port}"
    seen = json.loads(told(python, HERE / "rest_browser.py", address, "digits_cnn", SEVEN, picture, chromium))
    assert seen["problems"] == [] and seen["offered"] == ["digits_cnn", "iris_mlp"]
    assert seen["width"] > 200 and seen["classes"].splitlines()[1].startswith("7")
    assert "no such class" in seen["said"] and seen["addresses"] > 20
    assert Image.open(picture).size[0] == 1100
