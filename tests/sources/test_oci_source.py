"""Laws of models in container registries: what an address names, what a manifest may say, what bytes are believed.

The registry is a dictionary here; a real one is in tests/clients.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from onnxplain.errors import InputError, NotFound, OnnxplainError, Unavailable, UsageError
from onnxplain.sources import from_address
from onnxplain.sources.oci import NUMBER, TITLE, UNPACK, OciSource, layers_of
from onnxplain.sources.oci_registry import DIGEST

IRIS = (Path(__file__).parents[2] / "models/iris_mlp/1/model.onnx").read_bytes()
SETTINGS = b'[output]\nlabels = "labels.txt"\n'
FILES = {"model.onnx": IRIS, "model.toml": SETTINGS, "labels.txt": b"a\nb\nc\n"}


def sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


class Registry:
    """Manifests and blobs, as `OciRegistry` gives them."""

    def __init__(self):
        self.tags: dict[str, str] = {}
        self.content: dict[str, bytes] = {}
        self.asked = 0

    def push(self, tag: str, files=FILES, number: str | None = None) -> str:
        layers = [
            {
                "mediaType": "application/octet-stream",
                "digest": sha256(data),
                "size": len(data),
                "annotations": {TITLE: name},
            }
            for name, data in files.items()
        ]
        manifest = {"schemaVersion": 2, "layers": layers, "annotations": {NUMBER: number} if number else None}
        text = json.dumps(manifest).encode()
        self.content |= {sha256(data): data for data in files.values()} | {sha256(text): text}
        self.tags[tag] = sha256(text)
        return sha256(text)

    def manifest(self, reference: str):
        self.asked += 1
        digest = self.tags.get(reference, reference)
        if digest not in self.content:
            raise NotFound(f"no {reference}")
        return digest, json.loads(self.content[digest])

    def blob(self, digest: str):
        content = self.content[digest]
        return iter([content[:7], content[7:]])


@pytest.fixture
def registry():
    return Registry()


def source_of(registry, reference: str, folder: Path) -> OciSource:
    source = OciSource(f"oci://127.0.0.1:1/team/net{reference}", folder / "cache")
    source._registry = registry
    return source


@pytest.mark.parametrize(
    "tag, number, version, aliases",
    [
        ("3", None, "3", ()),
        ("prod", None, "1", ("prod",)),
        ("prod", "7", "7", ("prod",)),
        ("v1.2", "x", "1", ("v1.2",)),
    ],
)
def test_the_version_is_the_annotation_or_the_tag_if_they_are_numbers(
    tag, number, version, aliases, registry, tmp_path
):
    registry.push(tag, number=number)
    (release,) = source_of(registry, f":{tag}", tmp_path).releases()
    assert (release.name, release.version, release.aliases) == ("net", version, aliases)


def test_a_tag_that_moves_is_another_release_and_one_that_stays_is_the_same(registry, tmp_path):
    first = registry.push("prod")
    source = source_of(registry, ":prod", tmp_path)
    (before,) = source.releases()
    assert before.fingerprint == first and source.releases() == [before]
    registry.push("prod", {"model.onnx": IRIS})
    (after,) = source.releases()
    assert after.fingerprint != first
    assert source.fetch(after).settings.output.labels is None


def test_a_digest_is_asked_for_once(registry, tmp_path):
    digest = registry.push("3")
    source = source_of(registry, f"@{digest}", tmp_path)
    assert source.releases() == source.releases() and registry.asked == 1
    assert source.releases()[0].fingerprint == digest


def test_a_registry_that_drips_is_left_when_the_time_of_a_release_is_over(registry, tmp_path):
    registry.push("3")
    source = source_of(registry, ":3", tmp_path)
    source._download_seconds = -1.0
    with pytest.raises(Unavailable, match="is not here in time"):
        source.fetch(source.releases()[0])


def test_what_is_fetched_is_what_was_pushed_and_the_cache_answers_when_the_registry_is_gone(registry, tmp_path):
    registry.push("3")
    source = source_of(registry, ":3", tmp_path)
    (release,) = source.releases()
    model = source.fetch(release)
    assert (model.name, model.version, model.path.read_bytes()) == ("net", "3", IRIS)
    assert Path(model.settings.output.labels).read_bytes() == FILES["labels.txt"]
    registry.content.clear()
    assert source.fetch(release) == model


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data + b"x", lambda data: b"X" + data[1:]])
def test_bytes_that_are_not_those_of_the_digest_are_refused(damage, registry, tmp_path):
    registry.push("3")
    registry.content[sha256(IRIS)] = damage(IRIS)
    source = source_of(registry, ":3", tmp_path)
    with pytest.raises(InputError, match=r"model\.onnx"):
        source.fetch(source.releases()[0])
    assert not [entry for entry in (tmp_path / "cache").iterdir() if entry.name != "keys"]


def layer(**changed) -> dict:
    entry = {"mediaType": "x", "digest": sha256(b"x"), "size": 1, "annotations": {TITLE: "model.onnx"}}
    return entry | changed


@pytest.mark.parametrize(
    "manifest, says",
    [
        ({"manifests": []}, "index"),
        ({}, "no layers"),
        ({"layers": {}}, "no layers"),
        ({"layers": ["x"]}, "no digest"),
        ({"layers": [layer(digest="md5:x")]}, "no digest"),
        ({"layers": [layer(size=-1)]}, "no digest"),
        ({"layers": [layer(size="1")]}, "no digest"),
        ({"layers": [layer(size=2**60)]}, "at most"),
        ({"layers": [layer(annotations=None)]}, "no title"),
        ({"layers": [layer(annotations={TITLE: "w", UNPACK: "true"})]}, "archive"),
        ({"layers": [layer(mediaType="application/vnd.oci.image.layer.v1.tar+gzip")]}, "archive"),
        ({"layers": [layer(), layer(annotations={TITLE: "Model.onnx"})]}, "two layers"),
        ({"layers": [layer(annotations={TITLE: f"w{n}"}) for n in range(2000)]}, "files"),
        *(
            ({"layers": [layer(annotations={TITLE: name})]}, "no name of a file")
            for name in ("../model.onnx", "/etc/passwd", "a/../../b", "a\\b", "a\0b", "", ".", "a//b")
        ),
    ],
)
def test_a_manifest_that_is_no_models_is_one_line(manifest, says):
    with pytest.raises(InputError, match=says) as error:
        layers_of(manifest, "oci://h/net:1")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "address",
    [
        "oci://h/net",
        "oci://h/net:1@sha256:" + "0" * 64,
        "oci://h/net@sha256:00",
        "oci://h/net@md5:" + "0" * 64,
        "oci:///net:1",
        "oci://h/:1",
        "oci://h/../net:1",
        "oci://h/Net:1",
        "oci://h/net.explain:1",
        "oci://h/net:a b",
        "oci://h/net:1?x=y",
    ],
)
def test_an_address_that_names_no_artifact_is_refused_in_one_line(address, tmp_path):
    with pytest.raises(UsageError) as error:
        from_address(address, tmp_path)
    assert "\n" not in str(error.value)


def test_without_oras_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.import_module", lambda name: (_ for _ in ()).throw(ImportError(f"no {name}")))
    with pytest.raises(UsageError, match=r"pip install 'onnxplain\[oci\]'"):
        from_address("oci://127.0.0.1:1/net:1", tmp_path).releases()


def test_an_artifact_without_a_model_is_refused(registry, tmp_path):
    registry.push("3", {"labels.txt": b"a\n"})
    source = source_of(registry, ":3", tmp_path)
    with pytest.raises(OnnxplainError, match="no version"):
        source.fetch(source.releases()[0])


def test_a_digest_is_sha256_in_hex():
    assert DIGEST.fullmatch(sha256(b"")) and not DIGEST.fullmatch("sha256:" + "G" * 64)
