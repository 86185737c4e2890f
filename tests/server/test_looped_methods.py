"""Looped methods over the wire, from the server's process and from a worker: same bytes, progress, end, refusal."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
from nets import MODELS, counted, looks_of, other_base, sample
from running import running_server

from onnxplain import Client, Explainer
from onnxplain.cli import main
from onnxplain.errors import InputError, NotFound, OnnxplainError, UsageError
from onnxplain.inputs import load_settings
from onnxplain.methods import METHODS, of_family
from onnxplain.recipes import Recipe, named
from onnxplain.server.handlers.explain_response import SUMS
from onnxplain.v1 import explainer_pb2 as v1
from onnxplain.v1.explainer_pb2_grpc import ExplainerServiceStub
from onnxplain.wire.tensors import v1_tensor

LOOPED = [n for n in of_family("looped") if not METHODS[n].maps and not METHODS[n].of_tables]
OF_THEIR_OWN = ("d_rise",)  # models: detectors
FORWARD_ONLY = [
    name
    for name, method in METHODS.items()
    if method.family == "forward-only"
    and not (method.of_trees or method.of_tables or method.maps)
    and name not in OF_THEIR_OWN
]
FEW, MANY = ({name: counted(name, count) for name in LOOPED} for count in (7, 20000))
X = sample("digits_cnn")
ROWS = sample("digits_cnn")[:1] * np.float32([0, 0.5, 1]).reshape(3, 1, 1, 1)
SETTINGS = '[defaults]\nmethod = "smooth_grad"\nsamples = 5\nbase = "lrp-epsilon"\n'


@pytest.fixture(scope="module", params=["one process", "isolated"])
def client(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    shutil.copytree(MODELS / "digits_cnn", folder / "digits_cnn", ignore=shutil.ignore_patterns("samples"))
    np.save(folder / "digits_cnn" / "rows.npy", ROWS)
    (folder / "digits_cnn" / "model.toml").write_text('background = "rows.npy"\n')
    (folder / "smooth").mkdir()
    shutil.copytree(MODELS / "digits_cnn" / "1", folder / "smooth" / "1")
    (folder / "smooth" / "model.toml").write_text(SETTINGS)
    isolate = ["--isolate"] if request.param == "isolated" else []
    with running_server(folder, "--allow-export", *isolate) as server, Client(server.address) as found:
        found.models, found.at = folder, server.address
        yield found


def offline(recipe: Recipe):
    background = None if recipe.background == "none" else ROWS
    path = MODELS / "digits_cnn" / "1" / "model.onnx"
    return Explainer(path, recipe, background=background).explain(X, ["predicted", "3"])


def assert_nothing_lost(found, expected) -> None:
    """Relevances, standard errors and notes are those of the same explanation offline."""
    assert found.recipe == expected.recipe and found.recipe_digest == expected.recipe.digest
    np.testing.assert_array_equal(found.relevance, expected.relevance)
    assert found.standard_errors.keys() == expected.standard_errors.keys()
    for name, errors in expected.standard_errors.items():
        np.testing.assert_array_equal(found.standard_errors[name], errors)
        assert found.standard_errors[name].dtype == errors.dtype
    assert found.standard_error == expected.standard_error and set(expected.notes) <= set(found.notes)


@pytest.mark.parametrize("name", ["integrated_gradients", "feature_ablation"])
def test_the_background_is_the_models_own(client, name):
    found = client.explain("digits_cnn", X, ["predicted", "3"], method=name, baseline="background")
    expected = offline(Recipe.asked(name, baseline="background"))
    np.testing.assert_array_equal(found.relevance, expected.relevance)
    assert found.provenance["background"] == expected.provenance["background"]
    with pytest.raises(InputError, match="no background is given"):
        client.explain("smooth", X, method=name, baseline="background")


@pytest.mark.parametrize("own", [True, False], ids=["own base", "other base"])
@pytest.mark.parametrize("name", LOOPED)
def test_the_service_answers_as_offline_and_says_the_whole_recipe(client, name, own):
    base = None if own else other_base(name)
    found = client.explain("digits_cnn", X, ["predicted", "3"], method=name, base=base, **FEW[name])
    expected = offline(Recipe.asked(name, base, **FEW[name]))
    assert_nothing_lost(found, expected)
    assert found.provenance["recipe"] == expected.provenance["recipe"] and not found.conservation


@pytest.mark.parametrize("name", [name for name in of_family("looped", "forward-only") if METHODS[name].maps])
def test_methods_about_a_feature_map_answer_as_offline(client, name):
    found, expected = client.explain("digits_cnn", X, ["predicted", "3"], method=name), offline(Recipe.asked(name))
    assert list(found.relevances) == list(expected.relevances) == ["/ap/AveragePool_output_0"]
    np.testing.assert_array_equal(found.relevance, expected.relevance)
    np.testing.assert_array_equal(found.map, expected.map)
    assert found.provenance["maps"] == expected.provenance["maps"]
    assert found.boxes() == expected.boxes()


@pytest.mark.parametrize("name", FORWARD_ONLY)
def test_methods_that_run_the_model_alone_answer_as_offline(client, name):
    few = {
        option: 200 if name in ("lime", "kernel_shap") else 40
        for option in ("samples", "masks", "permutations")
        if option in METHODS[name].options
    }
    patch = {"patch": 14} if name in ("exact_shapley", "prediction_difference") else {}
    seen: list[tuple[int, int]] = []
    tell = lambda stage, done, total: seen.append((done, total))  # noqa: E731
    found = client.explain("digits_cnn", X, ["predicted", "3"], method=name, progress=tell, **few, **patch)
    expected = offline(Recipe.asked(name, **few, **patch))
    assert_nothing_lost(found, expected)
    assert all(done <= total for done, total in seen)
    assert not client.ready(f"digits_cnn.explain.{name}")


@pytest.mark.parametrize("method", ["integrated_gradients", "feature_ablation", "conductance", "ablation_cam"])
def test_a_layer_is_moved_and_read_as_offline(client, method):
    """The part behind the layer runs in the service's queues, and is opened once for all calls."""
    model = MODELS / "digits_cnn" / "1" / "model.onnx"
    (layer,) = Explainer(model, "hires_cam").explain(X, 0).relevances
    expected = Explainer(model, method, attribute_to=layer).explain(X, ["predicted", "3"])
    for _ in range(2):
        found = client.explain("digits_cnn", X, ["predicted", "3"], method=method, attribute_to=layer)
        np.testing.assert_array_equal(found.relevances[layer], expected.relevances[layer])
        assert found.recipe == expected.recipe and set(expected.notes) <= set(found.notes)
        assert found.provenance.get("maps") == expected.provenance.get("maps")


def test_sums_of_a_reply_have_no_standard_errors_and_that_is_said(client):
    request = v1.ExplainRequest(
        model=v1.ModelRef(name="digits_cnn"), inputs=[v1_tensor("input", X)], recipe=v1.Recipe(name="lime"),
        output_format=v1.OutputFormat(sum_axes=[1]),
    )  # fmt: skip
    with grpc.insecure_channel(client.at) as channel:
        reply = ExplainerServiceStub(channel).Explain(request, timeout=60)
    assert not reply.attributions[0].HasField("standard_error") and SUMS in reply.warnings


def test_a_models_default_may_be_a_loop(client):
    found = client.explain("smooth", X)
    assert found.recipe == Recipe("smooth_grad", {"samples": 5}, named("lrp-epsilon"))
    more = client.explain("smooth", X, samples=6)
    assert more.recipe == Recipe("smooth_grad", {"samples": 6}, named("lrp-epsilon"))
    assert not client.ready("smooth.explain") and client.ready("smooth") and client.ready("smooth.explain.lrp-epsilon")


@pytest.mark.parametrize(
    "words", [[], ["--option", "samples=6"], ["--composite", "epsilon_plus"], ["--method", "lrp"]], ids=" ".join
)
def test_explain_keeps_the_models_defaults_as_run_does(client, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    digit = MODELS / "digits_cnn" / "samples" / "three.npy"
    for place, model in (("run", client.models / "smooth"), ("explain", f"smooth@{client.at}")):
        main([place, str(model), str(digit), *words, "--out", place])  # SystemExit where it fails
    ours, theirs = (sorted(Path(place).glob("*.npz")) for place in ("run", "explain"))
    assert [path.name for path in ours] == [path.name for path in theirs] != []
    for a, b in zip(ours, theirs, strict=True):
        assert a.read_bytes() == b.read_bytes()


def test_progress_is_streamed(client):
    told = []
    client.explain("digits_cnn", X, method="integrated_gradients", steps=600, progress=lambda *now: told.append(now))
    counts = [(done, total) for stage, done, total in told if stage == "compute" and total > 1]
    assert counts == sorted(counts) and len(counts) > 1 and {total for _, total in counts} == {600 * len(X)}


def test_what_a_loop_notes_of_its_result_comes_with_the_answer(client):
    """Above all that relevance does not sum to what it should."""
    options = {"steps": 1, "quadrature": "right"}
    notes = offline(Recipe.asked("integrated_gradients", **options)).notes
    assert any("does not sum to F(x) - F(x')" in note for note in notes)
    found = client.explain("digits_cnn", X, ["predicted", "3"], method="integrated_gradients", **options)
    assert set(notes) <= set(found.notes)


@pytest.mark.parametrize("name", [name for name in LOOPED if looks_of(name)])
def test_a_call_that_is_over_ends_its_loop(client, name):
    begun = time.monotonic()
    with pytest.raises(OnnxplainError):
        client.explain("digits_cnn", X, method=name, timeout=0.5, **MANY[name])
    client.explain("digits_cnn", X, method="gradient")  # the slot is free again
    assert time.monotonic() - begun < 20  # 60000 looks take minutes


def test_what_progress_raises_ends_the_call(client):
    def stop(*now):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        client.explain("digits_cnn", X, method="smooth_grad", samples=20000, progress=stop)
    assert client.explain("digits_cnn", X, method="gradient").relevance.any()
    assert threading.active_count() < 50


@pytest.mark.parametrize("name", LOOPED)
def test_what_serves_a_graph_refuses_a_loop_by_name(client, name):
    says = f"method {name} has no graph of its own: it runs that of {METHODS[name].base} many times"
    with pytest.raises(UsageError, match=says):
        client.compile("digits_cnn", method=name)
    with pytest.raises((InputError, NotFound, UsageError), match=says):
        client.infer(f"digits_cnn.explain.{name}", X)
    assert not client.ready(f"digits_cnn.explain.{name}")


def test_recipes_are_listed_with_their_options(client):
    info = {entry.name: entry for entry in client.recipes()}
    looped = info["integrated_gradients"]
    assert looped.kind == "looped" and info["lrp"].kind == "one-pass"
    assert looped.schema["properties"]["steps"]["minimum"] == 1 and looped.defaults["steps"] == 50
    assert looped.defaults["base"]["method"] == "gradient" and "integrated_gradients-lrp" in info


@pytest.mark.parametrize(
    "options, says",
    [
        ({"steps": 0}, "from 1 to 1000000"), ({"stps": 5}, "Did you mean steps"),
        ({"composite": "epsilon"}, "takes no composite"),
        ({"base": "smooth_grad"}, "is a one-pass method"), ({"base": "nothing"}, "no method named"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line(client, options, says):
    with pytest.raises(UsageError, match=says):
        client.explain("digits_cnn", X, method="integrated_gradients", **options)


def test_a_ledger_is_of_one_run(client):
    with pytest.raises(InputError, match=r"a ledger is of one run; take it of gradient"):
        client.explain("digits_cnn", X, method="smooth_grad", ledger=True)


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """The flowers with a background of their own."""
    folder = tmp_path_factory.mktemp("tables")
    shutil.copytree(MODELS / "iris_mlp", folder / "iris_mlp")
    settings = folder / "iris_mlp" / "model.toml"
    settings.write_text('background = "samples/flowers.csv"\n' + settings.read_text())
    with running_server(folder) as server, Client(server.address) as found:
        yield found


@pytest.mark.parametrize("name", [name for name, entry in METHODS.items() if getattr(entry, "of_tables", False)])
def test_methods_for_tables_answer_as_offline_and_say_it_in_the_names_of_columns_and_classes(tables, name):
    archive = np.load(MODELS / "iris_mlp" / "samples" / "flowers.npz")
    rows = np.asarray(archive[archive.files[0]], np.float32)
    settings = load_settings(MODELS / "iris_mlp" / "model.toml")
    found = tables.explain("iris_mlp", rows[:2], method=name)
    expected = Explainer(
        MODELS / "iris_mlp" / "1" / "model.onnx", name, background=rows, columns=settings.features[""],
        labels=["setosa", "versicolor", "virginica"], kind="classification",
    ).explain(rows[:2])  # fmt: skip
    np.testing.assert_array_equal(found.relevance, expected.relevance)
    assert set(expected.notes) <= set(found.notes)
    assert any("petal" in note and "virginica" in note for note in found.notes)
