"""A model out of the graph cache is the model that was compiled: bit for bit, without compiling anything."""

from __future__ import annotations

import logging

import numpy as np
import onnx
import pytest
from nets import NAMES, counted, relu_net, sample
from opened import answers, opened, resolved, same, tokens, weighty, whole
from running import running_server

from onnxplain import Client
from onnxplain.compile import Request
from onnxplain.errors import Unavailable
from onnxplain.methods import METHODS, of_family
from onnxplain.prepared import FolderCache, PreparedModel
from onnxplain.prepared import key as keys
from onnxplain.recipes import Recipe, named
from onnxplain.server.models import warm_start

# A method that always blurs must be told axes where there is no picture.
LOOPED = [
    name for name in of_family("looped") if name != "blurred_integrated_gradients" and not METHODS[name].of_tables
]
MADE_UP = {"tokens": tokens, "whole": whole, "relu": relu_net}
RECIPES = [
    *(None, named("gradient"), named("gradient_x_input"), Recipe("lrp", {"composite": "epsilon"})),
    *(Recipe(name, counted(name, 5)) for name in LOOPED),
    *(Recipe(name, counted(name, 3), named("lrp-epsilon")) for name in LOOPED),
]
GRADIENT = ("digits_gru", "bc_logreg")  # no relevance rules for what they are made of


@pytest.fixture
def nothing_is_made(monkeypatch):
    """Whatever loads, normalises, compiles, verifies or probes raises from now on."""

    def hide():
        def refuse(*args, **more):
            raise AssertionError("made again")

        for place in (
            *("onnxplain.subject.load", "onnxplain.subject.normalise", "onnxplain.explanation_graph.compile_graph"),
            *("onnxplain.runtime.verification.verify", "onnxplain.server.models.probe.rows_are_independent"),
        ):
            monkeypatch.setattr(place, refuse)

    return hide


def recipes_of(name: str) -> list[Recipe | None]:
    if name in GRADIENT:
        return [None, named("gradient"), *(Recipe(m, counted(m, 3)) for m in LOOPED)]
    if name == "mobilenet_v2":
        return RECIPES[:2]
    return [recipe for recipe in RECIPES if name != "tokens" or recipe is None or not recipe.looped]


@pytest.fixture(params=[*NAMES, *MADE_UP])
def model(request, tmp_path):
    """A model of the repository, or the file of one made up."""
    if request.param in NAMES:
        return request.param
    path = tmp_path / f"{request.param}.onnx"
    onnx.save(MADE_UP[request.param](), path)
    return path


def test_a_warm_start_answers_bit_for_bit_and_makes_nothing(model, tmp_path, nothing_is_made):
    cache, recipes = FolderCache(tmp_path / "graphs"), recipes_of(getattr(model, "stem", model))
    with opened(model, None) as loaded:
        plain = [answers(loaded, recipe) for recipe in recipes]
    with opened(model, cache) as loaded:
        for recipe, expected in zip(recipes, plain, strict=True):
            same(expected, answers(loaded, recipe))
    nothing_is_made()
    with opened(model, cache) as loaded:
        for recipe, expected in zip(recipes, plain, strict=True):
            same(expected, answers(loaded, recipe))


def test_every_request_has_entries_of_its_own(tmp_path, nothing_is_made):
    cache = FolderCache(tmp_path / "graphs")
    nodes = onnx.load(resolved("digits_cnn").path).graph.node
    inner = next(node.output[0] for node in nodes if node.op_type == "Relu")
    requests = [Request(), Request(ledger=True), Request(keep=(inner,)), Request(head="keep"), Request((inner,))]
    requests += [Request(attribute_to=(inner,))]
    with opened("digits_cnn", cache) as loaded:
        made = [answers(loaded, None, request) for request in requests]
    nothing_is_made()
    with opened("digits_cnn", cache) as loaded:
        for request, expected in zip(requests, made, strict=True):
            same(expected, answers(loaded, None, request))


def test_a_new_recipe_of_a_restored_model_is_the_one_of_a_loaded_model(model, tmp_path):
    cache, recipe = FolderCache(tmp_path / "graphs"), named("gradient")
    with opened(model, cache):
        pass
    with opened(model, cache) as loaded, opened(model, None) as fresh:
        same(answers(fresh, recipe), answers(loaded, recipe))


@pytest.mark.parametrize("name", ["mobilenet_v2", "digits_vit"])
def test_weights_of_the_model_file_are_not_kept_again(name, tmp_path):
    cache = FolderCache(tmp_path / "graphs")
    with opened(name, cache) as loaded:
        size = loaded.subject.source.path.stat().st_size
        loaded.variant(named("gradient"))
        loaded.variant(Recipe("lrp", {"composite": "epsilon"}))
    kept = sorted(file.stat().st_size for file in cache.root.iterdir())
    assert len(kept) >= 3 and sum(kept[:-1]) < 0.8 * len(kept) * size  # graphs: nodes, and what was derived
    if name == "mobilenet_v2":
        assert sum(kept) < 0.5 * size


def test_weights_in_other_files_are_read_from_there_and_told_when_they_change(tmp_path, nothing_is_made, caplog):
    cache, path = FolderCache(tmp_path / "graphs"), weighty(tmp_path / "m")
    with opened(path, None) as loaded:
        expected = answers(loaded)
    with opened(path, cache) as loaded:
        same(expected, answers(loaded))
    assert all(file.stat().st_size < 32768 for file in cache.root.iterdir())  # the weights are 32768 bytes
    content = path.read_bytes()
    weighty(tmp_path / "m", 2.0)
    assert path.read_bytes() == content  # only the other file is another now
    with opened(path, None) as loaded:
        doubled = answers(loaded)
    assert not np.array_equal(doubled["scores"], expected["scores"])
    with caplog.at_level(logging.WARNING), opened(path, cache) as loaded:
        same(doubled, answers(loaded))
    assert "the weights in w.bin are others now" in caplog.text
    nothing_is_made()
    with opened(path, cache) as loaded:
        same(doubled, answers(loaded))


def test_what_made_an_entry_is_part_of_its_key(tmp_path, monkeypatch, nothing_is_made):
    cache = FolderCache(tmp_path / "graphs")
    with opened("iris_mlp", cache):
        pass
    before = dict(keys.made_by())
    nothing_is_made()
    for name in before:
        monkeypatch.setattr(keys, "made_by", lambda name=name: {**before, name: "another"})
        with pytest.raises(AssertionError, match="made again"), opened("iris_mlp", cache):
            pass
    monkeypatch.setattr(keys, "made_by", lambda: before)
    with opened("iris_mlp", cache):
        pass
    with pytest.raises(AssertionError, match="made again"), opened("iris_mlp", cache, max_batch_rows=1):
        pass


def test_a_graph_that_answers_otherwise_on_this_machine_is_made_anew(tmp_path, monkeypatch):
    cache = FolderCache(tmp_path / "graphs")
    with opened("digits_cnn", cache) as loaded:
        expected = answers(loaded)
    keep = PreparedModel.keep_graph

    def keep_wrong(prepared, graph, bounds, more, seeds, found):
        return keep(prepared, graph, bounds, more, seeds, {name: x + x.max() for name, x in found.items()})

    for file in cache.root.iterdir():
        file.unlink()
    monkeypatch.setattr(PreparedModel, "keep_graph", keep_wrong)
    with opened("digits_cnn", cache):
        pass
    monkeypatch.setattr(PreparedModel, "keep_graph", keep)
    with opened("digits_cnn", cache) as loaded:
        same(expected, answers(loaded))  # the same kind of machine: it is not asked
    monkeypatch.setattr(warm_start, "cpu_kind", lambda: "another")
    with opened("digits_cnn", cache) as loaded:
        with pytest.raises(Unavailable, match="answers otherwise on this machine"):
            answers(loaded)
        same(expected, answers(loaded))
    with opened("digits_cnn", cache) as loaded:
        same(expected, answers(loaded))


def test_a_model_that_answers_otherwise_on_this_machine_is_loaded_anew(tmp_path, monkeypatch, caplog):
    cache = FolderCache(tmp_path / "graphs")
    with opened("digits_cnn", cache) as loaded:
        expected = answers(loaded)
    monkeypatch.setattr(warm_start, "cpu_kind", lambda: "another")
    monkeypatch.setattr(warm_start, "source_difference", lambda *given: "output y differs")
    with caplog.at_level(logging.WARNING), opened("digits_cnn", cache) as loaded:
        same(expected, answers(loaded))
    assert "it is not so on this machine: output y differs" in caplog.text


@pytest.mark.timeout(240)
def test_a_second_replica_serves_from_the_first_ones_folder(tmp_path):
    folder, env = tmp_path / "graphs", {"ONNXPLAIN_GRAPH_CACHE_BYTES": str(2**30)}
    arguments = (resolved("digits_cnn").path, "--graph-cache", folder)
    replies, written = [], []
    for _ in range(2):
        with running_server(*arguments, env=env) as server, Client(server.address) as client:
            found = client.explain(client.models()[0].name, sample("digits_cnn"), ledger=True)
            replies.append((found.relevance.tobytes(), found.conservation, found.graph_digest, found.notes))
        written.append({file.name: file.stat().st_ino for file in folder.iterdir()})
    assert replies[0] == replies[1]
    assert written[0] == written[1] and len(written[0]) == 3  # the model, its default graph, the one with a ledger
