"""`onnxplain health` finds the server that its environment starts, whatever its port and its certificates."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from certificates import authority, signed, signed_by_itself
from running import running_server

from onnxplain.cli.health import HealthTarget, own_server
from onnxplain.errors import InputError, OnnxplainError, Unavailable, UsageError

IRIS = Path(__file__).parents[2] / "models/iris_mlp/1/model.onnx"
BOTH = {"ONNXPLAIN_TLS_CERT": "c.pem", "ONNXPLAIN_TLS_CA": "ca.pem"}


def asked(**environment: str) -> subprocess.CompletedProcess[str]:
    """In a process whose environment has nothing else of ours."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ONNXPLAIN_")}
    command = [sys.executable, "-m", "onnxplain", "health"]
    return subprocess.run(command, env={**clean, **environment}, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "environment, address",
    [
        ({}, "127.0.0.1:8001"),
        ({"ONNXPLAIN_PORT": "9000"}, "127.0.0.1:9000"),
        ({"ONNXPLAIN_HOST": "0.0.0.0", "ONNXPLAIN_PORT": "9000"}, "127.0.0.1:9000"),
        ({"ONNXPLAIN_HOST": "::"}, "[::1]:8001"),
        ({"ONNXPLAIN_HOST": "10.0.0.7"}, "10.0.0.7:8001"),
    ],
)
def test_the_address_is_the_environments(environment, address):
    assert own_server(environment, 1) == HealthTarget(address)


def test_health_without_an_address_asks_the_environments_port():
    with running_server(IRIS) as server:
        found = asked(ONNXPLAIN_PORT=str(server.port))
        assert (found.returncode, found.stdout) == (0, "SERVING\n"), found.stderr
    found = asked(ONNXPLAIN_PORT=str(server.port))
    assert found.returncode == 4 and found.stderr.count("\n") == 1


@pytest.mark.parametrize("names", [("example.org",), ("*.example.org",), ("10.1.2.3",), ("localhost", "127.0.0.1")])
def test_health_believes_the_servers_own_certificate_by_any_name(names, tmp_path):
    root = authority()
    cert, key = signed(root, *names).write(tmp_path, "server")
    environment = {"ONNXPLAIN_TLS_CERT": str(cert), "ONNXPLAIN_TLS_KEY": str(key)}
    with running_server(IRIS, env=environment, wait=False) as server:
        found = until_serving(ONNXPLAIN_PORT=str(server.port), **environment)
        assert found.stdout == "SERVING\n", found.stderr
        other, _ = signed(root, *names).write(tmp_path, "other")
        assert asked(ONNXPLAIN_PORT=str(server.port), ONNXPLAIN_TLS_CERT=str(other)).returncode == 4
        assert asked(ONNXPLAIN_PORT=str(server.port)).returncode == 4  # in plain text


def test_health_believes_a_certificate_that_signed_itself(tmp_path):
    cert, key = signed_by_itself("example.org").write(tmp_path, "server")
    environment = {"ONNXPLAIN_TLS_CERT": str(cert), "ONNXPLAIN_TLS_KEY": str(key)}
    with running_server(IRIS, env=environment, wait=False) as server:
        found = until_serving(ONNXPLAIN_PORT=str(server.port), **environment)
        assert found.stdout == "SERVING\n", found.stderr


def until_serving(**environment: str) -> subprocess.CompletedProcess[str]:
    for _ in range(15):
        found = asked(**environment)
        if found.returncode == 0:
            break
    return found


def test_where_clients_need_certificates_health_shows_the_servers_or_one_of_its_own(tmp_path):
    root, strangers = authority(), authority("strangers")
    ca, _ = root.write(tmp_path, "ca")
    cert, key = signed(root, "example.org").write(tmp_path, "server")
    bad, bad_key = signed(strangers, "probe").write(tmp_path, "bad")
    good, good_key = signed(root, "probe").write(tmp_path, "good")
    environment = {"ONNXPLAIN_TLS_CERT": cert, "ONNXPLAIN_TLS_KEY": key, "ONNXPLAIN_TLS_CA": ca}
    environment = {name: str(path) for name, path in environment.items()}
    with running_server(IRIS, env=environment, wait=False) as server:
        environment["ONNXPLAIN_PORT"] = str(server.port)
        assert until_serving(**environment).stdout == "SERVING\n"
        shown = {"ONNXPLAIN_HEALTH_TLS_CERT": str(good), "ONNXPLAIN_HEALTH_TLS_KEY": str(good_key)}
        assert asked(**environment, **shown).stdout == "SERVING\n"
        shown = {"ONNXPLAIN_HEALTH_TLS_CERT": str(bad), "ONNXPLAIN_HEALTH_TLS_KEY": str(bad_key)}
        refused = asked(**environment, **shown)
        assert refused.returncode == 4 and "ONNXPLAIN_HEALTH_TLS_CERT" in refused.stderr


@pytest.mark.parametrize("environment", [BOTH, BOTH | {"ONNXPLAIN_HEALTH_TLS_CERT": "h.pem"}])
def test_half_a_pair_is_one_line(environment):
    with pytest.raises(UsageError, match="go together"):
        own_server(environment, 1)


def test_a_certificate_that_is_missing_or_a_port_where_nobody_listens_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"no\.pem"):
        own_server({"ONNXPLAIN_TLS_CERT": str(tmp_path / "no.pem")}, 1)
    cert, _ = authority().write(tmp_path, "c")
    with pytest.raises(Unavailable) as error:
        own_server({"ONNXPLAIN_TLS_CERT": str(cert), "ONNXPLAIN_PORT": "1"}, 1)
    assert "\n" not in str(error.value)
    with pytest.raises(OnnxplainError):
        HealthTarget("h:1", tmp_path / "none.pem").channel()
    assert isinstance(HealthTarget("h:1").channel(), grpc.Channel)
