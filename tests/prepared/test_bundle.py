"""A bundle is a repository that serves without compiling."""

from __future__ import annotations

import shutil

import onnx
import pytest
from nets import MODELS, relu_net, sample
from opened import answers, opened, same, weighty
from running import running_server

from onnxplain import Client, Explainer
from onnxplain.cli import main
from onnxplain.cli.bundle import to_bundle
from onnxplain.errors import InputError, UnknownName
from onnxplain.prepared import FolderCache
from onnxplain.recipes import named
from onnxplain.sources import DirectorySource

REPOSITORY = ("iris_mlp", "digits_cnn")


def bundle(*arguments) -> None:
    main(["export", *map(str, arguments)])


@pytest.fixture(scope="module")
def bundled(tmp_path_factory):
    """Some of models/ as a repository, bundled with a recipe more."""
    folder = tmp_path_factory.mktemp("bundle")
    for name in REPOSITORY:
        shutil.copytree(MODELS / name, folder / "models" / name, ignore=shutil.ignore_patterns("samples"))
    bundle(folder / "models", "--bundle", folder / "out", "--with-recipes", "gradient,smooth_grad-lrp-epsilon")
    return folder / "out"


@pytest.fixture
def nothing_compiles(monkeypatch):
    def refuse(*args, **more):
        raise AssertionError("made again")

    monkeypatch.setattr("onnxplain.subject.load", refuse)
    monkeypatch.setattr("onnxplain.explanation_graph.compile_graph", refuse)


@pytest.mark.parametrize("name", REPOSITORY)
def test_a_bundle_answers_without_compiling_and_as_its_models_do(name, bundled, nothing_compiles, monkeypatch):
    source = DirectorySource(bundled)
    assert {release.name for release in source.releases()} == set(REPOSITORY)
    release = next(release for release in source.releases() if release.name == name)
    with opened(source.fetch(release), None) as loaded:
        warm = [answers(loaded, recipe) for recipe in (None, named("gradient"), named("smooth_grad-lrp-epsilon"))]
    monkeypatch.undo()
    with opened(name, None) as loaded:
        for recipe, found in zip((None, named("gradient"), named("smooth_grad-lrp-epsilon")), warm, strict=True):
            same(answers(loaded, recipe), found)


@pytest.mark.parametrize("isolate", [[], ["--isolate"]], ids=["one process", "isolated"])
def test_a_bundle_is_served(bundled, isolate):
    with running_server(bundled, *isolate) as server, Client(server.address) as client:
        x = sample("digits_cnn")
        found = client.explain("digits_cnn", x)
        expected = Explainer(MODELS / "digits_cnn" / "1" / "model.onnx", "lrp", composite="epsilon_plus_flat").explain(
            x
        )
        assert found.relevance.tobytes() == expected.relevance.tobytes()


def test_a_plain_file_with_weights_beside_it_is_bundled_with_them(tmp_path, nothing_compiles, monkeypatch):
    path = weighty(tmp_path / "m")
    monkeypatch.undo()
    bundle(path, "--bundle", tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out" / "m" / "1").iterdir()) == ["model.onnx", "w.bin"]
    graphs = list((tmp_path / "out" / ".graphs").iterdir())
    assert len(graphs) == 2 and all(file.stat().st_size < 32768 for file in graphs)  # the weights have 32768 bytes


def test_models_come_into_a_bundle_one_after_the_other_and_equal_ones_may_again(tmp_path):
    for seed, name in enumerate("ab"):
        model = relu_net()
        model.graph.name = name
        onnx.save(model, tmp_path / f"{name}.onnx")
        for _ in range(2):
            bundle(tmp_path / f"{name}.onnx", "--bundle", tmp_path / "out")
        assert len(list((tmp_path / "out" / ".graphs").iterdir())) == 2 * (seed + 1)
    onnx.save(relu_net(bias=False), tmp_path / "a.onnx")
    with pytest.raises(SystemExit):
        bundle(tmp_path / "a.onnx", "--bundle", tmp_path / "out")
    bundle(tmp_path / "a.onnx", "--bundle", tmp_path / "out", "--force")


@pytest.mark.parametrize("kind, says", [("model", "nothing of it"), ("explanation graph", "the graph of lrp")])
def test_what_a_bundle_lacks_is_said(kind, says, tmp_path, monkeypatch):
    onnx.save(relu_net(), tmp_path / "m.onnx")
    whole = to_bundle([str(tmp_path / "m.onnx")], tmp_path / "whole", with_recipes=None, force=False)
    put = FolderCache.put

    def full(cache, name, parts):
        return f'"kind": "{kind}"'.encode() not in b"".join(parts) and put(cache, name, parts)

    monkeypatch.setattr(FolderCache, "put", full)
    found = to_bundle([str(tmp_path / "m.onnx")], tmp_path / "out", with_recipes=None, force=False)
    assert not whole.notes
    assert len(found.notes) == 1 and "compiled wherever it is served" in found.notes[0] and says in found.notes[0]


def test_two_models_of_one_name_and_recipes_that_are_none_are_refused(tmp_path):
    for folder in "xy":
        (tmp_path / folder).mkdir()
        onnx.save(relu_net(), tmp_path / folder / "m.onnx")
    both = [str(tmp_path / folder / "m.onnx") for folder in "xy"]
    with pytest.raises(InputError, match="two of the models are called m"):
        to_bundle(both, tmp_path / "out", with_recipes=None, force=False)
    assert not (tmp_path / "out" / "m").exists()
    with pytest.raises(UnknownName, match="no recipe named 'lrp-nonsense'"):
        to_bundle(both[:1], tmp_path / "out", with_recipes="lrp-nonsense", force=False)


def test_other_targets_take_one_model(tmp_path):
    with pytest.raises(SystemExit):
        bundle(MODELS / "iris_mlp", MODELS / "digits_cnn", "--triton", tmp_path / "out")
    assert not (tmp_path / "out").exists()
