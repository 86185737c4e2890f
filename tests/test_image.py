"""The container image: what it installs is what the project asks for, and what it says fits the command line."""

from __future__ import annotations

import fnmatch
import importlib.util
import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from onnxplain.cli import COMMANDS
from onnxplain.cli.health import health, own_server
from onnxplain.cli.serve import serve
from onnxplain.server.options import ServerOptions

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def script(name: str):
    """A module of container/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "container" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


STEPS = script("without_daemon").steps((ROOT / "Dockerfile").read_text())
LAST = STEPS[max(n for n, (word, _) in enumerate(STEPS) if word == "FROM") :]  # the stage that is shipped
ENV = dict(pair.partition("=")[::2] for word, rest in LAST if word == "ENV" for pair in rest.split())


def said(word: str) -> str:
    (found,) = [rest for name, rest in LAST if name == word]
    return found


def projects(requirements: list[str]) -> set[str]:
    return {re.match(r"[\w.-]+", text)[0] for text in requirements}


@pytest.mark.parametrize("runtime, other", [("cpu", "onnxruntime-gpu"), ("gpu", "onnxruntime")])
def test_the_image_installs_what_the_project_asks_for_with_one_onnxruntime(runtime, other):
    listed = script("requirements").requirements(runtime, [])
    assert projects(listed) == projects(PROJECT["dependencies"]) - {other}
    asked = {text.partition(";")[0].strip() for text in PROJECT["dependencies"]}
    assert set(listed) < asked and len(listed) == len(asked) - 1  # the same versions, and no markers


@pytest.mark.parametrize("extra", ["s3", "oci", "mlflow", "telemetry"])
def test_extras_can_be_added_to_the_image(extra):
    listed = script("requirements").requirements("cpu", [extra])
    assert set(PROJECT["optional-dependencies"][extra]) <= set(listed)


@pytest.mark.parametrize("arguments", [["tpu"], ["cpu", "nothing"]])
def test_an_unknown_runtime_or_extra_is_one_line(arguments):
    command = [sys.executable, str(ROOT / "container/requirements.py"), *arguments]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 1 and found.stderr.count("\n") == 1


def test_ports_that_the_image_exposes_are_those_that_it_listens_on():
    options = ServerOptions(host="127.0.0.1")
    (http,) = [parameter.default for parameter in serve.params if parameter.name == "http_port"]
    listens = {options.port, options.metrics_port, http}
    assert {int(port) for port in said("EXPOSE").split()} == listens


def test_the_image_starts_a_server_that_its_health_check_finds(monkeypatch):
    for name, value in ENV.items():
        if name.startswith("ONNXPLAIN_"):
            monkeypatch.setenv(name, value)
    assert json.loads(said("ENTRYPOINT")) == ["onnxplain"]
    command, *words = json.loads(said("CMD"))
    assert command == "serve" and command in COMMANDS
    given = serve.make_context(command, words).params
    options = ServerOptions(**{name: given[name] for name in ("host", "port", "insecure", "metrics_port")})
    assert options.insecure and not options.loopback
    parts = shlex.split(said("HEALTHCHECK").partition("CMD ")[2].translate(str.maketrans("[],", "   ")))
    assert parts[:2] == ["onnxplain", "health"] and health.make_context("health", parts[2:])
    assert own_server(ENV, 1).address == f"127.0.0.1:{options.port}"
    assert own_server({**ENV, "ONNXPLAIN_PORT": "9"}, 1).address == "127.0.0.1:9"


def test_a_certificate_in_the_environment_is_enough_for_tls(monkeypatch, tmp_path):
    for name, value in {**ENV, "ONNXPLAIN_TLS_CERT": "c.pem", "ONNXPLAIN_TLS_KEY": "k.pem"}.items():
        if name.startswith("ONNXPLAIN_"):
            monkeypatch.setenv(name, value)
    given = serve.make_context("serve", json.loads(said("CMD"))[1:]).params
    assert given["tls_cert"] and given["insecure"]  # the environment's, which describes a machine: not refused


def test_nothing_runs_as_root():
    assert int(said("USER")) == 10001
    assert any(word == "RUN" and "--uid 10001" in rest for word, rest in LAST)


def test_the_context_has_all_that_is_copied():
    rules = (ROOT / ".dockerignore").read_text().split()
    copied = [rest.split()[:-1] for word, rest in STEPS if word == "COPY" and "--from" not in rest]
    for source in (source for sources in copied for source in sources):
        assert (ROOT / source).exists() and any(fnmatch.fnmatch(f"!{source}", rule) for rule in rules), source


def test_slimming_takes_tests_stubs_and_sources_and_nothing_that_runs(tmp_path):
    packages = tmp_path / "lib/python3.13/site-packages"
    kept = ["a/__init__.py", "a/code.so", "a/LICENSE", "a-1.dist-info/METADATA", "onnx/backend/base.py", "a/data.json"]
    goes = ["a/tests/test_x.py", "a/tests/deep/tests/data.bin", "a/x.pyi", "a/x.h", "onnx/backend/test/data/a.onnx"]
    for name in (*kept, *goes):
        (packages / name).parent.mkdir(parents=True, exist_ok=True)
        (packages / name).write_bytes(b"x" * 10)
    gone = script("slim").slim(tmp_path)
    assert {file.relative_to(packages).as_posix() for file in packages.rglob("*") if file.is_file()} == set(kept)
    assert sum(gone.values()) == 10 * len(goes)
