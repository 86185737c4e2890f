"""Laws of model repositories that fsspec reads: they offer what a folder would, and copy it whole or not at all.

A real S3 is in tests/clients.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
import uuid
from pathlib import Path

import fsspec
import pytest

from onnxplain.errors import InputError, OnnxplainError, Unavailable, UsageError
from onnxplain.sources import DirectorySource, Release, from_address
from onnxplain.sources import download as downloads
from onnxplain.sources.object_store import ObjectStore, StoredFile
from onnxplain.sources.remote import RESTED, RemoteSource

IRIS = Path(__file__).parents[2] / "models/iris_mlp/1/model.onnx"
TREE = {
    "net/1/model.onnx": IRIS.read_bytes(),
    "net/2/model.onnx": IRIS.read_bytes(),
    "net/10/model.onnx": IRIS.read_bytes(),
    "net/10/weights/a.bin": b"weights",
    "net/model.toml": b'[output]\nlabels = "texts/labels.txt"\n',
    "net/texts/labels.txt": b"a\nb\nc\n",
    "other/1/only.onnx": IRIS.read_bytes(),
    "two/1/a.onnx": b"a",
    "two/1/b.onnx": b"b",
    "bad.explain/1/model.onnx": b"x",
    ".hidden/1/model.onnx": b"x",
    "README": b"not a model",
}


class Place:
    """A repository that is written file by file, and its address."""

    def __init__(self, scheme: str, folder: Path):
        self.address = f"file://{folder}/store" if scheme == "file" else f"memory://{uuid.uuid4().hex}/models"
        self.system = fsspec.filesystem(scheme)
        self.root = self.address.partition("://")[2]

    def write(self, path: str, content: bytes) -> None:
        full = f"{self.root}/{path}"
        self.system.makedirs(full.rpartition("/")[0], exist_ok=True)
        with self.system.open(full, "wb") as stream:
            stream.write(content)

    def remove(self, path: str) -> None:
        self.system.rm(f"{self.root}/{path}", recursive=True)


@pytest.fixture(params=["file", "memory"])
def place(request, tmp_path):
    made = Place(request.param, tmp_path)
    for path, content in TREE.items():
        made.write(path, content)
    yield made
    if request.param == "memory":
        made.system.rm(made.root, recursive=True)


def source_of(place, tmp_path) -> RemoteSource:
    return RemoteSource(place.address, tmp_path / "cache")


def names(releases) -> list[tuple[str, str]]:
    return [(release.name, release.version) for release in releases]


@pytest.mark.parametrize("policy", [None, '"latest"', '"all"', "2", '["1", "10", "7"]'])
def test_it_offers_what_the_same_files_in_a_folder_would(policy, place, tmp_path):
    if policy is not None:
        place.write("net/model.toml", f"[serving]\nversions = {policy}\n".encode())
    folder = tmp_path / "folder"
    place.system.get(f"{place.root}/", f"{folder}/", recursive=True)
    remote, local = source_of(place, tmp_path), DirectorySource(folder)
    assert names(remote.releases()) == names(local.releases())
    assert set(remote.problems) == set(local.problems) == {"two", "bad.explain"}


def test_what_is_fetched_is_what_lies_there(place, tmp_path):
    source = source_of(place, tmp_path)
    releases = {release.name: release for release in source.releases()}
    model = source.fetch(releases["net"])
    assert (model.name, model.version, model.path.read_bytes()) == ("net", "10", IRIS.read_bytes())
    assert (model.path.parent / "weights/a.bin").read_bytes() == b"weights"
    assert Path(model.settings.output.labels).read_bytes() == b"a\nb\nc\n"
    copied = {file.name for file in tmp_path.joinpath("cache", model.path.parts[-4]).rglob("*") if file.is_file()}
    assert copied == {"model.onnx", "a.bin", "model.toml", "labels.txt"}  # no other version, nothing else
    assert source.fetch(releases["other"]).path.name == "only.onnx"


def test_a_release_is_copied_once_and_answers_when_the_store_does_not(place, tmp_path, monkeypatch):
    source = source_of(place, tmp_path)
    (release, *_) = source.releases()
    first = source.fetch(release)

    def down(*_):
        raise OSError("no route")

    monkeypatch.setattr(ObjectStore, "_find", down)
    monkeypatch.setattr(ObjectStore, "copy", down)
    assert source.fetch(release) == first
    assert RemoteSource(place.address, tmp_path / "cache").fetch(release) == first  # in another process as well
    with pytest.raises(Unavailable, match="no route") as error:
        source.releases()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "path", ["net/10/model.onnx", "net/10/weights/a.bin", "net/model.toml", "net/texts/labels.txt"]
)
def test_any_change_of_a_versions_files_is_another_release(path, place, tmp_path):
    source = source_of(place, tmp_path)
    before = {release.name: release.fingerprint for release in source.releases()}
    assert {release.name: release.fingerprint for release in source.releases()} == before
    time.sleep(0.02)
    place.write(path, TREE[path] + b"\n")
    source.releases()
    after = {release.name: release.fingerprint for release in source.releases()}
    assert after["net"] != before["net"] and after["other"] == before["other"]


def test_an_upload_waits_until_two_looks_agree_or_its_writer_says_that_it_is_done(place, tmp_path):
    source = source_of(place, tmp_path)
    before = source.releases()
    place.write("net/11/model.onnx", b"half")
    assert source.releases() == before
    time.sleep(0.02)
    place.write("net/11/model.onnx", IRIS.read_bytes())
    assert source.releases() == before
    assert ("net", "11") in names(source.releases())
    place.write("net/12/model.onnx", IRIS.read_bytes())
    place.write("net/12/.complete", b"")
    assert ("net", "12") in names(source.releases())


def test_what_rests_is_taken_at_the_first_look(tmp_path):
    place = Place("file", tmp_path)
    place.write("net/1/model.onnx", IRIS.read_bytes())
    source = source_of(place, tmp_path)
    source.releases()
    place.write("net/2/model.onnx", IRIS.read_bytes())
    past = time.time() - 2 * RESTED
    for file in Path(place.root).rglob("*.onnx"):
        os.utime(file, (past, past))
    assert names(source.releases()) == [("net", "2")]


def test_a_broken_model_toml_takes_no_model_away(place, tmp_path):
    source = source_of(place, tmp_path)
    before = source.releases()
    place.write("net/model.toml", b"[serving")
    assert source.releases() == before
    assert "net/model.toml" in source.problems["net"] and str(tmp_path) not in source.problems["net"]
    place.write("net/model.toml", b'description = "mended"\n')
    source.releases()
    assert set(source.problems) == {"two", "bad.explain"}


def test_a_place_with_nothing_in_it_is_an_error_and_not_the_end_of_all_models(place, tmp_path):
    source = source_of(place, tmp_path)
    source.releases()
    for name in {path.split("/")[0] for path in TREE}:
        place.remove(name)
    with pytest.raises(InputError, match=r"no model below it|no such"):
        source.releases()


def test_what_changes_between_look_and_copy_is_not_served(place, tmp_path, monkeypatch):
    source = source_of(place, tmp_path)
    release = source.releases()[0]
    copy = ObjectStore.copy

    def meanwhile(self, file, target, *until):
        copy(self, file, target, *until)
        place.write("net/10/weights/a.bin", b"another")

    monkeypatch.setattr(ObjectStore, "copy", meanwhile)
    with pytest.raises(OnnxplainError, match=r"changed meanwhile|bytes came"):
        source.fetch(release)
    assert not [entry for entry in (tmp_path / "cache").iterdir() if entry.name != "keys"]
    monkeypatch.undo()
    with pytest.raises(Unavailable, match="changed meanwhile"):  # the old fingerprint names nothing any more
        source.fetch(release)


def test_sums_beside_the_files_are_believed_over_the_files(place, tmp_path):
    def sums(**changed: bytes) -> bytes:
        files = {"model.onnx": IRIS.read_bytes(), "weights/a.bin": b"weights", **changed}
        return "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in files.items()).encode()

    place.write("net/10/SHA256SUMS", sums())
    source = source_of(place, tmp_path)
    assert source.fetch(source.releases()[0]).version == "10"
    wrong = {"model.onnx": b"x"}, {"missing.bin": b"x"}
    for content, says in ((sums(**wrong[0]), "is not what"), (sums(**wrong[1]), "is not there"), (b"??", "no line")):
        time.sleep(0.02)
        place.write("net/10/SHA256SUMS", content)
        source = source_of(place, tmp_path)
        with pytest.raises(InputError, match=says):
            source.fetch(source.releases()[0])


@pytest.mark.parametrize("name", ["../up", "a/../../b", "/etc/passwd", "a//b", "a\\b", "a\0b", ".", "a\nb", "x" * 300])
def test_a_name_that_leads_elsewhere_writes_nothing(name, tmp_path, monkeypatch):
    files = [StoredFile(path, 1, "m", 0.0) for path in ("net/1/model.onnx", f"net/1/{name}")]
    monkeypatch.setattr(ObjectStore, "list", lambda self, below="": {file.path: file for file in files})

    def copy(self, file, target, until):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(b"x")

    monkeypatch.setattr(ObjectStore, "copy", copy)
    source = RemoteSource("memory://x", tmp_path / "cache")
    (release,) = source.releases()
    with pytest.raises(InputError, match="no name of a file"):
        source.fetch(release)
    assert [entry.name for entry in tmp_path.iterdir()] == ["cache"]


@pytest.mark.parametrize(
    "info, says", [({"size": 3}, "more bytes"), ({"size": 9}, "fewer bytes"), ({"md5": "0"}, "md5")]
)
def test_bytes_that_are_not_those_announced_are_refused(info, says, tmp_path, monkeypatch):
    place = Place("memory", tmp_path)
    place.write("net/1/model.onnx", b"12345")
    listing = ObjectStore.list

    def other(self, below=""):
        found = listing(self, below)
        return {p: StoredFile(p, info.get("size", 5), "m", 0.0, info.get("md5", "")) for p in found}

    monkeypatch.setattr(ObjectStore, "list", other)
    source = source_of(place, tmp_path)
    with pytest.raises(InputError, match=says):
        source.fetch(source.releases()[0])


def test_a_model_of_too_many_bytes_is_not_copied(place, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "BYTES", 100)
    source = source_of(place, tmp_path)
    with pytest.raises(InputError, match="100 at most"):
        source.fetch(source.releases()[0])


def test_the_time_of_a_release_ends_in_the_middle_of_a_file_too(place, tmp_path):
    place.write("net/1/model.onnx", b"0" * 100)
    store = ObjectStore(place.address)
    file = store.list()["net/1/model.onnx"]
    with pytest.raises(Unavailable, match=r"net/1/model\.onnx is not here in time"):
        store.copy(file, tmp_path / "late", time.monotonic() - 1)
    store.copy(file, tmp_path / "whole", time.monotonic() + 60)
    assert (tmp_path / "whole").read_bytes() == b"0" * 100


def test_no_thread_sees_a_store_whose_root_is_not_known_yet(place):
    """Else it would look below "/", where nothing of ours is: a miss of a graph cache, and an entry written there."""
    seen = []

    class Watching(ObjectStore):
        def __setattr__(self, name, value):
            if name == "_system" and value is not None:
                seen.append(self._root)
            super().__setattr__(name, value)

    store = Watching(place.address)
    store.list()
    assert seen == [store._root] and seen != [""]


def test_links_of_a_shared_folder_are_refused_and_only_where_they_are(tmp_path):
    place = Place("file", tmp_path)
    for path, content in TREE.items():
        place.write(path, content)
    (tmp_path / "secret").write_bytes(b"secret")
    (Path(place.root) / "net/10/link.bin").symlink_to(tmp_path / "secret")
    source = source_of(place, tmp_path)
    assert names(source.releases()) == [("other", "1")] and "link" in source.problems["net"]


def test_a_store_that_hangs_is_unavailable_in_bounded_time(place, tmp_path, monkeypatch):
    source = RemoteSource(place.address, tmp_path / "cache", seconds=0.2)
    monkeypatch.setattr(ObjectStore, "_find", lambda self, below: time.sleep(3))
    begun = time.monotonic()
    with pytest.raises(Unavailable, match=r"no answer within 0\.2 s"):
        source.releases()
    assert time.monotonic() - begun < 2


@pytest.mark.parametrize("scheme, package", [("s3", "onnxplain[s3]"), ("gs", "onnxplain[gs]"), ("az", "onnxplain[az]")])
def test_without_its_library_the_error_says_what_to_install(scheme, package, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.import_module", lambda name: (_ for _ in ()).throw(ImportError(f"no {name}")))
    with pytest.raises(UsageError) as error:
        from_address(f"{scheme}://bucket/models", tmp_path).releases()
    assert f"pip install '{package}'" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "address",
    [
        "s3://",
        "s3:///",
        "file://models/x",
        "s3://key:secret@bucket/x",
        "s3://b/x?endpoint_url=http://h",
        "s3://b::file://x",
    ],
)
def test_an_address_names_one_place_and_no_secret(address, tmp_path):
    with pytest.raises(UsageError) as error:
        from_address(address, tmp_path)
    assert "secret" not in str(error.value) and "\n" not in str(error.value)


def test_a_version_that_went_is_not_fetched(place, tmp_path):
    source = source_of(place, tmp_path)
    source.releases()
    with pytest.raises(Unavailable, match="changed meanwhile"):
        source.fetch(Release("net", "99", "x"))


def test_a_shared_folder_is_copied_and_not_opened_in_place(tmp_path):
    place = Place("file", tmp_path)
    place.write("net/1/model.onnx", IRIS.read_bytes())
    source = source_of(place, tmp_path)
    model = source.fetch(source.releases()[0])
    shutil.rmtree(place.root)
    assert model.path.read_bytes() == IRIS.read_bytes() and model.path.is_relative_to(tmp_path / "cache")
