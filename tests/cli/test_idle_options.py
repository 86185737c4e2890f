"""Every option and keyword, in a situation in which it cannot act: an error in one line, never silence."""

from __future__ import annotations

import importlib

import click
import numpy as np
import onnx
import pytest
from nets import MODELS, net, normal, relu_net
from test_cli import fails, onnxplain  # noqa: F401

from onnxplain import Explainer
from onnxplain.cli import COMMANDS
from onnxplain.cli.bench_server import bench_server
from onnxplain.cli.bundle import to_bundle
from onnxplain.cli.command import Command
from onnxplain.client import Client
from onnxplain.compile import Request
from onnxplain.errors import UsageError
from onnxplain.exports import EXPORTS, ExportOption
from onnxplain.exports.registry import own_options
from onnxplain.inputs import PictureSettings, Preprocessing, load_settings
from onnxplain.inputs.preparation import picture_settings
from onnxplain.inputs.specs import InputSpec
from onnxplain.recipes import Recipe
from onnxplain.subject import Subject

assert to_bundle  # which its import makes an export target
CNN, DIGIT = MODELS / "digits_cnn", MODELS / "digits_cnn/samples/digit_3.png"
ARRAY = MODELS / "digits_cnn/samples/three.npy"
ALWAYS = {  # options that can act whatever else is given
    "run": {
        "target",
        "method",
        "attribute-to",
        "keep",
        "ledger",
        "provider",
        "threads",
        "out",
        "memory",
        "json",
        "input",
        "sample",
        "shape",
    },
    "explain": {"target", "method", "attribute-to", "keep", "ledger", "out", "palette", "box", "timeout", "json"},
    "compile": {"method", "output", "seed", "fold", "attribute-to", "keep", "ledger", "sample", "shape"},
    "cut": {"output", "sample", "shape"},
    "chain": {"output", "sample", "shape"},
    "fit": {"output", "held-out", "random-seed", "provider", "threads", "sample", "shape", "json"},
    "inspect": {"method", "nodes", "json", "attribute-to", "keep", "ledger", "sample", "shape"},
    "bench": {"method", "rounds", "batch", "targets", "json", "attribute-to", "keep", "ledger", "provider", "threads"},
    "export": {target.option.flag.removeprefix("--") for target in EXPORTS.values()},
    "methods": {"json"},
    "doctor": {"json"},
    "health": {"service", "timeout", "json", "tls-ca"},
    "serve": {
        *("model-repository", "registry", "model-control-mode", "poll-seconds", "host", "port", "http-port"),
        "metrics-port",
        *("provider", "slots", "threads", "max-batch-rows", "queue-rows", "queue-bytes", "max-message-bytes"),
        *("memory-budget", "max-request-seconds", "drain-delay", "drain-timeout", "token-file", "reflection"),
        *("allow-export", "isolate", "log-format", "log-level", "compile-queue", "max-compile-seconds"),
        *("load-slots", "max-load-seconds", "readiness", "lazy", "idle-seconds", "max-connections"),
    },
    "bench HOST:PORT": {"model", "duration", "processes", "json", "rows"},
}
RECIPE = [
    ("--composite", ["--method", "gradient", "--composite", "epsilon"], "takes no composite; that is for lrp"),
    ("--rule", ["--method", "gradient", "--rule", "first=flat"], "takes no rules; that is for lrp"),
    ("--rule", ["--rule", "type:Gemm=flat", "--rule", "name:fc9*=epsilon"], "fits no node"),
    ("--form", ["--method", "lrp", "--form", "code"], "takes no form; that is for clrp1"),
    ("--base", ["--method", "lrp", "--base", "gradient"], "takes no base"),
    (
        "--option",
        ["--method", "gradient", "--option", "quadrature=left"],
        "takes no quadrature; that is for",
    ),
    ("--option", ["--method", "lrp", "--option", "composite=epsilon", "--composite", "epsilon"], "give one"),
    ("--recipe", ["--recipe", "r.toml", "--method", "lrp"], "stands alone"),
]
REQUEST = [
    ("--explain", ["--explain", "logits", "--explain", "logits"], "named twice"),
    ("--explain", ["--explain", "*", "--explain", "logits"], "stands alone"),
    ("--head", ["--head", "keep", "--explain", "logits"], "says nothing where the explained tensor is named"),
    ("--head", ["--head", "cut", "--explain", "logits"], "says nothing where the explained tensor is named"),
    ("--keep", ["--keep", "input", "--keep", "input"], "named twice"),
    ("--attribute-to", ["--attribute-to", "input", "--attribute-to", "input"], "named twice"),
]
SEVERAL = [
    ("--composite", ["--method", "gradient", "--method", "saliency", "--composite", "epsilon"], "says nothing to"),
    ("--rule", ["--method", "gradient", "--method", "saliency", "--rule", "first=flat"], "says nothing to"),
    ("--form", ["--method", "gradient", "--method", "lrp", "--form", "code"], "says nothing to gradient and lrp"),
    ("--base", ["--method", "gradient", "--method", "lrp", "--base", "saliency"], "says nothing to gradient and lrp"),
    (
        "--option",
        ["--method", "gradient", "--method", "lrp", "--option", "quadrature=left"],
        "says nothing to gradient and lrp",
    ),
]
PICTURES = [
    ("--preprocess", ["--preprocess", "unit"]),
    ("--layout", ["--layout", "NCHW"]),
    ("--mean", ["--mean", "0.5"]),
    ("--std", ["--std", "0.5"]),
    ("--scale", ["--scale", "1/255"]),
]
BULK = [
    ("--workers", ["--workers", "2"]),
    ("--batch-size", ["--batch-size", "2"]),
    ("--partition-rows", ["--partition-rows", "2"]),
    ("--format", ["--format", "npz"]),
    ("--resume", ["--resume"]),
]
NOT_BULK = [
    ("--palette", ["--palette", "bwr"]),
    ("--box", ["--box"]),
    ("--keep", ["--keep", "logits"]),
    ("--ledger", ["--ledger"]),
    ("--random-seed", ["--random-seed", "3"]),
]
OF_OTHER_TARGETS = [  # of `onnxplain export`: each target's own options beside every target that has none of the name
    (option, target, f"says nothing to {target.option.flag}")
    for option in own_options().values()
    for target in EXPORTS.values()
    if option not in target.options
]
SERVER = "127.0.0.1:1"


def said(option: ExportOption) -> list[object]:
    """On a command line."""
    return [option.flag] if option.kind is bool else [option.flag, "s3://b"]


IDLE: dict[
    str, list[tuple[str, list[object], str]]
] = {  # command -> (option, arguments behind it, what the error says)
    "run": [
        *((option, [CNN, DIGIT, *given], says) for option, given, says in (*RECIPE, *SEVERAL, *REQUEST)),
        *((option, [CNN, ARRAY, *given], "the files are arrays") for option, given in PICTURES),
        *((option, [CNN, *given], "no file is given") for option, given in PICTURES),
        ("--layout", [CNN, DIGIT, "--layout", "NHCW"], "C before or behind H and W"),
        ("--labels", [CNN, DIGIT, "--labels", "five.txt"], "5 labels for 10 classes"),
        ("--labels", [CNN, DIGIT, "--labels", "five.txt", "--explain", "logits"], "5 labels for 10 classes"),
        ("--random-seed", [CNN, DIGIT, "--random-seed", "3"], "nothing is random"),
        ("--palette", [CNN, "--palette", "bwr"], "nothing is drawn"),
        ("--box", [CNN, "--box"], "nothing is drawn"),
        ("--box", [MODELS / "iris_mlp", MODELS / "iris_mlp/samples/flowers.csv", "--box"], "drawn on a map"),
        ("--box-threshold", [CNN, DIGIT, "--box-threshold", "0.5"], "give --box too"),
        ("--background", [CNN, DIGIT, "--background", ARRAY], "no method here reads it (lrp)"),
        ("--background", [CNN, ARRAY, "--background", ARRAY, "--engine", "local"], "no method here reads it"),
        ("--rule", [CNN, "--rule", "name:fc9*=epsilon"], "fits no node"),
        ("--target", [CNN, "--target", "99"], "out of range"),
        ("--explain", [CNN, "--explain", "logits", "--explain", "/Relu_output_0"], "one tensor at a time"),
        *((option, [CNN, DIGIT, *given], "give --engine too") for option, given in BULK),
        *((option, [CNN, DIGIT, "--engine", "local", *given], "draws nothing") for option, given in NOT_BULK),
        ("--memory", [CNN, DIGIT, "--engine", "local", "--memory", "1GB"], "--batch-size rows at a time"),
        *((option, [CNN, ARRAY, "--engine", "local", *given], "no file is a picture") for option, given in PICTURES),
        ("--engine", [CNN, "--engine", "local"], "none is given"),
        ("--engine", [CNN, DIGIT, "--engine", "local", "--method", "lrp", "--method", "gradient"], "of one recipe"),
    ],
    "compile": [(option, [CNN, *given], says) for option, given, says in (*RECIPE, *REQUEST)],
    "cut": [
        ("--at", [CNN], "nothing to cut"),
        ("--at", [CNN, "--at", "/Relu_output_0", "--at", "/Relu_output_0"], "named twice"),
        ("--at", [CNN, "--at", "input"], "an input of the model already"),
        ("--at", [CNN, "--at", "/Relu_output_0", "--to", "/c1/Conv_output_0"], "does not depend on it"),
        ("--to", [CNN, "--to", "logits", "--to", "logits"], "named twice"),
        ("--to", [CNN, "--at", "logits", "--to", "logits"], "nothing lies between"),
        ("--to", [CNN, "--to", "logits"], "nothing would be cut off"),
    ],
    "chain": [
        ("--connect", [CNN, CNN, "--connect", "logits"], "OUT=IN"),
        ("--connect", [CNN, CNN, "--connect", "logits=x"], "no input of the second model named 'x'"),
        ("--keep", [CNN, "net.onnx", "--connect", "logits=x", "--keep", "logits", "--keep", "logits"], "named twice"),
    ],
    "fit": [
        *((option, ["cam", CNN, ARRAY, *given], "the data are arrays") for option, given in PICTURES),
        ("--labels", ["cam", CNN, ARRAY, "--labels", "five.txt"], "the data are arrays"),
        ("--labels", ["cam", CNN, "digits", "--labels", "five.txt"], "no class named"),
        ("--layer", ["cam", CNN, "digits", "--layer", "logits"], "channels and positions"),
        ("--explain", ["cam", CNN, "digits", "--explain", "logit"], "no tensor named"),
    ],
    "inspect": [(option, [CNN, *given], says) for option, given, says in (*RECIPE, *REQUEST)],
    "bench": [
        *((option, [CNN, *given], says) for option, given, says in (*SEVERAL, *REQUEST)),
        ("--recipe", [CNN, "--recipe", "r.toml", "--method", "lrp"], "stands alone"),
    ],
    "export": [
        *((option, [CNN, "--triton", "t", *given], says) for option, given, says in (*RECIPE, *REQUEST)),
        *((option.flag, [CNN, *said(target.option), *said(option)], says) for option, target, says in OF_OTHER_TARGETS),
        ("--method", [CNN, "--bundle", "b", "--method", "lrp"], "name more recipes by --with-recipes"),
        ("--seed", [CNN, "--mlflow", "http://h", "--seed", "index"], "says nothing to --mlflow"),
        ("--fold", [CNN, "--kserve", "--storage-uri", "s3://b", "--fold"], "says nothing to --kserve"),
        ("--method", [CNN, "--kserve", "--storage-uri", "s3://b", "--method", "lrp"], "says nothing to --kserve"),
        ("--ledger", [CNN, "--kserve", "--storage-uri", "s3://b", "--ledger"], "says nothing to --kserve"),
    ],
    "explain": [
        ("--version", [f"m/1@{SERVER}", DIGIT, "--version", "2"], "give one of them"),
        ("--token", [f"m@{SERVER}", DIGIT, "--token", "a", "--token-file", "token"], "give one of the two"),
        ("--insecure", [f"m@{SERVER}", DIGIT, "--insecure"], "there is none"),
        ("--insecure", [f"m@{SERVER}", DIGIT, "--insecure", "--token", "a", "--tls-ca", "system"], "TLS protects it"),
        ("--tls-cert", [f"m@{SERVER}", DIGIT, "--tls-cert", "c.pem"], "go together"),
        ("--tls-key", [f"m@{SERVER}", DIGIT, "--tls-key", "k.pem"], "go together"),
    ],
    "health": [
        ("--tls-cert", [SERVER, "--tls-cert", "c.pem"], "go together"),
        ("--tls-key", [SERVER, "--tls-key", "k.pem", "--tls-ca", "c.pem"], "go together"),
    ],
    "serve": [
        ("--load-model", [MODELS, "--load-model", "m"], "explicit"),
        ("--webhook-port", [MODELS, "--webhook-port", "9"], "--registry"),
        ("--cache", [MODELS, "--cache", "c", "--graph-cache-bytes", "0"], "--registry"),
        ("--graph-cache", [MODELS, "--graph-cache", "g", "--isolate"], "write no files"),
        ("--graph-cache-bytes", [MODELS, "--graph-cache-bytes", "9", "--isolate"], "write no files"),
        ("--graph-cache-bytes", [MODELS, "--graph-cache", "s3://b", "--graph-cache-bytes", "9"], "it bounds a folder"),
        ("--isolate-memory", [MODELS, "--isolate-memory", "1000000000"], "--isolate"),
        ("--insecure", [MODELS, "--insecure"], "leave it out"),
        ("--http-cors", [MODELS, "--http-port", "0", "--http-cors", "https://a.example"], "--http-port"),
        ("--tls-cert", [MODELS, "--tls-cert", "c.pem"], "go together"),
        ("--tls-key", [MODELS, "--tls-key", "k.pem"], "go together"),
        ("--tls-ca", [MODELS, "--tls-ca", "c.pem"], "--tls-cert"),
    ],
    "bench HOST:PORT": [
        ("--concurrency-range", [SERVER, "--rate", "5", "--concurrency-range", "1:4"], "--rate"),
        ("--threads", [SERVER, "--threads", "2"], "--bare"),
        ("--bare", [SERVER, "--bare", ARRAY], "name it by --model"),
        ("--csv", [SERVER, "--csv", "--json"], "not both"),
        ("--rate", [SERVER, "--rate", "5", "--concurrency-range", "1:4"], "however many are open"),
    ],
}
ROWS = [(command, option, given, says) for command, rows in IDLE.items() for option, given, says in rows]


def commands() -> dict[str, click.Command]:
    group = {name: place.partition(":") for name, place in COMMANDS.items()}
    found = {n: getattr(importlib.import_module(f"onnxplain.cli.{m}"), a) for n, (m, _, a) in group.items()}
    return {**found, "bench HOST:PORT": bench_server}


def options(command: str) -> dict[str, click.Option]:
    found = [p for p in commands()[command].params if isinstance(p, click.Option)]
    return {max(p.opts, key=len).removeprefix("--"): p for p in found}


@pytest.fixture
def files(tmp_path):
    (tmp_path / "five.txt").write_text("a\nb\nc\nd\ne\n")
    (tmp_path / "r.toml").write_text('method = "lrp"\n')
    (tmp_path / "token").write_text("secret\n")
    (tmp_path / "digits" / "f").mkdir(parents=True)
    onnx.save(net("g (float[N, 10] x) => (float[N, 10] y) { y = Relu (x) }"), tmp_path / "net.onnx")


@pytest.mark.parametrize("command, option, given, says", ROWS, ids=[f"{r[0]} {r[1]} {n}" for n, r in enumerate(ROWS)])
def test_an_option_that_cannot_act_is_one_line(command, option, given, says, onnxplain, files):  # noqa: F811
    fails(onnxplain(command.split()[0], *given), 2, says)


SHARED = {  # commands that take the same options say the same of them: tried for one of these
    "explain": {
        "base",
        "option",
        "composite",
        "rule",
        "form",
        "recipe",
        "head",
        "explain",
        "tls-ca",
        "token-file",
        "box-threshold",
    },
    "bench": {"composite", "rule", "form", "head", "explain"},
}


@pytest.mark.parametrize("command", [*COMMANDS, "bench HOST:PORT"])
def test_every_option_of_every_command_is_in_the_table(command):
    tried = {option.removeprefix("--") for option, _, _ in IDLE.get(command, [])}
    assert set(options(command)) == tried | ALWAYS[command] | SHARED.get(command, set())


@pytest.mark.parametrize("command", [*COMMANDS, "bench HOST:PORT"])
def test_an_option_that_takes_one_value_takes_it_once(command):
    for name, option in options(command).items():
        if option.multiple:
            continue
        text = max(option.opts, key=len)
        value = [] if option.is_flag else ["1"]
        with pytest.raises(UsageError, match=rf"--{name} is given 2 times"):
            Command.make_context(commands()[command], command, ["x", "y", text, *value, text, *value])


# -- keywords of the API ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "m.onnx"
    onnx.save(relu_net(), path)
    return Subject.of(path, Request(keep=("r1",)), provider="cpu", threads=1)


@pytest.mark.parametrize(
    "keywords",
    [
        {"explain": "r1"}, {"head": "keep"}, {"seed": "index"}, {"attribute_to": "r1"}, {"keep": "r2"}, {"keep": []},
        {"ledger": True}, {"fold": True}, {"provider": "auto"}, {"threads": 2},
    ],
)  # fmt: skip
def test_an_explainer_of_a_subject_asks_for_nothing_that_the_subject_was_not_made_for(subject, keywords):
    (name,) = keywords
    with pytest.raises(UsageError, match=f"{name}=.*the Subject was made with {name}="):
        Explainer(subject, "gradient", **keywords)


def test_what_the_subject_was_made_for_may_be_said_again(subject):
    assert Explainer(subject, "gradient", keep="r1", ledger=False, provider="cpu", threads=1).compiled.model


@pytest.mark.parametrize(
    "keywords, says",
    [
        ({"method": "gradient", "composite": "epsilon"}, "takes no composite"),
        ({"method": "gradient", "rules": ["first=flat"]}, "takes no rules"),
        ({"method": "lrp", "form": "code"}, "takes no form"),
        ({"method": "lrp", "base": "gradient"}, "takes no base"),
        ({"method": "gradient", "steps": 5}, "takes no steps"),
        ({"method": "integrated_gradients", "steps": 0}, "from 1 to 1000000"),
        ({"method": Recipe("gradient"), "composite": "epsilon"}, "the recipe says all"),
        ({"rules": ["name:nowhere=flat"]}, r"name:nowhere=flat.* fits no node"),
        ({"rules": ["type:MatMul=flat"]}, r"type:MatMul=flat.* fits no node.* flat is for Gemm, Conv"),
        ({"rules": ["type:Conv=flat", "type:ConvTranspose=flat"]}, r"type:ConvTranspose=flat.* fits no node"),
        ({"kind": "clasification"}, "classification"),
        ({"explain": "logits", "head": "keep"}, "says nothing"),
        ({"explain": ["*", "logits"]}, "stands alone"),
        ({"keep": ["r1", "r1"]}, "named twice"),
        ({"columns": {"y": ["a"]}}, "columns"),
    ],
)
def test_a_keyword_that_cannot_act_is_refused(keywords, says, subject):
    with pytest.raises(UsageError, match=says):
        Explainer(subject.source.path, **keywords)


def test_a_rule_for_weights_fits_no_product_of_two_activations(tmp_path):
    onnx.save(
        net("""g (float[N, 3, 3] x) => (float[N, 3, 3] y) { t = Tanh (x) y = MatMul (t, x) }"""), tmp_path / "m.onnx"
    )
    with pytest.raises(UsageError, match=r"type:MatMul=epsilon.* fits no node.* is for none of them"):
        Explainer(tmp_path / "m.onnx", rules=["type:MatMul=epsilon"])
    assert (
        Explainer(tmp_path / "m.onnx", rules=["type:MatMul=uniform(epsilon=1e-3)"]).compiled.provenance["rules"][
            "MatMul_1"
        ]
        == "uniform(epsilon=0.001)"
    )


def test_labels_are_as_many_as_the_classes_or_are_said_to_name_another_tensor(subject):
    x = normal(1, 2, 6, 6)
    with pytest.raises(UsageError, match="3 labels for 4 classes of logits"):
        Explainer(subject, "gradient", labels=["a", "b", "c"]).explain(x)
    named = Explainer(subject.source.path, "gradient", explain="r2", labels=["a", "b", "c"]).explain(x, "2")
    assert any("3 labels for 5 classes of r2" in note for note in named.notes)
    assert named.targets[0].name == "class 2, sum over 9 positions"


def test_a_kept_input_is_returned(subject):
    x = normal(1, 2, 6, 6)
    found = Explainer(subject.source.path, "gradient", keep=["x", "r1"]).explain(x)
    np.testing.assert_array_equal(found.kept["x"], x)
    assert found.kept["r1"].shape == (1, 3, 6, 6)


@pytest.mark.parametrize(
    "keywords, says",
    [
        ({"insecure": True}, "there is none"),
        ({"insecure": True, "token": "a", "ca": "system"}, "TLS protects it"),
        ({"cert": "c.pem"}, "go together"),
    ],
)
def test_a_keyword_of_the_client_that_cannot_act_is_refused(keywords, says):
    with pytest.raises(UsageError, match=says):
        Client(SERVER, **keywords)


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, says",
    [
        ('method = "lrp"\nsteps = 50', "steps"),
        ('[recipe]\nmethod = "lrp"\n[output]\nkind = "dense"', "output"),
        ('seed = 3\n[recipe]\nmethod = "lrp"', "seed"),
        ('[recipe]\nmetod = "lrp"', "method"),
    ],
)
def test_a_recipe_file_has_no_key_that_says_nothing(text, says, tmp_path):
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(UsageError, match=says):
        Recipe.read(tmp_path / "r.toml")


TWO = [InputSpec("a", "float32", ("N", 3, 8, 8)), InputSpec("b", "float32", ("N", 4))]


@pytest.mark.parametrize(
    "text, says",
    [
        ("[inputs.a]\nbounds = [0, 1]", "bounds for 'a'.*takes those of an only input.*a, b"),
        ("[input]\nbounds = [0, 1]", "bounds for 'a'"),
        ("[inputs.image]\nscale = 2", "no input .* named 'image'"),
        ('[inputs.c]\nfeatures = ["p"]', "no input .* named 'c'"),
    ],
)
def test_a_table_of_model_toml_that_cannot_act_is_refused(text, says, tmp_path):
    (tmp_path / "model.toml").write_text(text)
    with pytest.raises(UsageError, match=says):
        Preprocessing(load_settings(tmp_path / "model.toml")).bounds(TWO)


@pytest.mark.parametrize("layout", ["NHCW", "NWCH", "HCW", "NCWW", "CN", "NCH"])
def test_a_layout_has_its_channels_before_or_behind_the_sides(layout):
    with pytest.raises(UsageError, match="C before or behind"):
        picture_settings({"layout": layout}, "here")


def test_layouts_that_models_have_are_known():
    for layout in ("NCHW", "NHWC", "NCWH", "NWHC", "CHW", "HWC", "NHW", "HW"):
        assert picture_settings({"layout": layout}, "here") == PictureSettings(layout=layout)
