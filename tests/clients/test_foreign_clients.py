"""The examples of docs/clients, each in its own environment, against a real server: every byte is onnxruntime's."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from running import MODELS, running_server

from onnxplain.cli import main
from onnxplain.inputs import load_settings, prepare

from .conftest import ROOT, environment

pytestmark = [pytest.mark.clients, pytest.mark.timeout(300)]
EXAMPLES = ROOT / "docs" / "clients"
SECONDS = 120
PLAIN = {
    "PATH": os.environ["PATH"],
    "LANG": "C.UTF-8",
}  # nothing of this process: no PYTHONPATH, no virtual environment


@pytest.fixture(scope="module")
def server():
    with running_server(MODELS) as found:
        yield found


@pytest.fixture(scope="module")
def stubs(tmp_path_factory):
    """Made as the header of python_plain.py says."""
    folder = tmp_path_factory.mktemp("stubs")
    files = [f"protos/onnxplain/v1/{name}.proto" for name in ("tensor", "explainer")]
    command = [environment("plain") / "bin" / "python", "-m", "grpc_tools.protoc", "-I", "protos"]
    subprocess.run(
        [*command, f"--python_out={folder}", f"--grpc_python_out={folder}", *files], cwd=ROOT, env=PLAIN, check=True
    )
    return folder


def command(example: str, request: pytest.FixtureRequest) -> tuple[list[str], dict[str, str]]:
    """How an example is run, and in which surroundings."""
    file = str(EXAMPLES / example)
    match example:
        case "python_plain.py":
            stubs = request.getfixturevalue("stubs")
            return [str(environment("plain") / "bin" / "python"), file], {**PLAIN, "PYTHONPATH": str(stubs)}
        case "python_tritonclient.py":
            return [str(environment("triton") / "bin" / "python"), file], PLAIN
        case "node/explain.js":
            if shutil.which("node") is None:
                pytest.skip("no node on this machine")
            return ["node", file], {**PLAIN, "NODE_PATH": str(environment("node") / "node_modules")}
        case "reflection.sh":
            path = f"{environment('buf') / 'bin'}{os.pathsep}{PLAIN['PATH']}"
            return [file], {**PLAIN, "PATH": path}
    return [sys.executable, file], PLAIN


EXAMPLE_MODELS = {
    "python_plain.py": "digits_cnn",
    "python_tritonclient.py": "mobilenet_v2",
    "node/explain.js": "digits_cnn",
    "reflection.sh": "digits_cnn",
    "onnxplain_client.py": "mobilenet_v2",
}


def told(example: str, request: pytest.FixtureRequest, *arguments: str) -> subprocess.CompletedProcess[str]:
    line, env = command(example, request)
    return subprocess.run([*line, *arguments], cwd=ROOT, env=env, capture_output=True, text=True, timeout=SECONDS)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """Of a model: the lines that an example prints, from onnxruntime alone on the compiled file."""
    folder = tmp_path_factory.mktemp("graphs")

    def of(name: str) -> dict[str, list[str]]:
        path = folder / f"{name}.onnx"
        if not path.exists():
            main(["compile", str(MODELS / name), "-o", str(path)])
        x = sample(name)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        seed_name = next(entry.name for entry in session.get_inputs() if entry.name.endswith(".seed"))
        plain = onnxruntime.InferenceSession(
            str(MODELS / name / "1" / "model.onnx"), providers=["CPUExecutionProvider"]
        )
        scores = plain.run(None, {"input": x})[0]
        seed = np.zeros_like(scores)
        seed[0, scores[0].argmax()] = 1
        relevance = session.run(["input.relevance"], {"input": x, seed_name: seed})[0]
        return {
            "scores": line("scores", scores),
            "relevance": line("relevance", relevance),
            "strongest": [str(n) for n in np.argsort(-relevance.reshape(-1), kind="stable")[:3]],
            "index": [str(scores[0].argmax())],
        }

    return of


def line(what: str, array: np.ndarray) -> list[str]:
    return ["x".join(map(str, array.shape)), "sha256", hashlib.sha256(array.tobytes()).hexdigest()]


def sample(name: str) -> np.ndarray:
    if name == "digits_cnn":
        return np.load(MODELS / name / "samples" / "three.npy")
    settings = load_settings(MODELS / name / "model.toml").picture("input")
    return prepare(MODELS / name / "samples" / "chelsea.png", settings, (1, 3, 224, 224)).array


@pytest.mark.parametrize("example, model", EXAMPLE_MODELS.items())
def test_every_client_receives_the_bytes_of_onnxruntime(example, model, server, expected, request):
    found = told(example, request, server.address)
    assert found.returncode == 0, found.stderr
    lines = {words[0]: words[1:] for words in map(str.split, found.stdout.splitlines())}
    wanted = expected(model)
    assert lines["relevance"] == wanted["relevance"], found.stdout
    assert lines["strongest"] == wanted["strongest"]
    assert lines.get("scores", wanted["scores"]) == wanted["scores"]
    names = {"digits_cnn": wanted["index"], "mobilenet_v2": ["Egyptian", "Mau"]}[model]
    assert lines["class"] in (names, wanted["index"])


@pytest.mark.parametrize("example", EXAMPLE_MODELS)
def test_every_client_shows_the_line_of_an_error(example, server, request):
    found = told(example, request, server.address, "digits_cmm")
    said = found.stdout + found.stderr
    assert found.returncode != 0 and "Traceback" not in said
    assert "no model 'digits_cmm' here" in said and "digits_cnn" in said
    assert "not_found" in said.lower(), said


def test_the_commands_in_the_headers_name_the_files_there_are():
    """Every example is listed in the README and says how it is installed and run."""
    index = (EXAMPLES / "README.md").read_text()
    for example in EXAMPLE_MODELS:
        text = (EXAMPLES / example).read_text()
        assert example in index and "Install:" in text and "Run:" in text and Path(example).name in text


def test_reflection_lists_every_service(server):
    listed = subprocess.run(
        [environment("buf") / "bin" / "buf", "curl", "--protocol", "grpc", "--http2-prior-knowledge", "--list-methods",
         f"http://{server.address}"],
        capture_output=True, text=True, timeout=SECONDS, env={**PLAIN, "HOME": str(Path.home())},
    )  # fmt: skip
    assert listed.returncode == 0, listed.stderr
    for method in (
        "onnxplain.v1.ExplainerService/Explain", "inference.GRPCInferenceService/ModelInfer",
        "grpc.health.v1.Health/Check",
    ):  # fmt: skip
        assert method in listed.stdout


def test_the_committed_stubs_are_what_the_pinned_tools_make():
    """tests/wire/test_protos.py with a generator at hand: nothing of it is skipped."""
    python = environment("plain") / "bin" / "python"
    env = {
        **os.environ,
        "ONNXPLAIN_PROTOGEN": str(python),
        "PATH": f"{environment('buf') / 'bin'}:{os.environ['PATH']}",
    }
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", "tests/wire/test_protos.py"],
        cwd=ROOT, env=env, capture_output=True, text=True, timeout=SECONDS,
    )  # fmt: skip
    assert found.returncode == 0 and "skipped" not in found.stdout, found.stdout
