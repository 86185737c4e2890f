"""Laws of the directory repository: what a name, a file or a folder stands for."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxplain.errors import InputError, NotFound, OnnxplainError, Unavailable, UsageError
from onnxplain.inputs import InputSpec, load, load_labels
from onnxplain.inputs.settings import load_settings
from onnxplain.sources import (
    DirectoryRepository,
    DirectorySource,
    FileSource,
    Release,
    default_repositories,
    resolve_model,
)

MODELS = Path(__file__).parents[2] / "models"
IRIS = MODELS / "iris_mlp/1/model.onnx"


@pytest.fixture
def store(tmp_path) -> Path:
    """A repository with net/{1,2,10,beta} and other/1; net's version 2 overrides its kind."""
    for version in ("net/1", "net/2", "net/10", "net/beta", "other/1"):
        (tmp_path / version).mkdir(parents=True)
        shutil.copy(IRIS, tmp_path / version / "model.onnx")
    (tmp_path / "net/model.toml").write_text('[input]\nscale = 2\n[output]\nkind = "dense"\n')
    (tmp_path / "net/2/model.toml").write_text('[output]\nkind = "regression"\n')
    (tmp_path / "net/samples").mkdir()
    (tmp_path / "empty").mkdir()
    return tmp_path


def test_names_and_versions_are_what_holds_a_model(store):
    repository = DirectoryRepository(store)
    assert repository.names() == ["net", "other"]
    assert repository.versions("net") == ["beta", "1", "2", "10"]
    assert DirectoryRepository(store / "nowhere").names() == []


def test_the_highest_number_is_the_default_and_any_version_can_be_asked_for(store):
    assert resolve_model("net", [store]).version == "10"
    assert resolve_model("net/beta", [store]).path == store / "net/beta/model.onnx"
    chosen = resolve_model("net/2", [store])
    assert (chosen.name, chosen.version, chosen.path) == ("net", "2", store / "net/2/model.onnx")


def test_a_version_overrides_the_settings_of_its_model(store):
    assert resolve_model("net/1", [store]).settings.output.kind == "dense"
    assert resolve_model("net/2", [store]).settings.output.kind == "regression"
    assert resolve_model("net/2", [store]).settings.input.scale == 2


def test_file_folder_and_name_are_the_same_model(store):
    by_name = resolve_model("net/2", [store])
    for path in (store / "net/2", store / "net/2/model.onnx"):
        found = resolve_model(path, [])
        assert (found.name, found.version, found.settings) == (by_name.name, by_name.version, by_name.settings)
    assert resolve_model(store / "net", []).version == "10"


def test_a_plain_file_takes_the_settings_beside_it(tmp_path):
    shutil.copy(IRIS, tmp_path / "mine.onnx")
    assert resolve_model(tmp_path / "mine.onnx", []).settings.files == ()
    (tmp_path / "model.toml").write_text('[output]\nkind = "dense"\n')
    found = resolve_model(tmp_path / "mine.onnx", [])
    assert (found.name, found.version, found.settings.output.kind) == ("mine", "", "dense")
    assert resolve_model(tmp_path, []).path.name == "mine.onnx"


def test_earlier_repositories_win_and_the_variable_names_them(store, tmp_path, monkeypatch):
    second = tmp_path / "second"
    (second / "net/3").mkdir(parents=True)
    shutil.copy(IRIS, second / "net/3/model.onnx")
    monkeypatch.setenv("ONNXPLAIN_MODELS", os.pathsep.join([str(second), str(store)]))
    assert default_repositories() == [second, store, Path("models")]
    assert resolve_model("net").version == "3"
    assert resolve_model("other").version == "1"


@pytest.mark.parametrize(
    "spec", ["../net", "net/../other", "..", "net/..", "/net", "net/1/../2/x", "", "a" * 5000, "n\0"]
)
def test_a_name_never_leaves_the_repository(store, spec, monkeypatch):
    monkeypatch.chdir(store / "empty")
    repository = DirectoryRepository(store)
    with pytest.raises(OnnxplainError):
        resolve_model(spec + "?", [store])
    with pytest.raises(UsageError):
        repository.get(spec)
    with pytest.raises(UsageError):
        repository.get("net", spec or "..")


def test_what_is_missing_is_said_with_near_names(store):
    with pytest.raises(InputError, match="Did you mean other"):
        resolve_model("othr", [store])
    with pytest.raises(InputError, match="beta, 1, 2, 10"):
        resolve_model("net/7", [store])
    shutil.copy(IRIS, store / "mine.onnx")
    with pytest.raises(InputError, match=r"mine\.onnx"):
        resolve_model(store / "mime.onnx", [])


def test_a_folder_must_hold_one_model_and_a_file_something(store):
    with pytest.raises(InputError, match=r"no \.onnx file"):
        resolve_model(store / "empty", [])
    for name in ("a.onnx", "b.onnx"):
        shutil.copy(IRIS, store / "empty" / name)
    with pytest.raises(InputError, match=r"2 models: a\.onnx, b\.onnx"):
        resolve_model(store / "empty", [])
    (store / "zero.onnx").touch()
    with pytest.raises(InputError, match="is empty"):
        resolve_model(store / "zero.onnx", [])


def test_a_wrong_key_in_model_toml_names_file_and_key(store):
    (store / "net/model.toml").write_text("[input]\nmeen = 1\n")
    with pytest.raises(UsageError, match=r"model\.toml named 'meen'. Did you mean mean"):
        resolve_model("net", [store])


@pytest.mark.parametrize("name", DirectoryRepository(MODELS).names())
def test_every_model_here_reads_its_labels_and_all_its_samples(name):
    model = DirectoryRepository(MODELS).get(name)
    graph = onnx.load(model.path).graph
    assert len(graph.input) == 1
    tensor = graph.input[0].type.tensor_type
    shape = tuple(side.dim_value or side.dim_param or None for side in tensor.shape.dim)
    spec = InputSpec(graph.input[0].name, "float32", shape)
    regression = model.settings.output.kind == "regression"
    names = ["value"] if regression else load_labels(model.settings.output.labels)
    classes = {side.dim_value for output in graph.output for side in output.type.tensor_type.shape.dim}
    assert len(names) in classes
    assert model.settings.licence["name"]
    samples = sorted((MODELS / name / "samples").iterdir())
    assert samples
    for sample in samples:
        feeds = load([sample], [spec], lambda spec, position: (model.settings.picture(spec.name, position), None)).feeds
        assert feeds[spec.name].shape[1:] == shape[1:]
        assert sample.name in (MODELS / "README.md").read_text() or name.startswith(
            ("digits", "iris", "bc", "diabetes")
        )


def offered(source) -> list[str]:
    return [f"{release.name}/{release.version}" for release in source.releases()]


def serving(store: Path, text: str) -> None:
    (store / "net/model.toml").write_text(f"[serving]\n{text}\n")


@pytest.mark.parametrize(
    ("policy", "versions"),
    [
        ("", ["10"]),
        ('versions = "latest"', ["10"]),
        ('versions = "all"', ["1", "2", "10"]),
        ("versions = 2", ["2", "10"]),
        ("versions = 9", ["1", "2", "10"]),
        ('versions = ["1", "10", "77"]', ["1", "10"]),
    ],
)
def test_whole_numbers_are_served_after_the_version_policy(store, policy, versions):
    serving(store, policy)
    (store / "net/010").mkdir()
    shutil.copy(IRIS, store / "net/010/model.onnx")  # a second way to write 10 is no version
    assert offered(DirectorySource(store)) == [*(f"net/{version}" for version in versions), "other/1"]


def test_a_release_fetched_is_what_the_command_line_resolves(store):
    source = DirectorySource(store)
    assert source.name == store.name
    for release in source.releases():
        assert source.fetch(release) == resolve_model(f"{release.name}/{release.version}", [store])


@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        ("net.explain", "explanations of a model"),
        ("net.explain.lrp", "explanations of a model"),
        ("_net", "begins with a letter or digit"),
        ("a b", "letters, digits"),
        ("é", "letters, digits"),
        ("n" * 129, "128 at most"),
        ("empty", "no version here"),
    ],
)
def test_a_folder_that_cannot_be_served_says_why(store, folder, reason):
    if folder != "empty":
        shutil.copytree(store / "other", store / folder)
    source = DirectorySource(store)
    assert offered(source) == ["net/10", "other/1"]
    assert reason in source.problems[folder]


def test_explained_is_no_reserved_name(store):
    (store / "other").rename(store / "net.explained")
    assert offered(DirectorySource(store)) == ["net/10", "net.explained/1"]


def test_a_repository_that_is_not_there_is_an_input_error_and_one_that_cannot_be_read_is_unavailable(store):
    with pytest.raises(InputError, match="does not exist"):
        DirectorySource(store / "nowhere").releases()
    with pytest.raises(Unavailable, match="cannot be listed"):
        DirectorySource(IRIS).releases()
    with pytest.raises(UsageError, match="none, poll, explicit"):
        DirectorySource(store, "often")


def test_config_pbtxt_is_named_in_the_log_once(store, caplog):
    (store / "net/config.pbtxt").write_text('backend: "python"')
    source = DirectorySource(store)
    with caplog.at_level(logging.WARNING):
        source.releases()
        source.releases()
    assert [record.getMessage() for record in caplog.records] == [
        "net/config.pbtxt is not read: write [serving] of net/model.toml instead"
    ]


@pytest.mark.parametrize("file", ["net/10/model.onnx", "net/10/weights.bin", "net/model.toml", "net/names.txt"])
def test_the_fingerprint_is_another_one_when_a_file_is(store, file):
    (store / "net/model.toml").write_text('[output]\nlabels = "names.txt"\n')
    (store / "net/names.txt").write_text("a\nb\n")
    (store / "net/10/weights.bin").write_bytes(b"12")
    source = DirectorySource(store)
    before = source.releases()
    assert source.releases() == before == DirectorySource(store).releases()
    os.utime(store / file, ns=(1, 1))
    after = source.releases()
    assert [a.fingerprint == b.fingerprint for a, b in zip(before, after, strict=True)] == [False, True]


def test_poll_holds_a_change_back_until_two_looks_agree(store):
    source = DirectorySource(store, "poll")
    first = source.releases()
    assert [release.version for release in first] == ["10", "1"], "the first look takes what is there"
    (store / "net/11").mkdir()
    (store / "net/11/model.onnx").write_bytes(b"half")
    assert source.releases() == first
    shutil.copy(IRIS, store / "net/11/model.onnx")
    assert source.releases() == first
    second = source.releases()
    assert [release.version for release in second] == ["11", "1"]
    os.utime(store / "net/11/model.onnx", ns=(1, 1))
    assert source.releases() == second
    assert source.releases()[0].fingerprint != second[0].fingerprint


def test_poll_takes_at_once_what_its_writer_calls_complete(store):
    source = DirectorySource(store, "poll")
    source.releases()
    (store / "net/11").mkdir()
    shutil.copy(IRIS, store / "net/11/model.onnx")
    (store / "net/11/.complete").touch()
    assert offered(source) == ["net/11", "other/1"]
    later = (store / "net/11/.complete").stat().st_mtime_ns + 1_000_000_000
    (store / "net/11/more.bin").touch()
    os.utime(store / "net/11/more.bin", ns=(later, later))  # written after it was called complete
    before = source._settled["net", "11"]
    assert source.releases()[0].fingerprint == before
    assert source.releases()[0].fingerprint != before


def test_broken_settings_take_no_model_away(store):
    source = DirectorySource(store)
    before = source.releases()
    serving(store, "versions = 0")
    assert source.releases() == before
    assert "net/model.toml" in source.problems["net"] and str(store) not in source.problems["net"]
    shutil.rmtree(store / "net")
    assert offered(source) == ["other/1"] and not {"net"} & source.problems.keys()


@pytest.mark.parametrize("what", ["folder", "version", "model", "weights", "settings", "labels"])
@pytest.mark.parametrize("kind", ["link", "hard link"])
def test_no_link_leads_out_of_the_repository(store, tmp_path_factory, what, kind):
    outside = tmp_path_factory.mktemp("outside")
    shutil.copytree(store / "net", outside / "net")
    (store / "net/model.toml").write_text('[output]\nlabels = "names.txt"\n')
    (store / "net/names.txt").write_text("a\n")
    place = (
        store
        / {
            "folder": "net",
            "version": "net/10",
            "model": "net/10/model.onnx",
            "weights": "net/10/weights.bin",
            "settings": "net/model.toml",
            "labels": "net/names.txt",
        }[what]
    )
    target = outside / place.relative_to(store)
    if not target.exists():
        target.write_bytes(b"secret")
    if kind == "hard link" and target.is_dir():
        pytest.skip("folders have no hard links")
    if place.is_dir():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)
    (place.symlink_to if kind == "link" else place.hardlink_to)(target)
    source = DirectorySource(store)
    with pytest.raises(InputError) as caught:
        source.fetch(Release("net", "10", ""))
    assert str(outside) not in str(caught.value) and str(store) not in str(caught.value)


def test_a_link_within_the_repository_is_followed(store):
    (store / "alias").symlink_to("other")
    assert offered(DirectorySource(store)) == ["alias/1", "net/10", "other/1"]
    assert DirectorySource(store).fetch(Release("alias", "1", "")).name == "alias"


@pytest.mark.parametrize("key", ["[output]\nlabels", "background"])
@pytest.mark.parametrize("file", ["../names.txt", "/etc/passwd", "../other/names.txt", "a\\u0000b", "pipe"])
def test_files_that_settings_name_stay_in_the_folder_of_their_model(store, file, key):
    (store / "names.txt").write_text("a\n")
    (store / "other/names.txt").write_text("a\n")
    os.mkfifo(store / "net/pipe")
    (store / "net/model.toml").write_text(f'{key} = "{file}"\n')
    with pytest.raises(InputError):
        DirectorySource(store).fetch(Release("net", "10", ""))
    with pytest.raises(InputError):
        DirectoryRepository(store).get("net")


def test_a_background_is_as_large_as_what_its_archive_unpacks_to(store):
    np.savez_compressed(store / "net/rows.npz", x=np.zeros(1 << 24, np.float64))
    assert (store / "net/rows.npz").stat().st_size < 1 << 20
    (store / "net/model.toml").write_text('background = "rows.npz"\n')
    with pytest.raises(InputError, match="bytes; it may have 67108864"):
        DirectorySource(store).fetch(Release("net", "10", ""))


@pytest.mark.parametrize(
    "text", ["background = 3", "a = " + "[" * 100_000, "#" * 2_000_000, "\0", "[output]\nlabels = 3", "[serving"]
)
def test_a_hostile_model_toml_is_one_line_of_refusal(store, text):
    (store / "net/model.toml").write_text(text)
    with pytest.raises(OnnxplainError) as caught:
        DirectorySource(store).fetch(Release("net", "10", ""))
    assert "\n" not in str(caught.value)
    source = DirectorySource(store)
    assert offered(source) == ["other/1"] and source.problems["net"]


@pytest.mark.parametrize(
    ("stem", "name"),
    [("mine", "mine"), ("my model (2)", "my_model_2_"), ("a.explain", "a_explain"), ("__", "model"), ("é", "model")],
)
def test_a_single_file_is_served_under_its_stem(tmp_path, stem, name):
    shutil.copy(IRIS, tmp_path / f"{stem}.onnx")
    source = FileSource(tmp_path / f"{stem}.onnx")
    (release,) = source.releases()
    assert (release.name, release.version) == (name, "1")
    assert source.fetch(release).path == tmp_path / f"{stem}.onnx"
    (tmp_path / f"{stem}.onnx.data").touch()
    assert source.releases()[0].fingerprint != release.fingerprint
    with pytest.raises(NotFound):
        source.fetch(Release("other", "1", ""))
    with pytest.raises(InputError, match="no model file"):
        FileSource(tmp_path / "none.onnx").releases()


def test_a_file_of_a_repository_keeps_its_name_and_version(store):
    assert offered(FileSource(store / "net/2/model.onnx")) == ["net/2"]
    assert FileSource(store / "net/2/model.onnx").fetch(Release("net", "2", "")).settings.output.kind == "regression"


def test_serving_is_read_and_overridden_by_a_version(store):
    serving(store, 'max_batch_rows = 8\nqueue_rows = 64\nrecipes = ["lrp"]\ndynamic_batching = false')
    (store / "net/2/model.toml").write_text("[serving]\nmax_batch_rows = 1\n")
    found = resolve_model("net/2", [store]).settings.serving
    assert (found.max_batch_rows, found.queue_rows, found.recipes, found.dynamic_batching) == (1, 64, ("lrp",), False)
    assert resolve_model("other", [store]).settings.serving.max_batch_rows is None


@pytest.mark.parametrize(
    "line",
    [
        "max_batch_rows = 0",
        "max_batch_rows = true",
        "max_batch_rows = 2.0",
        'queue_rows = "many"',
        'recipes = "lrp"',
        "recipes = [1]",
        "dynamic_batching = 1",
        "versions = 0",
        "versions = true",
        "versions = []",
        'versions = ["01"]',
        "versions = [1]",
        'versions = "newest"',
        "batch = 1",
    ],
)
def test_a_wrong_line_in_serving_is_a_usage_error_that_names_it(tmp_path, line):
    (tmp_path / "model.toml").write_text(f"[serving]\n{line}\n")
    with pytest.raises(UsageError, match=line.split()[0]):
        load_settings(tmp_path / "model.toml")


NAMES = [
    *("..", ".", "", "/", "//", "../..", "../outside", "./net", "net/", "/net", "net/..", "net/../outside", "net//1"),
    *(
        "net/1",
        "net/./1",
        "net\\1",
        "..\\outside",
        "\\\\host\\share",
        "C:\\x",
        "C:net",
        "file:///etc/passwd",
        "~",
        "~root",
    ),
    *("%2e%2e", "%2e%2e%2foutside", "..%2foutside", "..%c0%afoutside", "..;/outside", "....//outside", "$HOME", "`id`"),
    *("/etc/passwd", "/proc/self/environ", "/dev/zero", "../" * 40 + "etc/passwd", "net\0", "\0", "net\0/../outside"),
    *("net\n", "\nnet", "net\r\n", "net\t", " net", "net ", "n et", "-", "--help", "-rf", ".net", ".git"),
    *(
        "．．",
        "．．/outside",
        "\u2025/outside",
        "net\u200b",
        "ｎｅｔ",
        "né",
        "ne\u0301t",
        "\u202enet",
        "\ud800",
        "\U0001f4a9",
        "․․",
    ),
    *("n" * 129, "n" * 255, "n" * 256, "n" * 5000, "n" * 1_000_000, "../" * 100_000, "*", "ne?", "[n]et", "{net}"),
]

ASK = """
import json, sys
from onnxplain.errors import OnnxplainError
from onnxplain.sources import DirectoryRepository, Release
from onnxplain.sources import DirectorySource
root, names = sys.argv[1], json.loads(sys.stdin.read())
DirectorySource(root).fetch(Release("net", "10", ""))
touched, answers = [], []
EVENTS = {"open", "os.listdir", "os.scandir", "os.walk", "glob.glob"}
sys.addaudithook(lambda event, args: touched.append(str(args[0])) if event in EVENTS else None)
def ask(call):
    try:
        call()
        return "answered"
    except OnnxplainError as error:
        return f"{type(error).__name__} {error.status} {chr(10) in str(error)}"
    except BaseException as error:
        return repr(error)
for name in names:
    answers.append([
        ask(lambda: DirectoryRepository(root).get(name)),
        ask(lambda: DirectoryRepository(root).get("net", name or "..")),
        ask(lambda: DirectorySource(root).fetch(Release(name, "10", ""))),
        ask(lambda: DirectorySource(root).fetch(Release("net", name, ""))),
    ])
print(json.dumps([answers, touched]))
"""


def test_sixty_names_are_refused_and_open_nothing_outside_the_repository(store):
    assert len(set(NAMES)) == len(NAMES) >= 60
    shutil.copytree(store / "net", store.parent / "outside" / "10")
    try:
        done = subprocess.run(
            [sys.executable, "-c", ASK, str(store)], input=json.dumps(NAMES), capture_output=True, text=True, timeout=60
        )
    finally:
        shutil.rmtree(store.parent / "outside")
    assert done.returncode == 0, done.stderr
    answers, touched = json.loads(done.stdout)
    allowed = {f"{kind} {status} False" for kind, status in (
        ("UsageError", "INVALID_ARGUMENT"), ("InputError", "INVALID_ARGUMENT"), ("NotFound", "NOT_FOUND")
    )}  # fmt: skip
    assert {answer for row in answers for answer in row} <= allowed
    assert not [path for path in touched if not Path(path).is_relative_to(store)]
