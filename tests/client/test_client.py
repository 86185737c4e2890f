"""The client and `onnxplain explain` against a real server: the same answers as offline, errors as offline."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import onnx
import onnxruntime
import pytest
from certificates import authority, signed
from nets import MODELS, NAMES
from PIL import Image
from running import running_server

import onnxplain
from onnxplain import AsyncClient, Client, Explainer
from onnxplain.cli import main
from onnxplain.cli.explain import where
from onnxplain.client import RemoteExplanation, errors
from onnxplain.client.connection import Connection
from onnxplain.client.dialogues import Dialogues
from onnxplain.errors import (
    Busy,
    Denied,
    Expired,
    InputError,
    NotFound,
    OnnxplainError,
    Unauthenticated,
    Unavailable,
    UnsupportedModel,
    UsageError,
)
from onnxplain.v1 import explainer_pb2 as v1

FILES = {
    "mobilenet_v2": ["chelsea.png"],
    "digits_cnn": ["digit_3.png", "digit_7.png"],
    "digits_vit": ["three.npy"],
    "digits_gru": ["digit_8.png", "digit_0.png"],
    "iris_mlp": ["flowers.csv"],
    "bc_logreg": ["cells.npz"],
}
SECRET = "a-token-of-the-tests-0123456789"
LIMIT = 2 << 20  # bytes of a message, so that a batch of four photographs goes in pieces
DIGITS = MODELS / "digits_cnn"


def samples(name: str) -> list[Path]:
    return [MODELS / name / "samples" / file for file in FILES[name]]


def digit(n: int = 3) -> np.ndarray:
    picture = Image.open(DIGITS / "samples" / f"digit_{n}.png").convert("L").resize((28, 28), 2)
    return np.asarray(picture, np.float32)[None, None] * np.float32(1 / 255)


@pytest.fixture(scope="module")
def server():
    with running_server(MODELS, "--allow-export", "--queue-rows", "4096", "--max-message-bytes", str(LIMIT)) as found:
        yield found


@pytest.fixture(scope="module")
def client(server):
    with Client(server.address) as found:
        yield found


@pytest.fixture
def call(capsys, tmp_path, monkeypatch):
    """Run a command line in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        code = 0
        try:
            main([str(a) for a in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
        return (code, *capsys.readouterr())

    return run


# -- the same as offline ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_explain_writes_the_very_files_that_run_writes(call, server, tmp_path, name):
    """Relevance in the npz byte for byte, pictures too; the manifest has times and the report the address in them."""
    assert call("run", MODELS / name, *samples(name), "--out", "here")[0] == 0
    code, _, problems = call("explain", f"{name}@{server.address}", *samples(name), "--out", "there")
    assert code == 0, problems
    ours, theirs = ({p.name: p.read_bytes() for p in (tmp_path / at).iterdir()} for at in ("here", "there"))
    assert ours.keys() == theirs.keys()
    for file in ours.keys() - {"manifest.json", "report.html"}:
        assert ours[file] == theirs[file], file


def test_several_methods_targets_and_files_are_those_of_run(call, server, tmp_path):
    asked = ["--method", "gradient", "--method", "lrp", "--method", "clrp2", "--composite", "epsilon", "--form", "code"]
    asked += [
        "--target",
        "top2",
        "--target",
        "0 vs 8",
        "--rule",
        "type:Conv=z_plus",
        "--ledger",
        "--keep",
        "/Relu_output_0",
    ]
    asked += ["--attribute-to", "/Relu_output_0", "--palette", "seismic"]
    for command, model in (("run", DIGITS), ("explain", f"digits_cnn/1@{server.address}")):
        code, _, problems = call(command, model, *samples("digits_cnn"), *asked, "--out", command)
        assert code == 0, problems
    ours, theirs = ({p.name: p.read_bytes() for p in (tmp_path / at).iterdir()} for at in ("run", "explain"))
    assert ours.keys() == theirs.keys() and len([n for n in ours if n.endswith(".npz")]) == 3
    for file in ours.keys() - {"manifest.json", "report.html"}:
        assert ours[file] == theirs[file], file
    here, there = (json.loads(files["manifest.json"]) for files in (ours, theirs))
    assert [r["digest"] for r in here["recipes"]] == [r["digest"] for r in there["recipes"]]
    assert here["model"]["sha256"] == there["model"]["sha256"] and here["targets"] == there["targets"]


def test_the_explanation_is_the_offline_one_in_every_part(client):
    x = np.concatenate([digit(3), digit(7)])
    labels = [str(n) for n in range(10)]
    offline = Explainer(
        DIGITS / "1" / "model.onnx", composite="epsilon", labels=labels, kind="classification", ledger=True,
        bounds=([0.0], [1.0]),
    ).explain(x, ["predicted", 4, "1 vs 7"])  # fmt: skip
    found = client.explain("digits_cnn", x, ["predicted", 4, "1 vs 7"], composite="epsilon", ledger=True)
    assert isinstance(found, onnxplain.Explanation) and isinstance(found, RemoteExplanation)
    assert found.npz() == offline.npz() and np.array_equal(found.map, offline.map)
    assert (found.method, found.recipe, found.explained) == (offline.method, offline.recipe, offline.explained)
    assert (found.labels, found.kind, found.samples) == (offline.labels, offline.kind, offline.samples)
    assert found.provenance == json.loads(json.dumps(offline.provenance))
    assert found.recipe_digest == offline.recipe.digest and found.version == "1"
    for mine, theirs in zip(found.targets, offline.targets, strict=True):
        assert (mine.name, mine.names) == (theirs.name, theirs.names)
        assert np.array_equal(mine.seed, theirs.seed) and np.array_equal(mine.score, theirs.score)
        assert (mine.index is None) == (theirs.index is None)
    assert np.array_equal(found.ledger, offline.ledger) and found.where(1) == offline.where(1)
    assert found.plot().tobytes() == offline.plot().tobytes()
    assert len(found.layers) == found.ledger.shape[1] and len(found.conservation) == 6


def test_a_picture_is_the_same_from_a_path_a_list_and_memory(client):
    path = samples("digits_cnn")[0]
    by_path = client.explain("digits_cnn", path)
    assert np.array_equal(by_path.inputs["input"], digit(3))
    for x in (str(path), [path], Image.open(path), Image.open(path).convert("CMYK").convert("L"), digit(3)):
        assert np.array_equal(client.explain("digits_cnn", x).relevance, by_path.relevance)
    assert client.explain("digits_cnn", [path, path]).samples == 2


def test_async_and_sync_clients_give_the_same(client, server):
    async def ask():
        async with AsyncClient(server.address) as c:
            found = await asyncio.gather(*(c.explain("digits_cnn", digit(n), n) for n in (0, 3, 7, 8)))
            return found, await c.infer("digits_cnn", digit()), await c.models(), await c.ready(), await c.recipes()

    found, inferred, models, ready, recipes = asyncio.run(ask())
    for n, explanation in zip((0, 3, 7, 8), found, strict=True):
        alone = client.explain("digits_cnn", digit(n), n).relevance
        assert np.abs(explanation.relevance - alone).max() <= 1e-5 * np.abs(alone).max()  # they may share a run
    assert np.array_equal(inferred["logits"], client.infer("digits_cnn", digit())["logits"])
    assert models == client.models() and ready and [r.name for r in recipes] == [r.name for r in client.recipes()]


def test_tensors_beyond_the_limit_travel_in_pieces(client):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 3, 224, 224)).astype(np.float32)  # 2.3 MiB
    told = []
    found = client.explain("mobilenet_v2", x, method="gradient", progress=lambda *args: told.append(args))
    assert [t for t in told if t[0] == "send"][-1] == ("send", x.nbytes, x.nbytes)
    one = client.explain("mobilenet_v2", x[2:3], method="gradient")
    assert np.abs(found.relevance[2:3] - one.relevance).max() <= 1e-5 * np.abs(one.relevance).max()
    with pytest.raises(UsageError, match="zebu"):  # an error of one request on a stream is that error
        client.explain("mobilenet_v2", x, "zebu")
    with pytest.raises(InputError, match="larger than max"):
        client.infer("mobilenet_v2", x)


# -- the other methods -----------------------------------------------------------------------------------------------


def test_a_compiled_graph_arrives_whole(client):
    content = client.compile("digits_cnn", method="gradient")
    model = onnx.load_model_from_string(content)
    assert [o.name for o in model.graph.output] == ["logits", "input.relevance"]
    seed = np.eye(10, dtype=np.float32)[3:4]
    session = onnxruntime_session(content)
    expected = client.explain("digits_cnn", digit(), 3, method="gradient")
    assert np.array_equal(
        session.run(["input.relevance"], {"input": digit(), "logits.seed": seed})[0], expected.relevance
    )


def onnxruntime_session(content):
    return onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])


def test_infer_answers_as_onnxruntime_and_as_the_compiled_graph(client):
    session = onnxruntime_session((DIGITS / "1" / "model.onnx").read_bytes())
    expected = session.run(["logits"], {"input": digit()})[0]
    assert np.array_equal(client.infer("digits_cnn", digit())["logits"], expected)
    assert np.array_equal(client.infer("digits_cnn", {"input": digit().astype(np.float64)})["logits"], expected)
    found = client.infer("digits_cnn.explain", samples("digits_cnn")[0], parameters={"onnxplain_target": "8"})
    assert np.array_equal(found["input.relevance"], client.explain("digits_cnn", digit(), 8).relevance)
    seed = np.eye(10, dtype=np.float32)[8:9]
    again = client.infer("digits_cnn.explain", {"input": digit(), "logits.seed": seed}, ["input.relevance"])
    assert list(again) == ["input.relevance"] and np.array_equal(again["input.relevance"], found["input.relevance"])


def test_the_server_tells_its_models_recipes_and_whether_it_is_ready(client):
    assert {state.name for state in client.models()} >= {*NAMES, *(f"{name}.explain" for name in NAMES)}
    loops = {"bc_randomforest.explain", "diabetes_gbr.explain"}  # their default has no graph
    assert all(state.state == "READY" or state.name in loops for state in client.models())
    assert {r.name for r in client.recipes()} >= {"gradient", "lrp", "lrp-epsilon", "clrp1"}
    assert client.ready() and client.ready("digits_cnn.explain") and not client.ready("nothing")
    told = client.explainability("digits_cnn")
    assert list(told.labels)[:2] == ["0", "1"] and told.max_message_bytes == LIMIT


# -- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ask, kind, words, field",
    [
        (lambda c: c.explain("digits_cn", digit()), NotFound, "digits_cnn", "model"),
        (lambda c: c.explain("digits_cnn", digit(), version="9"), NotFound, "9", "model"),
        (lambda c: c.explain("digits_cnn", digit(), "eleven"), UsageError, "eleven", "targets[0].expression"),
        (lambda c: c.explain("digits_cnn", digit(), [1, 12]), UsageError, "0 to 9", "targets[1].expression"),
        (lambda c: c.explain("digits_cnn", digit(), method="lpr"), UsageError, "lrp", "recipe"),
        (lambda c: c.explain("digits_cnn", digit(), outputs="nix"), OnnxplainError, "nix", ""),
        (lambda c: c.explain("digits_cnn", digit()[0, 0]), InputError, "28", ""),
        (lambda c: c.explain("digits_cnn", "no.png"), InputError, "no.png", ""),
        (lambda c: c.infer("digits_cnn", {"other": digit()}), InputError, "other", "inputs[0].name"),
        (lambda c: c.explain("digits_gru", np.zeros((1, 8, 8)), method="lrp"), UnsupportedModel, "GRU", ""),
        (lambda c: c.explain("digits_cnn", digit(), recipe="lrp", method="lrp"), UsageError, "alone", ""),
    ],
)
def test_a_mistake_raises_the_error_it_raises_offline(client, ask, kind, words, field):
    with pytest.raises(kind) as found:
        ask(client)
    assert words in str(found.value) and "\n" not in str(found.value)
    assert found.value.field.startswith(field)


def test_nobody_there_is_one_line_and_no_traceback(call):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    code, out, problems = call("explain", f"m@127.0.0.1:{port}", DIGITS / "samples" / "three.npy")
    assert code == 4 and out == "" and problems.count("\n") == 1 and "onnxplain serve" in problems
    assert not Client(f"127.0.0.1:{port}", retries=0).ready()


def test_the_deadline_covers_all_calls_and_retries():
    with socket.socket() as deaf:  # takes connections and says nothing
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        begun = time.monotonic()
        with pytest.raises((Expired, Unavailable)):
            Client(f"127.0.0.1:{deaf.getsockname()[1]}", timeout=0.7).models()
        assert time.monotonic() - begun < 2.0


def test_a_server_that_starts_late_is_waited_for_and_other_errors_are_not_tried_again():
    calls = []

    class Flaky(grpc.GenericRpcHandler):
        def service(self, details):
            def answer(request, context):
                calls.append(details.method)
                if len(calls) < 3:
                    context.abort(grpc.StatusCode.UNAVAILABLE, "loading")
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")

            return grpc.unary_unary_rpc_method_handler(answer)

    server = grpc.server(ThreadPoolExecutor(2), handlers=[Flaky()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with pytest.raises(InputError, match="full"):
            Client(f"127.0.0.1:{port}").models()
        assert len(calls) == 3
        with pytest.raises(Unavailable, match="loading"):
            calls.clear()
            Client(f"127.0.0.1:{port}", retries=1).models()
        assert len(calls) == 2
    finally:
        server.stop(0)


def test_a_status_becomes_the_class_of_the_same_name():
    for name, kind in (("NOT_FOUND", NotFound), ("UNAVAILABLE", Unavailable), ("DEADLINE_EXCEEDED", Expired),
                       ("PERMISSION_DENIED", Denied), ("UNAUTHENTICATED", Unauthenticated)):  # fmt: skip
        found = errors.made(name, "words")
        assert type(found) is kind or isinstance(found, kind)
        assert found.status == name and str(found) == "words"
    assert errors.made("INTERNAL", "log id 1").status == "INTERNAL"
    busy = errors.made("RESOURCE_EXHAUSTED", "full", retry=0.5)
    assert isinstance(busy, Busy) and busy.retry == 0.5


# -- versions --------------------------------------------------------------------------------------------------------


def test_a_picture_prepared_for_the_old_version_is_prepared_anew(tmp_path):
    """Version 2 wants the negative. The client knows version 1; the reply says 2; it asks again."""
    folder = tmp_path / "digits"
    shutil.copytree(DIGITS, folder)
    with (
        running_server(tmp_path, "--model-control-mode", "poll", "--poll-seconds", "0.2") as server,
        Client(server.address) as client,
        Client(server.address) as other,
    ):
        first = client.explain("digits", samples("digits_cnn")[0])
        shutil.copytree(folder / "1", folder / "new")
        (folder / "new" / "model.toml").write_text('[input]\nscale = "-1/255"\nbounds = [-1, 0]\n')
        (folder / "new").rename(folder / "2")
        until = time.monotonic() + 30
        while other.explain("digits", digit()).version == "1":  # the first client is not told
            assert time.monotonic() < until, server.log
            time.sleep(0.1)
        second = client.explain("digits", samples("digits_cnn")[0])
    assert (first.version, second.version) == ("1", "2")
    assert np.array_equal(second.inputs["input"], -first.inputs["input"])


def test_another_version_takes_another_shape_and_no_client_refuses_it(tmp_path):
    """Every method of a client that knows version 1, a classifier of pictures, when version 2 takes tables of four.

    Its own method is another one too, and the method that is asked for is the one that answers all the same.
    """
    for version, name in (("1", "digits_cnn"), ("2", "iris_mlp")):
        shutil.copytree(MODELS / name / "1", tmp_path / version)
        for file in ("model.toml", "labels.txt"):
            shutil.copy(MODELS / name / file, tmp_path / version / file)
    (tmp_path / "models" / "m").mkdir(parents=True)
    (tmp_path / "1").rename(tmp_path / "models" / "m" / "1")
    flowers = np.array([[5.1, 3.5, 1.4, 0.2]], np.float32)
    asks = {
        "explain": lambda client, x: client.explain("m", x, method="lrp"),
        "infer": lambda client, x: client.infer("m", x),
        "infer a file": lambda client, x: client.infer("m", client.prepare("m", x)),
        "prepare": lambda client, x: client.prepare("m", x),
        "explain it": lambda client, x: client.infer("m.explain", x),
    }
    with (
        running_server(tmp_path / "models", "--model-control-mode", "poll", "--poll-seconds", "0.2") as server,
        Client(server.address) as other,
        contextlib.ExitStack() as stack,
    ):
        clients = {name: stack.enter_context(Client(server.address)) for name in asks}
        for name, ask in asks.items():
            ask(clients[name], digit())
            with pytest.raises(InputError):
                ask(clients[name], flowers)  # of version 1 it is wrong
        (tmp_path / "2").rename(tmp_path / "models" / "m" / "2")
        until = time.monotonic() + 30
        while other.explainability("m").model.version == "1":  # the clients are not told
            assert time.monotonic() < until, server.log
            time.sleep(0.1)
        found = {name: ask(clients[name], flowers) for name, ask in asks.items()}
        assert (found["explain"].version, found["explain"].method.name) == ("2", "lrp")
        with pytest.raises(InputError):
            clients["infer"].infer("m", digit())


@pytest.mark.parametrize("method", ["lrp", "gradient_x_input"])
def test_the_method_asked_for_answers_although_the_next_version_has_another_of_its_own(method):
    """To name the model's own method is to name none, so that options are laid over its own recipe."""
    dialogues = Dialogues()

    def told(version, own):
        said = v1.GetExplainabilityResponse(default_recipe=own, max_message_bytes=1 << 20)
        said.model.version = version
        said.inputs.add(name="x", datatype="FP32", shape=[-1, 1])
        return said

    steps = dialogues.explain("m", np.ones((1, 1), np.float32), "0", "", method, None, {}, "", "", (), (), False, None)
    next(steps)
    call = steps.send(told("1", "lrp"))
    reply = v1.ExplainResponse()
    reply.model.version = "2"
    steps.send(reply)  # answered by its own method where none was named; now it asks what version 2 is
    call = steps.send(told("2", "gradient_x_input"))
    assert call.request.recipe.name == ("lrp" if method == "lrp" else "")


# -- the way there ---------------------------------------------------------------------------------------------------


def test_tokens_and_certificates_open_the_door(tmp_path, call):
    root, stranger = authority(), authority("somebody else")
    root.write(tmp_path, "ca"), stranger.write(tmp_path, "other")
    signed(root, "localhost", "127.0.0.1").write(tmp_path, "server")
    signed(root, "me").write(tmp_path, "me")
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(f'[tokens.reader]\ntoken = "{SECRET}"\nscopes = ["infer", "explain"]\n')
    tokens.chmod(0o600)
    (tmp_path / "secret").write_text(SECRET + "\n")
    pem = {name: str(tmp_path / f"{name}.pem") for name in ("ca", "other", "server", "me")}
    keys = {name: str(tmp_path / f"{name}.key") for name in ("server", "me")}
    flags = ["--tls-cert", pem["server"], "--tls-key", keys["server"], "--tls-ca", pem["ca"], "--token-file", tokens]
    mine = {"ca": pem["ca"], "cert": pem["me"], "key": keys["me"]}
    credentials = Connection("localhost:1", **mine).credentials()
    with running_server(DIGITS / "1" / "model.onnx", *flags, credentials=credentials) as server:
        address = f"localhost:{server.port}"
        with Client(address, token=SECRET, **mine) as client:
            assert client.explain("digits_cnn", digit(), 3).version == "1"
            with pytest.raises(Denied, match="export"):
                client.compile("digits_cnn")
        with pytest.raises(Unauthenticated):
            Client(address, **mine).models()
        with pytest.raises(Unauthenticated, match="secure"):
            Client(address, token=SECRET, **{**mine, "ca": pem["other"]}).models()
        with pytest.raises((Unauthenticated, Unavailable)):
            Client(address, token=SECRET, ca=pem["ca"]).models()
        with pytest.raises(Unavailable, match="TLS"):
            Client(address, token=SECRET).models()
        shell = [
            f"digits_cnn@{address}",
            DIGITS / "samples" / "three.npy",
            "--tls-ca",
            pem["ca"],
            "--tls-cert",
            pem["me"],
        ]
        shell += ["--tls-key", keys["me"], "--token-file", tmp_path / "secret", "--target", "3"]
        code, _, problems = call("explain", *shell)
        assert code == 0 and (tmp_path / "explanations" / "digits_cnn" / "grid.png").is_file(), problems
        code, _, problems = call("explain", *shell[:-4])
        assert code == 4 and problems.count("\n") == 1 and "Traceback" not in problems


@pytest.mark.parametrize(
    "text, version, expected",
    [
        ("mobilenet_v2@localhost:8001", "", ("mobilenet_v2", "", "localhost:8001")),
        ("m/7@[::1]:80", "", ("m", "7", "[::1]:80")),
        ("m/@champion@h:1", "", ("m", "@champion", "h:1")),
        ("m@h:1", "@champion", ("m", "@champion", "h:1")),
    ],
)
def test_a_model_on_a_server_is_named_in_one_word(text, version, expected):
    assert where(text, version) == expected


@pytest.mark.parametrize("text, version", [("m", ""), ("@h:1", ""), ("m@", ""), ("m/1@h:1", "2")])
def test_a_word_that_names_no_model_on_a_server(text, version):
    with pytest.raises(UsageError):
        where(text, version)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"address": "localhost"}, "HOST:PORT"),
        ({"address": "localhost:http"}, "HOST:PORT"),
        ({"address": "example.org:8001", "token": "x" * 20}, "plain text"),
        ({"address": "localhost:8001", "cert": "a.pem"}, "together"),
        ({"address": "localhost:8001", "token": "two\nlines"}, "token"),
    ],
)
def test_an_address_or_a_secret_that_cannot_be_right(arguments, words):
    with pytest.raises(UsageError, match=words):
        Connection(**arguments)
    assert Connection("[::1]:8001", "t" * 20).metadata() == (("authorization", "Bearer " + "t" * 20),)


def test_a_closed_client_says_so(server):
    client = Client(server.address)
    client.models()
    client.close()
    with pytest.raises(UsageError, match="closed"):
        client.models()

    async def ask(used):
        other = AsyncClient(server.address)
        if used:
            await other.models()
        await other.close()
        await other.models()

    for used in (False, True):
        with pytest.raises(UsageError, match="closed"):
            asyncio.run(ask(used))


def test_threads_share_a_client(client):
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: client.explain("digits_cnn", digit(), n % 10), range(40)))
    for n in range(10):
        alone = client.explain("digits_cnn", digit(), n).relevance
        for explanation in found[n::10]:
            assert np.abs(explanation.relevance - alone).max() <= 1e-5 * np.abs(alone).max()


def test_an_abandoned_explanation_leaves_the_client_usable(server):
    async def ask():
        async with AsyncClient(server.address) as client:
            await client.explain("mobilenet_v2", samples("mobilenet_v2")[0])
            task = asyncio.create_task(client.explain("mobilenet_v2", samples("mobilenet_v2")[0], "top5"))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return await client.explain("digits_cnn", digit(), 3)

    assert asyncio.run(ask()).target == "3"
