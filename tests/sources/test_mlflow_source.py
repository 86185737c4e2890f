"""Laws of models from MLflow: what an address asks for, what is served when things move or break.

The last part speaks to a fake registry over HTTP and needs MLflow's client; a real server is in tests/clients.
"""

from __future__ import annotations

import contextlib
import http.server
import importlib.util
import json
import threading
import time
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from onnxplain.errors import InputError, NotFound, OnnxplainError, Unavailable, UsageError
from onnxplain.sources import mlflow_process
from onnxplain.sources.mlflow import MlflowSource, Wanted, opened
from onnxplain.sources.mlflow_agent import AgentError, about, check_place, member, reason
from onnxplain.sources.remembered import RememberingSource
from onnxplain.sources.source import Release

IRIS = (Path(__file__).parents[2] / "models/iris_mlp/1/model.onnx").read_bytes()
PLAIN = {"onnx": "model.onnx", "recipe": None, "settings": None, "graph": None, "sha256": {}}
needs_client = pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="needs mlflow-skinny")


# --- addresses


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("clf@champion", Wanted("clf", alias="champion")),
        ("clf/3", Wanted("clf", "3")),
        ("clf/latest", Wanted("clf")),
        ("clf", Wanted("clf")),
        ("models:/clf/3", Wanted("clf", "3")),
        ("models:/clf@champion", Wanted("clf", alias="champion")),
        ("models:/clf/latest", Wanted("clf")),
    ],
)
def test_an_entry_is_a_version_an_alias_or_the_newest(text, wanted):
    assert Wanted.of(text) == wanted


@pytest.mark.parametrize(
    "text", ["", "@a", "clf@", "clf/0", "clf/-1", "clf/one", "../x/1", "a b@c", "clf@a/b", "m/1/2"]
)
def test_an_entry_that_is_none_of_these_says_what_to_write(text):
    with pytest.raises(UsageError, match="NAME@ALIAS"):
        Wanted.of(text)


def test_a_bare_name_takes_the_alias_of_the_address_and_latest_does_not():
    assert Wanted.of("clf", "champion") == Wanted("clf", alias="champion")
    assert Wanted.of("clf/latest", "champion") == Wanted("clf")


@pytest.mark.parametrize(
    "uri, says",
    [
        ("mlflow+http://h:5000", "Write mlflow"),
        ("mlflow+ftp://h?model=a", "is no MLflow registry"),
        ("http://h?model=a", "is no MLflow registry"),
        ("mlflow+http://?model=a", "is no MLflow registry"),
        ("mlflow+http://me:secret@h?model=a", "MLFLOW_TRACKING_TOKEN"),
        ("mlflow+http://h?modle=a", "Did you mean model"),
        ("mlflow+http://h?alias=a&alias=b", "alias="),
    ],
)
def test_an_address_that_asks_for_nothing_clear_is_refused_in_one_line(uri, says, tmp_path):
    with pytest.raises(UsageError, match=says) as caught:
        MlflowSource(uri, tmp_path)
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)


# --- what the registry says now; the agent is replaced by a dictionary


class Registry:
    """Answers as the agent does."""

    def __init__(self):
        self.models = {"clf": {"champion": "1"}, "other": {}}
        self.versions = {("clf", "1"): "READY", ("clf", "2"): "READY", ("other", "3"): "READY"}
        self.down = False

    def ask(self, request, seconds, watch):
        do, name = request["do"], request.get("name")
        if self.down:
            return {"kind": "down", "text": "nobody listens there"}
        if do == "names":
            return {"ok": [name for name, aliases in self.models.items() if request["alias"] in aliases]}
        if name not in self.models:
            return {"kind": "missing", "text": "there is none"}
        if do == "model":
            return {"ok": {"aliases": dict(self.models[name])}}
        version = request["version"] or max(v for n, v in self.versions if n == name)
        if (name, version) not in self.versions:
            return {"kind": "missing", "text": "there is none"}
        if do == "version":
            identity = f"m-{version} models:/m-{version} 0"
            return {"ok": {"version": version, "status": self.versions[name, version], "identity": identity}}
        (Path(request["folder"]) / "model.onnx").write_bytes(IRIS)
        return {"ok": PLAIN}

    def stop(self):
        pass


@pytest.fixture
def registry():
    return Registry()


def source_of(registry, query, folder) -> MlflowSource:
    source = MlflowSource(f"mlflow+http://127.0.0.1:1?{query}", folder)
    source._process = registry
    return source


def test_releases_are_versions_with_the_aliases_that_point_to_them(registry, tmp_path):
    registry.models["clf"] |= {"champion": "1", "old": "1", "next": "2"}
    source = source_of(registry, "model=clf@champion&model=clf/2&model=clf@old&model=other", tmp_path)
    found = [(r.name, r.version, r.aliases) for r in source.releases()]
    assert found == [("clf", "1", ("champion", "old")), ("clf", "2", ("next",)), ("other", "3", ())]


def test_an_alias_that_moves_is_another_release_and_one_that_stays_is_the_same(registry, tmp_path):
    source = source_of(registry, "model=clf@champion", tmp_path)
    first = source.releases()
    assert source.releases() == first
    registry.models["clf"]["champion"] = "2"
    (moved,) = source.releases()
    assert moved.version == "2" and moved.fingerprint != first[0].fingerprint


def test_an_alias_alone_asks_for_every_model_that_has_it(registry, tmp_path):
    source = source_of(registry, "alias=champion", tmp_path)
    assert [r.name for r in source.releases()] == ["clf"]
    registry.models["other"]["champion"] = "3"
    registry.models["no name of ours"] = {"champion": "1"}
    assert [(r.name, r.version) for r in source.releases()] == [("clf", "1"), ("other", "3")]
    assert "no name of ours" in next(iter(source.problems.values()))


def test_an_entry_that_never_resolved_is_an_error_and_one_that_did_stays_what_it_was(registry, tmp_path):
    with pytest.raises(NotFound, match=r"no alias 'chapion'\. It has champion"):
        source_of(registry, "model=clf@chapion", tmp_path).releases()
    with pytest.raises(NotFound, match="models:/third/latest"):
        source_of(registry, "model=third", tmp_path).releases()
    source = source_of(registry, "model=clf@champion&model=other/3", tmp_path)
    before = source.releases()
    registry.models["clf"].clear()
    after = source.releases()
    assert [(r.name, r.version, r.fingerprint) for r in after] == [(r.name, r.version, r.fingerprint) for r in before]
    assert "Version 1 stays" in next(iter(source.problems.values()))
    registry.models["clf"]["champion"] = "1"
    assert source.releases() == before and not source.problems


def test_a_release_that_is_remembered_is_fetched_while_the_registry_is_down(registry, tmp_path):
    address = "mlflow+http://127.0.0.1:1?model=clf@champion"
    first = RememberingSource(source_of(registry, "model=clf@champion", tmp_path), address, tmp_path)
    released = first.releases()
    first.fetch(released[0])
    first.remember(released)
    registry.down = True
    again = RememberingSource(source_of(registry, "model=clf@champion", tmp_path), address, tmp_path)
    with pytest.raises(Unavailable):
        again.releases()
    assert again.remembered() == released
    assert again.fetch(released[0]).path.read_bytes() == IRIS
    other = RememberingSource(source_of(registry, "model=clf/1", tmp_path), f"{address}&model=clf/1", tmp_path)
    assert other.remembered() == []  # of another address


def test_a_version_that_is_not_ready_is_not_released(registry, tmp_path):
    registry.versions["clf", "1"] = "PENDING_REGISTRATION"
    with pytest.raises(NotFound, match="pending_registration"):
        source_of(registry, "model=clf@champion", tmp_path).releases()


def test_a_registry_that_is_down_is_unavailable_and_the_cache_still_answers(registry, tmp_path):
    source = source_of(registry, "model=clf@champion", tmp_path)
    (release,) = source.releases()
    resolved = source.fetch(release)
    assert (resolved.name, resolved.version, resolved.path.read_bytes()) == ("clf", "1", IRIS)
    registry.down = True
    with pytest.raises(Unavailable, match="nobody listens"):
        source.releases()
    assert source.fetch(release) == resolved
    with pytest.raises(Unavailable):
        source.fetch(Release("clf", "2", "another"))


# --- what an artifact may say


def artifact(folder: Path, **files: str | bytes) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "model.onnx").write_bytes(IRIS)
    for name, content in files.items():
        data = content if isinstance(content, bytes) else content.encode()
        (folder / name.replace("__", ".")).write_bytes(data)
    return folder


@pytest.mark.parametrize(
    "name", [None, "", "../model.onnx", "/etc/passwd", "a/../../b", "..\\model.onnx", "nothing.onnx", ".", "a\0b"]
)
def test_an_artifact_names_files_within_itself_only(name, tmp_path):
    with pytest.raises(AgentError):
        member(artifact(tmp_path / "a"), name)


def test_a_link_is_no_file_of_an_artifact(tmp_path):
    folder = artifact(tmp_path / "a")
    (folder / "link.onnx").symlink_to("model.onnx")
    with pytest.raises(AgentError):
        member(folder, "link.onnx")


def test_recipe_and_settings_of_an_artifact_are_those_of_the_model(tmp_path):
    folder = artifact(
        tmp_path / "a", recipe__toml='method = "gradient"\n', model__toml='[output]\nlabels = "l"\n', l="a\nb\n"
    )
    found = opened(folder, {**PLAIN, "recipe": "recipe.toml", "settings": "model.toml"}, "net", "4")
    assert (found.name, found.version, found.settings.defaults) == ("net", "4", {"method": "gradient"})
    assert found.settings.output.labels == str(folder / "l")


@pytest.mark.parametrize(
    "recipe, settings",
    [
        ('method = "nonsense"', ""),
        ("method = 3", ""),
        ("method", ""),
        ("", '[output]\nlabels = "/etc/hostname"'),
        ("", '[output]\nlabels = "../secret"'),
        ("", "[outptu]"),
    ],
)
def test_a_bad_recipe_or_settings_is_one_line_without_our_paths(recipe, settings, tmp_path):
    (tmp_path / "secret").write_text("a\n")
    folder = artifact(tmp_path / "a", recipe__toml=recipe, model__toml=settings)
    with pytest.raises(InputError, match=r"models:/net/4") as caught:
        opened(folder, {**PLAIN, "recipe": "recipe.toml", "settings": "model.toml"}, "net", "4")
    assert str(tmp_path) not in str(caught.value) and "\n" not in str(caught.value)


def test_only_data_and_our_flavor_are_read_of_mlmodel(tmp_path):
    text = (
        "flavors: {onnx: {data: model.onnx, code: evil}, python_function: {loader_module: os}, onnxplain: {recipe: 3}}"
    )
    assert about(artifact(tmp_path / "a", MLmodel=text)) == PLAIN


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"flavors: {}",
        b"flavors: {sklearn: {}}",
        b"a: [",
        b"!!python/object/apply:os.getpid []",
        b"\xff\xfe",
        b"a: &a [x,x]\n" + b"".join(b"%c: &%c [*%c,*%c]\n" % (98 + i, 98 + i, 97 + i, 97 + i) for i in range(24)),
    ],
)
def test_an_mlmodel_that_is_none_is_refused_and_runs_nothing(text, tmp_path):
    begun = time.monotonic()
    with pytest.raises(AgentError):
        about(artifact(tmp_path / "a", MLmodel=text))
    assert time.monotonic() - begun < 2


@pytest.mark.parametrize("uri", ["file:///etc", "/etc", "http://10.0.0.1/x", "mlflow-artifacts://elsewhere:5000/0"])
def test_files_at_other_places_than_the_registrys_own_are_refused(uri):
    with pytest.raises(AgentError):
        check_place(uri, "http://127.0.0.1:5000")
    check_place("mlflow-artifacts:/0/models/m-1/artifacts", "http://127.0.0.1:5000")
    check_place("s3://bucket/models/m-1", "http://127.0.0.1:5000")


def test_a_reason_keeps_addresses_and_bodies_to_itself():
    error = RuntimeError("API request to http://secret.host/x failed with error code 503 != 200. Response body: <html>")
    assert reason(error) == ("down", "it answers with HTTP status 503")
    assert reason(RuntimeError("404 Client Error: for url: http://x")) == ("missing", "there is none")


# --- the process that speaks to MLflow


def stand_in(folder: Path, text: str, monkeypatch) -> None:
    """A package `mlflow` for the agent's process."""
    (folder / "mlflow").mkdir()
    (folder / "mlflow/__init__.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(folder))


def test_without_mlflow_the_error_says_what_to_install(tmp_path, monkeypatch):
    stand_in(tmp_path, "raise ImportError('no mlflow here')", monkeypatch)
    source = MlflowSource("mlflow+http://127.0.0.1:1?model=a", tmp_path / "c")
    with pytest.raises(UsageError, match=r"pip install 'onnxplain\[mlflow\]'"):
        source.releases()


def test_a_client_that_dies_or_hangs_is_unavailable_in_bounded_time_and_started_again(tmp_path, monkeypatch):
    text = (
        "import os, time, pathlib\nclass MlflowClient:\n"
        "    def __init__(self, **k): pass\n"
        "    def get_registered_model(self, name):\n"
        f"        print('noise'); mark = pathlib.Path({str(tmp_path / 'mark')!r})\n"
        "        if name == 'hangs': time.sleep(60)\n"
        "        os._exit(1)\n"
    )
    stand_in(tmp_path, text, monkeypatch)
    source = MlflowSource("mlflow+http://127.0.0.1:1?model=hangs", tmp_path / "c", seconds=0.3)
    for says in ("no answer within 0.3 s", "no answer within"):
        begun = time.monotonic()
        with pytest.raises(Unavailable, match=says):
            source.releases()
        assert time.monotonic() - begun < 10
    source = MlflowSource("mlflow+http://127.0.0.1:1?model=dies", tmp_path / "c", seconds=10)
    for _ in range(2):
        with pytest.raises(Unavailable, match="its client ended"):
            source.releases()
    source.close()


def test_a_download_that_grows_too_large_is_stopped(tmp_path, monkeypatch):
    text = (
        "import time, pathlib\nclass MlflowClient:\n    def __init__(self, **k): pass\n"
        "    def get_model_version_download_uri(self, name, version):\n"
        f"        pathlib.Path({str(tmp_path / 'd')!r}, 'bomb').write_bytes(bytes(2000)); time.sleep(60)\n"
    )
    (tmp_path / "d").mkdir()
    stand_in(tmp_path, text, monkeypatch)
    (tmp_path / "mlflow/store/artifact").mkdir(parents=True)
    for name in ("store/__init__.py", "store/artifact/__init__.py", "store/artifact/artifact_repository_registry.py"):
        (tmp_path / "mlflow" / name).write_text("")
    monkeypatch.setattr(mlflow_process, "BYTES", 1000)
    source = MlflowSource("mlflow+http://127.0.0.1:1?model=a", tmp_path / "c")
    begun = time.monotonic()
    with pytest.raises(InputError, match="more than 1000 bytes"):
        source._download(Release("a", "1", ""), "models:/a/1", tmp_path / "d")
    assert time.monotonic() - begun < 10


# --- MLflow's own client and a fake registry


def entries(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.is_dir() and path.name != "keys")


class Fake(http.server.ThreadingHTTPServer):
    """A registry of one model `clf`, alias `champion`, whose version 1 holds `files`. mode: how it misbehaves."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), FakeHandler)
        self.mode, self.files, self.place = "", {}, "mlflow-artifacts:/1/a"
        self.announced: dict[str, int] = {}
        self.base = f"http://127.0.0.1:{self.server_address[1]}"


class FakeHandler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        server, asked = self.server, urlsplit(self.path)
        if server.mode == "slow":
            time.sleep(5)
        if server.mode == "trickle":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            with contextlib.suppress(OSError):
                for _ in range(20):
                    self.wfile.write(b" ")
                    time.sleep(0.2)
            return None
        if server.mode.isdecimal():
            return self.reply({}, int(server.mode), {"Retry-After": "3600"})
        path = asked.path.removeprefix("/api/2.0/")
        if path == "mlflow/registered-models/get":
            return self.reply({"registered_model": {"name": "clf", "aliases": [{"alias": "champion", "version": "1"}]}})
        if path == "mlflow/model-versions/get":
            version = {"name": "clf", "version": "1", "status": "READY", "source": "x", "creation_timestamp": 1}
            return self.reply({"model_version": version})
        if path == "mlflow/model-versions/get-download-uri":
            return self.reply({"artifact_uri": server.place})
        if path == "mlflow-artifacts/artifacts":
            files = [] if parse_qs(asked.query)["path"][0] != "1/a" else server.files
            listing = [{"path": n, "is_dir": False, "file_size": server.announced.get(n, len(server.files[n]))} for n in files]  # fmt: skip  # noqa: E501
            return self.reply({"files": listing})
        name = path.removeprefix("mlflow-artifacts/artifacts/1/a/")
        if name in server.files:
            return self.reply(server.files[name])
        return self.reply({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no"}, 404)

    def reply(self, content, status=200, headers=None):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(data), **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(data)


@pytest.fixture(scope="module")
def server():
    with Fake() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def shared(server, tmp_path_factory):
    """One source for all: starting its process takes two seconds."""
    source = MlflowSource(f"mlflow+{server.base}?model=clf@champion", tmp_path_factory.mktemp("cache"), seconds=1)
    yield source
    source.close()


@pytest.fixture
def fake(server):
    server.mode, server.place, server.announced = "", "mlflow-artifacts:/1/a", {}
    server.files = {"MLmodel": b"flavors: {onnx: {data: model.onnx}}", "model.onnx": IRIS}
    return server


@needs_client
def test_a_version_comes_from_a_registry_over_http(fake, shared):
    (release,) = shared.releases()
    assert (release.name, release.version, release.aliases) == ("clf", "1", ("champion",))
    assert shared.fetch(release).path.read_bytes() == IRIS


@needs_client
@pytest.mark.parametrize("mode", ["500", "503", "429", "401", "slow", "trickle"])
def test_a_registry_that_misbehaves_is_unavailable_in_bounded_time(mode, fake, shared):
    shared.releases()
    fake.mode = mode
    begun = time.monotonic()
    with pytest.raises(Unavailable) as caught:
        shared.releases()
    assert time.monotonic() - begun < 5  # 1 s to answer, and the rest of a slow machine
    assert "\n" not in str(caught.value) and "Traceback" not in str(caught.value)
    fake.mode = ""
    assert [r.version for r in shared.releases()] == ["1"]


BAD = {
    "no MLmodel": {"MLmodel": None},
    "no model": {"model.onnx": None},
    "an empty model": {"model.onnx": b""},
    "half a model": {"model.onnx": IRIS[: len(IRIS) // 2]},
    "a text": {"model.onnx": b"<html>proxy error</html>"},
    "another flavor": {"MLmodel": b"flavors: {sklearn: {data: model.pkl}}"},
    "a path outside": {"MLmodel": b"flavors: {onnx: {data: ../../../etc/passwd}}"},
    "another hash": {"MLmodel": b"flavors: {onnx: {data: model.onnx}, onnxplain: {sha256: {model.onnx: '00'}}}"},
    "a bad recipe": {
        "MLmodel": b"flavors: {onnx: {data: model.onnx}, onnxplain: {recipe: r}}",
        "r": b"method = 'nonsense'",
    },
    "names that climb": {"../../climbed": b"x"},
}


@needs_client
@pytest.mark.parametrize("files", BAD.values(), ids=list(BAD))
def test_a_corrupt_artifact_is_an_input_error_and_is_not_kept(files, fake, shared):
    good, release = dict(fake.files), Release("clf", "1", f"a corrupt one {files}")
    fake.files = {name: content for name, content in {**good, **files}.items() if content is not None}
    before = entries(shared.cache.root) if shared.cache.root.exists() else []
    with pytest.raises(OnnxplainError) as caught:
        shared.fetch(release)
    assert isinstance(caught.value, (InputError, Unavailable) if "../../climbed" in files else InputError)
    assert str(shared.cache.root) not in str(caught.value) and "\n" not in str(caught.value)
    assert (entries(shared.cache.root) if shared.cache.root.exists() else []) == before
    assert not (shared.cache.root.parent / "climbed").exists()
    fake.files = good
    assert shared.fetch(release).path.read_bytes() == IRIS


@needs_client
def test_what_is_announced_as_too_large_is_not_downloaded(fake, shared):
    fake.announced = {"model.onnx": 2**50}
    with pytest.raises(InputError, match="more than the"):
        shared.fetch(Release("clf", "1", "a large one"))


@needs_client
@pytest.mark.parametrize("place", ["file:///etc", "/etc", "mlflow-artifacts://10.0.0.1/x", "http://10.0.0.1/x"])
def test_a_registry_cannot_point_at_our_disk_or_at_another_server(place, fake, shared):
    fake.place = place
    with pytest.raises(InputError):
        shared.fetch(Release("clf", "1", place))
