"""Laws of the directory repository: what a name, a file or a folder stands for."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import onnx
import pytest

from onnxplain.errors import InputError, OnnxplainError, UsageError
from onnxplain.inputs import InputSpec, load, load_labels
from onnxplain.sources import DirectoryRepository, default_repositories, resolve

MODELS = Path(__file__).parents[1] / "models"
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
    assert resolve("net", [store]).version == "10"
    assert resolve("net/beta", [store]).path == store / "net/beta/model.onnx"
    chosen = resolve("net/2", [store])
    assert (chosen.name, chosen.version, chosen.path) == ("net", "2", store / "net/2/model.onnx")


def test_a_version_overrides_the_settings_of_its_model(store):
    assert resolve("net/1", [store]).settings.output.kind == "dense"
    assert resolve("net/2", [store]).settings.output.kind == "regression"
    assert resolve("net/2", [store]).settings.input.scale == 2


def test_file_folder_and_name_are_the_same_model(store):
    by_name = resolve("net/2", [store])
    for path in (store / "net/2", store / "net/2/model.onnx"):
        found = resolve(path, [])
        assert (found.name, found.version, found.settings) == (by_name.name, by_name.version, by_name.settings)
    assert resolve(store / "net", []).version == "10"


def test_a_plain_file_takes_the_settings_beside_it(tmp_path):
    shutil.copy(IRIS, tmp_path / "mine.onnx")
    assert resolve(tmp_path / "mine.onnx", []).settings.files == ()
    (tmp_path / "model.toml").write_text('[output]\nkind = "dense"\n')
    found = resolve(tmp_path / "mine.onnx", [])
    assert (found.name, found.version, found.settings.output.kind) == ("mine", "", "dense")
    assert resolve(tmp_path, []).path.name == "mine.onnx"


def test_earlier_repositories_win_and_the_variable_names_them(store, tmp_path, monkeypatch):
    second = tmp_path / "second"
    (second / "net/3").mkdir(parents=True)
    shutil.copy(IRIS, second / "net/3/model.onnx")
    monkeypatch.setenv("ONNXPLAIN_MODELS", os.pathsep.join([str(second), str(store)]))
    assert default_repositories() == [second, store, Path("models")]
    assert resolve("net").version == "3"
    assert resolve("other").version == "1"


@pytest.mark.parametrize(
    "spec", ["../net", "net/../other", "..", "net/..", "/net", "net/1/../2/x", "", "a" * 5000, "n\0"]
)
def test_a_name_never_leaves_the_repository(store, spec, monkeypatch):
    monkeypatch.chdir(store / "empty")
    repository = DirectoryRepository(store)
    with pytest.raises(OnnxplainError):
        resolve(spec + "?", [store])
    with pytest.raises(UsageError):
        repository.get(spec)
    with pytest.raises(UsageError):
        repository.get("net", spec or "..")


def test_what_is_missing_is_said_with_near_names(store):
    with pytest.raises(InputError, match="Did you mean other"):
        resolve("othr", [store])
    with pytest.raises(InputError, match="beta, 1, 2, 10"):
        resolve("net/7", [store])
    shutil.copy(IRIS, store / "mine.onnx")
    with pytest.raises(InputError, match=r"mine\.onnx"):
        resolve(store / "mime.onnx", [])


def test_a_folder_must_hold_one_model_and_a_file_something(store):
    with pytest.raises(InputError, match=r"no \.onnx file"):
        resolve(store / "empty", [])
    for name in ("a.onnx", "b.onnx"):
        shutil.copy(IRIS, store / "empty" / name)
    with pytest.raises(InputError, match=r"2 models: a\.onnx, b\.onnx"):
        resolve(store / "empty", [])
    (store / "zero.onnx").touch()
    with pytest.raises(InputError, match="is empty"):
        resolve(store / "zero.onnx", [])


def test_a_wrong_key_in_model_toml_names_file_and_key(store):
    (store / "net/model.toml").write_text("[input]\nmeen = 1\n")
    with pytest.raises(UsageError, match=r"model\.toml named 'meen'. Did you mean mean"):
        resolve("net", [store])


@pytest.mark.parametrize("name", DirectoryRepository(MODELS).names())
def test_every_model_here_reads_its_labels_and_all_its_samples(name):
    model = DirectoryRepository(MODELS).get(name)
    graph = onnx.load(model.path).graph
    assert len(graph.input) == 1
    tensor = graph.input[0].type.tensor_type
    shape = tuple(side.dim_value or side.dim_param or None for side in tensor.shape.dim)
    spec = InputSpec(graph.input[0].name, "float32", shape)
    names = load_labels(model.settings.output.labels)
    classes = {side.dim_value for output in graph.output for side in output.type.tensor_type.shape.dim}
    assert len(names) in classes
    assert model.settings.licence["name"]
    samples = sorted((MODELS / name / "samples").iterdir())
    assert samples
    for sample in samples:
        feeds = load([sample], [spec], lambda spec, position: (model.settings.picture(spec.name, position), None)).feeds
        assert feeds[spec.name].shape[1:] == shape[1:]
        assert sample.name in (MODELS / "README.md").read_text() or name.startswith(("digits", "iris", "bc"))
