"""A real S3 protocol and a real container registry: what is served from them, what happens when they move or fail."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path

import pytest

pytest.importorskip("s3fs", reason="run tests/clients/install remote, then its python")
pytest.importorskip("oras", reason="run tests/clients/install remote, then its python")

import numpy as np
import oras.client
import s3fs
from running import running_server

from onnxplain.client import Client
from onnxplain.errors import InputError, NotFound, OnnxplainError, Unavailable
from onnxplain.sources import from_address

from . import remote_stores

pytestmark = [pytest.mark.clients, pytest.mark.timeout(300)]
MODELS = Path(__file__).parents[2] / "models"
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
X = np.random.default_rng(0).random((1, 4), np.float32)


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A bucket with iris_mlp; yields the file system. Our side finds it by Amazon's own variables."""
    with remote_stores.s3(tmp_path) as address:
        for name, value in {**KEYS, "AWS_ENDPOINT_URL": address}.items():
            monkeypatch.setenv(name, value)
        system = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
        system.mkdir("bucket")
        system.put(str(MODELS / "iris_mlp"), "bucket/models/iris_mlp", recursive=True)
        yield system


def test_a_server_answers_from_s3_and_follows_what_is_uploaded(store, tmp_path):
    options = ("--registry", "s3://bucket/models", "--cache", tmp_path / "cache", "--poll-seconds", "0.3")
    with running_server(*options) as server, Client(server.address) as client:
        first = client.explain("iris_mlp", X)
        assert first.version == "1"
        store.put(str(MODELS / "iris_mlp/1/model.onnx"), "bucket/models/iris_mlp/2/model.onnx")
        until = time.monotonic() + 30
        while client.explain("iris_mlp", X).version != "2":
            assert time.monotonic() < until
            time.sleep(0.1)


def test_what_s3_holds_is_what_is_fetched(store, tmp_path):
    source = from_address("s3://bucket/models", tmp_path / "cache")
    (release,) = source.releases()
    assert source.releases() == [release]
    assert source.fetch(release).path.read_bytes() == (MODELS / "iris_mlp/1/model.onnx").read_bytes()
    store.pipe_file("bucket/models/iris_mlp/1/model.onnx", (MODELS / "digits_cnn/1/model.onnx").read_bytes())
    source.releases()
    (after,) = source.releases()
    assert after.fingerprint != release.fingerprint
    assert source.fetch(after).path.read_bytes() == (MODELS / "digits_cnn/1/model.onnx").read_bytes()
    store.pipe_file("bucket/models/iris_mlp/../../up/1/model.onnx", b"x")  # an object may have any name
    assert [found.name for found in source.releases()] == ["iris_mlp"]


def test_errors_of_s3_are_one_line_that_says_what_to_set(store, tmp_path, monkeypatch):
    for address in ("s3://nowhere/models", "s3://bucket/empty"):
        with pytest.raises(InputError) as error:
            from_address(address, tmp_path / "cache").releases()
        assert "\n" not in str(error.value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(Unavailable, match="AWS_ENDPOINT_URL") as error:
        from_address(
            "s3://bucket/models",
            tmp_path / "cache",
        ).releases()
    assert "\n" not in str(error.value)


def push(registry: str, tag: str, files: list[str], **more) -> str:
    """By oras' own client, as a user would; returns the address."""
    client = oras.client.OrasClient(insecure=True, **more)
    if more:
        client.login(username="me", password="secret", hostname=registry)
    client.push(target=f"{registry}/team/iris:{tag}", files=files, disable_path_validation=True)
    return f"oci://{registry}/team/iris:{tag}"


@pytest.fixture
def beside(tmp_path, monkeypatch):
    """In a folder with model.onnx and model.toml, and a home of its own."""
    for name in ("1/model.onnx", "model.toml"):
        content = (MODELS / "iris_mlp" / name).read_bytes()
        (tmp_path / Path(name).name).write_bytes(content)
    for file in (MODELS / "iris_mlp").glob("*.txt"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return sorted(file.name for file in tmp_path.iterdir() if file.suffix in (".onnx", ".toml", ".txt"))


def test_a_server_answers_from_a_container_registry_and_follows_its_tag(beside, tmp_path):
    with remote_stores.oci(tmp_path) as registry:
        address = push(registry, "prod", beside)
        options = ("--registry", address, "--cache", tmp_path / "cache", "--poll-seconds", "0.3")
        with running_server(*options) as server, Client(server.address) as client:
            first = client.explain("iris", X)
            assert first.version == "1"
            Path("model.onnx").write_bytes((MODELS / "digits_cnn/1/model.onnx").read_bytes())
            push(registry, "prod", ["model.onnx"])
            until = time.monotonic() + 30
            while not answers(server.address, np.zeros((1, 1, 28, 28), np.float32)):
                assert time.monotonic() < until
                time.sleep(0.1)


def answers(address: str, x: np.ndarray) -> bool:
    """Whether the model takes such an input now; a client remembers what a model looks like, so each time a new one."""
    try:
        with Client(address) as client:
            client.explain("iris", x)
    except OnnxplainError:
        return False
    return True


def test_an_artifact_of_a_digest_is_what_was_pushed(beside, tmp_path):
    with remote_stores.oci(tmp_path) as registry:
        address = push(registry, "3", beside)
        tagged = from_address(address, tmp_path / "cache")
        (release,) = tagged.releases()
        assert (release.name, release.version) == ("iris", "3")
        pinned = from_address(f"{address.removesuffix(':3')}@{release.fingerprint}", tmp_path / "other")
        (same,) = pinned.releases()
        assert pinned.fetch(same).path.read_bytes() == Path("model.onnx").read_bytes()
        with pytest.raises(NotFound, match="has no 4"):
            from_address(f"{address.removesuffix(':3')}:4", tmp_path / "cache").releases()
    with pytest.raises(Unavailable):
        tagged.releases()
    assert pinned.fetch(same).version == "1"


def test_a_registry_with_a_password_says_how_to_sign_in(beside, tmp_path, monkeypatch):
    bcrypt = pytest.importorskip("bcrypt")
    line = f"me:{bcrypt.hashpw(b'secret', bcrypt.gensalt(4)).decode()}"
    with remote_stores.oci(tmp_path, line) as registry:
        address = push(registry, "3", beside, auth_backend="basic")
        Path(".docker/config.json").unlink(missing_ok=True)
        with pytest.raises(Unavailable, match="docker login"):
            from_address(address, tmp_path / "cache").releases()
        (tmp_path / "docker").mkdir()
        auth = base64.b64encode(b"me:secret").decode()
        (tmp_path / "docker/config.json").write_text(json.dumps({"auths": {registry: {"auth": auth}}}))
        monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
        source = from_address(address, tmp_path / "cache")
        assert source.fetch(source.releases()[0]).name == "iris"
