"""A real MLflow server: registered versions are served, logged recipes come back, explanations are judged."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from onnxplain import Explainer
from onnxplain.errors import InputError, Unavailable
from onnxplain.recipes import Recipe
from onnxplain.sources.mlflow import MlflowSource
from onnxplain.sources.webhook import WebhookReceiver

pytest.importorskip("mlflow.server", reason="pip install -r tests/clients/requirements-mlflow.txt")

from .mlflow_server import Server, at, client, free_port, move_alias, register, stored

pytestmark = [pytest.mark.clients, pytest.mark.timeout(300)]
MODELS = Path(__file__).parents[2] / "models"
CNN, VIT = MODELS / "digits_cnn/1/model.onnx", MODELS / "digits_vit/1/model.onnx"
TOML = MODELS / "digits_cnn/model.toml"
SECONDS = 5.0


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One server with clf/1 (a CNN) and clf/2 (a transformer) of the same inputs and outputs; champion is 1."""
    server = Server(tmp_path_factory.mktemp("mlflow"))
    server.start()
    try:
        assert [register(server.uri, "clf", path) for path in (CNN, VIT)] == ["1", "2"]
        move_alias(server.uri, "clf", "champion", "1")
        yield server
    finally:
        server.stop()


@pytest.fixture
def source(server, tmp_path):
    """Makes sources of the server, each with a cache of its own."""
    made = []

    def make(query: str, cache: Path | None = None) -> MlflowSource:
        made.append(MlflowSource(f"mlflow+{server.uri}?{query}", cache or tmp_path / "cache", SECONDS))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    file = np.load(MODELS / "digits_cnn/samples/ten_digits.npz")
    return file[file.files[0]].astype(np.float32)


def scores(path: Path, x: np.ndarray) -> np.ndarray:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"input": x})[0]


def versions(source: MlflowSource) -> list[tuple[str, str]]:
    return [(release.name, release.version) for release in source.releases()]


def test_versions_aliases_and_latest_resolve_in_every_form(source):
    assert versions(source("model=clf/1")) == versions(source("model=models:/clf@champion")) == [("clf", "1")]
    assert versions(source("model=clf")) == versions(source("model=models:/clf/latest")) == [("clf", "2")]
    assert versions(source("model=clf@champion&model=clf/2")) == [("clf", "1"), ("clf", "2")]
    assert ("clf", "1") in versions(source("alias=champion"))
    for wrong in ("model=clf/9", "model=clf@nobody", "model=nothing"):
        with pytest.raises(InputError):
            source(wrong).releases()


def test_the_files_fetched_are_the_model_registered(source, digits):
    both = source("model=clf/1&model=clf/2")
    for release, path in zip(both.releases(), (CNN, VIT), strict=True):
        np.testing.assert_array_equal(scores(both.fetch(release).path, digits), scores(path, digits))


def test_a_moved_alias_is_seen_by_the_next_poll_and_every_poll_answers(server, source):
    moving = source("model=clf@champion")
    assert versions(moving) == [("clf", "1")]
    try:
        for version in "2121":
            move_alias(server.uri, "clf", "champion", version)
            (release,) = moving.releases()
            assert (release.version, release.aliases) == (version, ("champion",))
    finally:
        move_alias(server.uri, "clf", "champion", "1")


def test_polls_during_moves_give_one_version_or_the_other_and_never_fail(server, source):
    moving, seen, stop = source("model=clf@champion"), [], threading.Event()

    def poll() -> None:
        while not stop.is_set():
            seen.extend(versions(moving))

    thread = threading.Thread(target=poll)
    versions(moving)  # starts MLflow's client, which takes a second or two
    thread.start()
    try:
        for i in range(20):
            move_alias(server.uri, "clf", "champion", str(2 - i % 2))
            time.sleep(0.1)
    finally:
        stop.set()
        thread.join(30)
        move_alias(server.uri, "clf", "champion", "1")
    assert len(seen) > 20 and set(seen) == {("clf", "1"), ("clf", "2")}


def test_what_was_downloaded_is_served_from_the_cache_without_the_registry(tmp_path):
    server = Server(tmp_path / "mlflow")
    server.start()
    source = MlflowSource(f"mlflow+{server.uri}?model=clf", tmp_path / "cache", SECONDS)
    try:
        register(server.uri, "clf", CNN)
        (release,) = source.releases()
        fetched = source.fetch(release)
        server.pause()
        begun = time.monotonic()
        with pytest.raises(Unavailable):
            source.releases()
        assert time.monotonic() - begun < SECONDS + 2
        server.resume()
        assert source.releases() == [release]
        server.stop()
        begun = time.monotonic()
        with pytest.raises(Unavailable):
            source.releases()
        assert time.monotonic() - begun < SECONDS + 2
        assert source.fetch(release) == fetched
        server.start()
        assert source.releases() == [release]
    finally:
        source.close()
        server.stop()


@pytest.mark.parametrize("damage", ["model", "weights", "MLmodel", "missing"])
def test_a_corrupt_artifact_is_refused_until_it_is_repaired(damage, server, source, digits, tmp_path):
    version = register(server.uri, "hurt", CNN)
    folder = stored(server, "hurt", version)
    shutil.copytree(folder, tmp_path / "whole")
    if damage == "model":
        (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes()[:5000])
    elif damage == "weights":
        (file,) = folder.glob("*.data")
        file.write_bytes(file.read_bytes()[:1000])
    elif damage == "MLmodel":
        (folder / "MLmodel").write_bytes(b"\x00\x01 : [")
    else:
        shutil.rmtree(folder)
    one = source(f"model=hurt/{version}")
    (release,) = one.releases()
    for _ in range(2):
        with pytest.raises(InputError) as caught:
            one.fetch(release)
    assert "\n" not in str(caught.value) and str(tmp_path) not in str(caught.value)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(tmp_path / "whole", folder)
    np.testing.assert_array_equal(scores(one.fetch(release).path, digits), scores(CNN, digits))


def test_a_damaged_cache_is_downloaded_anew(source, digits):
    one = source("model=clf/1")
    (release,) = one.releases()
    path = one.fetch(release).path
    path.write_bytes(path.read_bytes()[:-1])
    np.testing.assert_array_equal(scores(one.fetch(release).path, digits), scores(CNN, digits))


# --- the flavor


def test_a_logged_model_is_served_with_its_recipe_and_settings(server, source, digits):
    import onnxplain.mlflow

    with at(server.uri):
        info = onnxplain.mlflow.log_model(CNN, "ours", settings=TOML, registered_model_name="ours")
    assert {"onnx", "onnxplain", "python_function"} <= info.flavors.keys()
    one = source("model=ours")
    resolved = one.fetch(one.releases()[0])
    assert Recipe.of(resolved.settings.defaults) == Recipe("lrp", {"composite": "epsilon_plus_flat"})
    assert resolved.settings.output.kind == "classification"
    assert Path(resolved.settings.output.labels).read_text() == (MODELS / "digits_cnn/labels.txt").read_text()
    with at(server.uri):
        explainer = onnxplain.mlflow.load_explainer("models:/ours/latest", provider="cpu")
    direct = Explainer(CNN, composite="epsilon_plus_flat", provider="cpu")
    np.testing.assert_array_equal(explainer.explain(digits, 3).relevance, direct.explain(digits, 3).relevance)
    assert explainer.labels == tuple("0123456789")


def test_the_stored_graph_is_the_recipes_and_runs_in_any_onnxruntime(tmp_path, digits):
    import onnxplain.mlflow

    onnxplain.mlflow.save_model(CNN, tmp_path / "m", recipe=Recipe("gradient_x_input"))
    session = onnxruntime.InferenceSession(str(tmp_path / "m/explain.onnx"), providers=["CPUExecutionProvider"])
    seed = np.eye(10, dtype=np.float32)[np.full(len(digits), 3)]
    logits, relevance = session.run(["logits", "input.relevance"], {"input": digits, "logits.seed": seed})
    expected = Explainer(CNN, "gradient_x_input", provider="cpu").explain(digits, 3)
    np.testing.assert_allclose(relevance, expected.relevance, atol=1e-5 * np.abs(expected.relevance).max())
    np.testing.assert_allclose(logits, scores(CNN, digits), rtol=1e-5, atol=1e-5)
    assert sum(f.stat().st_size for f in (tmp_path / "m").iterdir()) < 1.5 * CNN.stat().st_size  # weights once


def kinds_of_model() -> dict[str, object]:
    return {
        "path": CNN,
        "text": str(CNN),
        "proto": onnx.load(CNN),
        "explainer": Explainer(CNN, "gradient", labels=[f"digit {i}" for i in range(10)], kind="classification"),
    }


@pytest.mark.parametrize("kind", ["path", "text", "proto", "explainer"])
def test_paths_protos_and_explainers_are_saved_and_loaded(kind, tmp_path, digits):
    import mlflow

    import onnxplain.mlflow

    model = kinds_of_model()[kind]
    onnxplain.mlflow.save_model(model, tmp_path / "m")
    predicted = mlflow.pyfunc.load_model(str(tmp_path / "m")).predict(digits)["logits"]
    np.testing.assert_array_equal(predicted, scores(CNN, digits))
    loaded = onnxplain.mlflow.load_explainer(str(tmp_path / "m"), provider="cpu")
    assert loaded.recipe == (model.recipe if kind == "explainer" else Recipe())
    assert loaded.labels == (model.labels if kind == "explainer" else ())
    if kind == "proto":
        assert model == onnx.load(CNN)  # saving took nothing away from it


IRIS = MODELS / "iris_mlp/1/model.onnx"
COLUMNS = ["sepal length", "sepal width", "petal length", "petal width"]


def flowers():
    import pandas

    x = np.load(MODELS / "iris_mlp/samples/flowers.npz")["X"]
    return x, pandas.DataFrame(x, columns=COLUMNS)


def signed(folder: Path, **options) -> Explainer:
    """A model whose signature names its columns, saved and loaded."""
    from mlflow.models import infer_signature

    import onnxplain.mlflow

    onnxplain.mlflow.save_model(
        IRIS, folder, recipe={"method": "gradient"}, signature=infer_signature(flowers()[1]), **options
    )
    return onnxplain.mlflow.load_explainer(str(folder), provider="cpu")


def test_a_table_goes_by_the_columns_of_the_signature(tmp_path):
    x, table = flowers()
    loaded = signed(tmp_path / "m")
    assert loaded.columns == {"X": tuple(COLUMNS)}
    expected = loaded.explain(x).scores
    np.testing.assert_array_equal(loaded.explain(table[COLUMNS[::-1]]).scores, expected)
    for wrong in (table[COLUMNS[:3]], table.assign(id=1.0), table.rename(columns={COLUMNS[0]: "length"})):
        with pytest.raises(InputError, match="column"):
            loaded.explain(wrong)


def test_columns_of_an_explainer_are_stored_with_it(tmp_path):
    import onnxplain.mlflow

    onnxplain.mlflow.save_model(Explainer(IRIS, "gradient", columns=COLUMNS), tmp_path / "m")
    assert onnxplain.mlflow.load_explainer(str(tmp_path / "m"), provider="cpu").columns == {"X": tuple(COLUMNS)}


def test_the_evaluator_takes_columns_by_name(tmp_path):
    from onnxplain.mlflow.evaluator import arrays

    x, table = flowers()
    loaded = signed(tmp_path / "m")
    specs = loaded.subject.inputs
    np.testing.assert_array_equal(arrays(table[COLUMNS[::-1]], specs, 4, loaded.columns)["X"], x[:4])
    with pytest.raises(InputError, match="'petal width' is missing"):
        arrays(table[COLUMNS[:3]], specs, 4, loaded.columns)
    with pytest.raises(InputError, match="not known"):
        arrays(table, specs, 4, {})


def test_a_model_logged_by_mlflow_alone_has_the_default_recipe(server):
    import onnxplain.mlflow

    with at(server.uri):
        assert onnxplain.mlflow.load_explainer("models:/clf/1", provider="cpu").recipe == Recipe()


def test_a_logged_file_that_was_changed_is_not_loaded(tmp_path):
    import onnxplain.mlflow

    onnxplain.mlflow.save_model(CNN, tmp_path / "m")
    (tmp_path / "m/recipe.toml").write_text('method = "gradient"\n')
    with pytest.raises(InputError, match=r"recipe\.toml"):
        onnxplain.mlflow.load_explainer(str(tmp_path / "m"))


def test_a_model_is_not_saved_when_it_or_its_recipe_is_wrong(tmp_path):
    import onnxplain.mlflow
    from onnxplain.errors import OnnxplainError

    (tmp_path / "text.onnx").write_text("no model")
    for model, recipe in ((tmp_path / "text.onnx", None), (CNN, {"method": "nonsense"}), (CNN, {"mehtod": "lrp"})):
        with pytest.raises(OnnxplainError):
            onnxplain.mlflow.save_model(model, tmp_path / "m", recipe=recipe)
        shutil.rmtree(tmp_path / "m", ignore_errors=True)


def test_mlflow_models_serve_answers_without_onnxplain(tmp_path, digits):
    """MLflow's own scoring server, in which onnxplain cannot be imported."""
    import onnxplain.mlflow

    onnxplain.mlflow.save_model(CNN, tmp_path / "m", settings=TOML)
    (tmp_path / "hidden/onnxplain").mkdir(parents=True)
    (tmp_path / "hidden/onnxplain/__init__.py").write_text("raise ImportError('not here')")
    port, log = free_port(), (tmp_path / "log").open("wb")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # MLflow looks for uvicorn there
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(tmp_path / "m"), "--env-manager", "local"]
    process = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "hidden"), "PATH": path},
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    try:
        body = json.dumps({"inputs": {"input": digits[:2].tolist()}}).encode()
        ask = urllib.request.Request(f"http://127.0.0.1:{port}/invocations", body, {"Content-Type": "application/json"})
        until = time.monotonic() + 90
        while True:
            try:
                with urllib.request.urlopen(ask, timeout=30) as answer:
                    found = json.load(answer)["predictions"]
                break
            except OSError as error:
                assert not isinstance(error, urllib.error.HTTPError), error.read()
                assert process.poll() is None and time.monotonic() < until, (tmp_path / "log").read_text()[-2000:]
                time.sleep(0.3)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
        log.close()
    np.testing.assert_allclose(np.array(found["logits"]), scores(CNN, digits[:2]), rtol=1e-5, atol=1e-5)


# --- the evaluator


@pytest.fixture
def registered_evaluator():
    """As the entry point `mlflow.model_evaluator` does it, also where onnxplain is not installed with it."""
    from mlflow.models.evaluation.evaluator_registry import _model_evaluation_registry as evaluators

    from onnxplain.mlflow.evaluator import OnnxplainEvaluator

    evaluators.register("onnxplain", OnnxplainEvaluator)


def evaluated(server, uri, digits, config=None, evaluators=("onnxplain",)):
    import mlflow

    with at(server.uri), mlflow.start_run() as run:
        result = mlflow.models.evaluate(
            uri,
            digits.reshape(len(digits), -1),
            targets=np.zeros(len(digits), int),
            model_type="classifier",
            evaluators=list(evaluators),
            evaluator_config={"onnxplain": config or {}},
        )
        logged = mlflow.get_run(run.info.run_id).data.metrics
        files = [file.path for file in mlflow.artifacts.list_artifacts(run_id=run.info.run_id)]
    return result, logged, files


def test_explanations_are_judged_and_the_numbers_logged(server, digits, registered_evaluator):
    import onnxplain.mlflow

    with at(server.uri):
        onnxplain.mlflow.log_model(CNN, "judged", settings=TOML, registered_model_name="judged")
    result, logged, files = evaluated(server, "models:/judged/1", digits, {"random_seed": 7})
    metrics = {name.removeprefix("onnxplain/"): value for name, value in logged.items()}
    assert result.metrics == logged and files == ["onnxplain_evaluation.json"]
    assert metrics["conservation_error_max"] < 1e-4  # float32 through a dozen layers
    assert 0 < metrics["absorbed_by_bias"] < 1 and metrics["absorbed_by_stabiliser"] < 0.01
    assert metrics["deletion_drop"] > metrics["deletion_drop_random"]
    assert 0 < metrics["seconds_per_explanation"] < 10 and metrics["random_seed"] == 7
    content = result.artifacts["onnxplain_evaluation"].content
    assert len(content["rows"]["deletion_drop"]) == len(digits) and "epsilon_plus_flat" in content["recipe"]


def test_the_same_random_seed_gives_the_same_numbers(server, digits, registered_evaluator):
    timed = "onnxplain/seconds_per_explanation"
    once, again = (evaluated(server, "models:/clf/1", digits, {"rows": 4})[0].metrics for _ in range(2))
    assert {k: v for k, v in once.items() if k != timed} == {k: v for k, v in again.items() if k != timed}


def test_a_gradient_has_no_conservation_to_judge(server, digits, registered_evaluator, tmp_path):
    import onnxplain.mlflow

    onnxplain.mlflow.save_model(CNN, tmp_path / "m", recipe={"method": "saliency"})
    result, _, _ = evaluated(server, str(tmp_path / "m"), digits, {"model": str(tmp_path / "m"), "rows": 3})
    assert "onnxplain/conservation_error" not in result.metrics and "onnxplain/deletion_drop" in result.metrics


# --- webhooks


def test_a_moved_alias_arrives_as_a_signed_hint(server):
    """Moved again every second, because MLflow goes by a list of webhooks that may be older than ours."""
    from mlflow.entities.webhook import WebhookEvent

    async def hinted() -> None:
        woken, port = asyncio.Event(), free_port()
        receiver = WebhookReceiver("a secret of ours", woken.set, port=port)
        await receiver.start()
        mlflow = client(server.uri)
        hook = mlflow.create_webhook(
            "onnxplain",
            f"http://127.0.0.1:{port}/mlflow",
            [WebhookEvent.from_str("model_version_alias.created")],
            secret="a secret of ours",
        )
        try:
            for attempt in range(30):
                await asyncio.to_thread(move_alias, server.uri, "clf", "hinted", str(1 + attempt % 2))
                try:
                    await asyncio.wait_for(woken.wait(), 1)
                    return
                except TimeoutError:
                    continue
            raise AssertionError("no webhook in 30 s")
        finally:
            mlflow.delete_webhook(hook.webhook_id)
            await receiver.stop()

    asyncio.run(hinted())
