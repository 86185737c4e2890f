"""The command line from outside: what it prints, what it writes, and how it fails."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from nets import MODELS, headed, net, normal, relu_net, repository
from PIL import Image

from onnxplain.cli import main
from onnxplain.methods import METHODS
from onnxplain.recipes import Recipe, named


class Result:
    def __init__(self, code: int, out: str, err: str):
        self.code, self.out, self.err = code, out, err

    @property
    def json(self):
        return json.loads(self.out)


@pytest.fixture
def onnxplain(capsys, tmp_path, monkeypatch):
    """Run a command line in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Result:
        code = 0
        try:
            main([str(a) for a in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
        return Result(code, *capsys.readouterr())

    return call


def fails(result: Result, code: int, *words: str) -> None:
    """One line that says what is wrong, on stderr, and the exit code of its kind."""
    assert result.code == code, (result.code, result.err)
    assert result.err.startswith("onnxplain: ") and result.err.count("\n") == 1, result.err
    assert len(result.err) < 700 and "Traceback" not in result.err and result.out == ""
    for word in words:
        assert word.lower() in result.err.lower(), (word, result.err)


def samples(name: str) -> Path:
    return MODELS / name / "samples"


# -- run -------------------------------------------------------------------------------------------------------------


def test_a_photograph_is_explained_by_three_methods_in_one_grid(onnxplain, tmp_path):
    found = onnxplain(
        "run", MODELS / "mobilenet_v2", samples("mobilenet_v2") / "chelsea.png", "--out", "o", "--json",
        "--method", "gradient", "--method", "lrp", "--composite", "epsilon_plus_flat", "--method", "clrp2",
    )  # fmt: skip
    assert found.code == 0, found.err
    top = found.json["classes"][0][0]
    assert (top["index"], top["name"]) == (285, "Egyptian Mau")
    assert [e["method"] for e in found.json["explanations"]] == ["gradient", "lrp", "clrp2"]
    names = {p.name for p in (tmp_path / "o").iterdir()}
    assert {"grid.png", "report.html", "manifest.json", "gradient.npz", "lrp.npz", "clrp2.npz"} <= names
    assert sum(name.endswith(".overlay.png") for name in names) == 3
    assert np.load(tmp_path / "o" / "lrp.npz")["input.relevance"].shape == (1, 3, 224, 224)
    assert Image.open(tmp_path / "o" / "grid.png").size[0] > 400
    manifest = json.loads((tmp_path / "o" / "manifest.json").read_text())
    assert manifest["recipes"][1]["composite"] == "epsilon_plus_flat" and manifest["model"]["sha256"]
    report = (tmp_path / "o" / "report.html").read_text()
    assert "Egyptian Mau" in report and 'src="http' not in report and "<link" not in report


def test_what_a_person_reads(onnxplain):
    found = onnxplain("run", MODELS / "digits_cnn", samples("digits_cnn") / "digit_3.png", "--out", "o")
    assert found.code == 0 and "\x1b" not in found.out + found.err  # no colours, no progress bar: not a terminal
    for words in ("digit_3.png", "relevance sums to", "time: ", "wrote o/report.html"):
        assert words in found.out


@pytest.mark.parametrize(
    "model, files, rows",
    [
        ("digits_cnn", ["ten_digits.npz"], 10),
        ("digits_cnn", ["digit_0.png", "digit_3.png", "digit_7.png"], 3),
        ("digits_cnn", ["digit_*.png"], 4),
        ("digits_cnn", ["three.npy"], 1),
        ("digits_gru", ["digit_0.png", "digit_3.png"], 2),
        ("digits_vit", ["digit_8.png"], 1),
        ("iris_mlp", ["flowers.csv"], 6),
        ("bc_logreg", ["cells.csv"], 6),
    ],
)
def test_batches_of_any_kind_of_file(model, files, rows, onnxplain, tmp_path):
    found = onnxplain("run", MODELS / model, *(samples(model) / f for f in files), "--out", "o", "--json")
    assert found.code == 0, found.err
    assert len(found.json["classes"]) == len(found.json["explanations"]) == rows
    (archive,) = (p for p in (tmp_path / "o").iterdir() if p.suffix == ".npz")
    assert all(np.isfinite(v).all() for k, v in np.load(archive).items() if k.endswith(".relevance"))


@pytest.mark.parametrize(
    "target, names",
    [
        ("predicted", ["3"]),
        ("top3", ["top 1", "top 2", "top 3"]),
        ("7", ["7"]),
        ("3 vs 8", ["3 vs 8"]),
    ],
)
def test_targets(target, names, onnxplain):
    found = onnxplain("run", MODELS / "digits_cnn", samples("digits_cnn") / "digit_3.png", "--target", target, "--json")
    assert found.code == 0, found.err
    assert len(found.json["explanations"]) == len(names)


def test_a_model_alone_is_run_on_random_input(onnxplain):
    for path in (repository("digits_gru"), repository("bc_logreg"), repository("iris_mlp")):
        found = onnxplain("run", path)
        assert found.code == 0, found.err
        assert "coverage:" in found.out and "time: " in found.out and "random seed 0" in found.err
        assert all(method in found.out for method in METHODS)
    assert onnxplain("run", path, "--json").json["coverage"]["attributed"]
    assert os.listdir() == []


def test_kept_layers_are_saved_and_drawn(onnxplain, tmp_path):
    found = onnxplain(
        "run", MODELS / "digits_cnn", samples("digits_cnn") / "digit_3.png", "--keep", "/Relu_output_0", "--out", "o"
    )
    assert found.code == 0, found.err
    assert np.load(tmp_path / "o" / "_Relu_output_0.npy").ndim == 4
    assert (tmp_path / "o" / "_Relu_output_0.features.png").exists()


def test_the_ledger_says_where_relevance_went(onnxplain):
    found = onnxplain("run", MODELS / "digits_cnn", samples("digits_cnn") / "digit_3.png", "--ledger", "--json")
    (one,) = found.json["explanations"]
    assert set(one["where"]) == {"input", "bias", "stabiliser", "padding", "rule"}
    assert sum(one["where"].values()) == pytest.approx(one["score"], rel=1e-3)


def test_a_recipe_file_is_a_command_line(onnxplain, tmp_path):
    (tmp_path / "r.toml").write_text('method = "lrp"\ncomposite = "epsilon"\nrules = ["type:Conv=flat"]\n')
    image = samples("digits_cnn") / "digit_3.png"
    one = onnxplain("run", MODELS / "digits_cnn", image, "--recipe", "r.toml", "--json").json["explanations"][0]
    options = ["--method", "lrp", "--composite", "epsilon", "--rule", "type:Conv=flat"]
    other = onnxplain("run", MODELS / "digits_cnn", image, *options, "--json").json["explanations"][0]
    assert one["recipe"] == other["recipe"] and one["where"] == other["where"]


# -- the other commands ----------------------------------------------------------------------------------------------


def test_a_compiled_file_runs_in_plain_onnxruntime(onnxplain, tmp_path):
    found = onnxplain(
        "compile", MODELS / "digits_cnn", "--method", "lrp", "--seed", "index", "--ledger", "--fold", "--keep",
        "/Relu_output_0", "-o", "d.onnx",
    )  # fmt: skip
    assert found.code == 0, found.err
    assert "logits.target" in found.out and "input.relevance" in found.out
    session = onnxruntime.InferenceSession("d.onnx")
    assert [v.name for v in session.get_outputs()] == [
        "logits",
        "input.relevance",
        "/Relu_output_0",
        "onnxplain.ledger",
    ]
    (r,) = session.run(["input.relevance"], {"input": normal(1, 1, 28, 28), "logits.target": np.arange(10)})
    assert r.shape == (10, 1, 28, 28) and os.listdir() == ["d.onnx"]


def test_compile_says_what_it_chose(onnxplain, tmp_path):
    onnx.save(headed("s = Softmax (z) y = Identity (s)"), tmp_path / "m.onnx")
    assert "below the final Softmax" in onnxplain("compile", "m.onnx", "-o", "o.onnx").err
    assert "below" not in onnxplain("compile", "m.onnx", "--method", "gradient", "--head", "keep").err
    assert sorted(os.listdir()) == ["m.gradient.onnx", "m.onnx", "o.onnx"]
    star = onnxplain("compile", "m.onnx", "--method", "gradient", "--explain", "*", "-o", "s.onnx")
    assert "y.seed" in star.out
    assert "Scaler (Scaler)" in onnxplain("compile", MODELS / "iris_mlp", "-o", "i.onnx").err  # no CUDA kernel


def test_inspect_names_rules_blocks_and_reasons(onnxplain):
    found = onnxplain("inspect", repository("digits_gru"), "--json")
    assert found.code == 0, found.err
    assert "GRU" in found.json["coverage"]["blocked"]["lrp"] and "gradient" not in found.json["coverage"]["blocked"]
    assert found.json["inputs"] and found.json["ops"]["GRU"] and found.json["explained"] == "logits"
    text = onnxplain("inspect", repository("digits_cnn"), "--nodes").out
    assert "flat" in text and "z_plus" in text and "weights" in text


def test_methods_doctor_and_version(onnxplain):
    found = onnxplain("methods", "--json").json
    assert set(found["methods"]) == set(METHODS) and found["rules"]["epsilon"]["options"]["epsilon"] == "1e-06"
    assert all(entry["doc"] and entry["cite"] for entry in found["methods"].values())
    assert "epsilon_plus_flat" in onnxplain("methods").out
    assert onnxplain("doctor", "--json").json["self-test"].startswith("ok") and "onnxruntime" in onnxplain("doctor").out
    assert "onnxplain" in onnxplain("--version").out and "compile" in onnxplain("--help").out


def test_bench_times_explanations_in_forward_passes(onnxplain):
    found = onnxplain("bench", repository("digits_cnn"), "--rounds", "3", "--json")
    assert found.code == 0, found.err
    contenders = found.json["contenders"]
    assert contenders["forward"]["ratio"] == 1 and contenders["gradient"]["ratio"] > 0 and "lrp" in contenders
    assert all(len(entry["runs"]) == 3 for entry in contenders.values())
    assert "10–90 %" in onnxplain("bench", repository("iris_mlp"), "--rounds", "3", "--batch", "2").out


# -- bad input -------------------------------------------------------------------------------------------------------


def broken(name: str, folder: Path) -> Path:
    """A model file that cannot be used."""
    path = folder / "bad.onnx"
    good = relu_net()
    if name == "directory":
        path.mkdir()
    elif name == "empty":
        path.write_bytes(b"")
    elif name == "text":
        path.write_text("this is no model\n")
    elif name == "truncated":
        path.write_bytes(good.SerializeToString()[:-500])
    elif name == "cyclic":
        good.graph.node[0].input[0] = "r1"
        path.write_bytes(good.SerializeToString())
    elif name in ("external data missing", "external data outside"):
        onnx.save_model(good, path, save_as_external_data=True, location="bad.data", size_threshold=0)
        if name.endswith("outside"):
            model = onnx.load(path, load_external_data=False)
            for tensor in model.graph.initializer:
                tensor.external_data[0].value = "../../etc/passwd"
            path.write_bytes(model.SerializeToString())
        (folder / "bad.data").unlink()
    elif name == "unknown op":
        good.graph.node[1].op_type = "Relux"
        path.write_bytes(good.SerializeToString())
    elif name == "unknown domain":
        good.graph.node[1].domain = "com.example"
        good.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
        path.write_bytes(good.SerializeToString())
    return path


@pytest.mark.parametrize("command", ["run", "compile", "inspect", "bench"])
@pytest.mark.parametrize(
    "name, code, word",
    [
        ("missing", 4, "no such file"),
        ("directory", 4, "bad.onnx"),
        ("empty", 4, "empty"),
        ("text", 3, "text"),
        ("truncated", 3, "truncated"),
        ("cyclic", 3, "cycl"),
        ("external data missing", 3, "bad.data"),
        ("external data outside", 3, "outside"),
        ("unknown op", 3, "Relux"),
        ("unknown domain", 3, "com.example"),
    ],
)
def test_a_model_that_cannot_be_used_is_one_line(command, name, code, word, onnxplain, tmp_path):
    path = broken(name, tmp_path)
    before = sorted(os.listdir())
    fails(onnxplain(command, path), code, word)
    assert sorted(os.listdir()) == before


def tree() -> onnx.ModelProto:
    """Two leaves."""
    node = onnx.helper.make_node(
        "TreeEnsembleRegressor", ["x"], ["y"], domain="ai.onnx.ml", name="trees", n_targets=1,
        nodes_treeids=[0, 0, 0], nodes_nodeids=[0, 1, 2], nodes_featureids=[0, 0, 0], nodes_values=[0.5, 0.0, 0.0],
        nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"], nodes_truenodeids=[1, 0, 0], nodes_falsenodeids=[2, 0, 0],
        target_treeids=[0, 0], target_nodeids=[1, 2], target_ids=[0, 0], target_weights=[1.0, 2.0],
    )  # fmt: skip
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph([node], "g", [value("x", 1, ["N", 2])], [value("y", 1, ["N", 1])])
    opsets = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("ai.onnx.ml", 3)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)


def test_tree_ensembles_have_a_clear_message(onnxplain, tmp_path):
    onnx.save(tree(), tmp_path / "t.onnx")
    np.save(tmp_path / "x.npy", np.zeros((1, 2), np.float32))
    for arguments in (("run", "t.onnx", "x.npy"), ("compile", "t.onnx")):
        fails(onnxplain(*arguments), 3, "TreeEnsembleRegressor", "derivative", "forward")
    for arguments in (("inspect", "t.onnx"), ("run", "t.onnx")):  # alone: what it answers, what blocks
        found = onnxplain(*arguments)
        assert found.code == 0 and "TreeEnsembleRegressor" in found.out and "coverage" in found.out
        assert "tree_shap" in found.out and "ok: reads 1 trees" in found.out
    assert "the model answers; explain it by --method tree_shap" in onnxplain("run", "t.onnx").out
    assert onnxplain("inspect", "t.onnx", "--method", "tree_shap").code == 0
    found = onnxplain("run", "t.onnx", "x.npy", "--method", "tree_shap", "--option", "baseline=1")
    assert found.code == 0 and "score 1; relevance sums to: input -1" in found.out


def arrays(folder: Path) -> None:
    good = np.zeros((1, 1, 28, 28), np.float32)
    for name, array in {
        "shape": good[..., :27], "rank": good[0, 0, 0], "text": np.array(["a"]), "nan": good * np.nan,
        "inf": good + np.inf, "complex": good.astype(complex), "objects": np.array([{}], object), "none": good[:0],
    }.items():  # fmt: skip
        np.save(folder / f"{name}.npy", array, allow_pickle=True)
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder / "broken.npy").write_bytes(b"\x93NUMPY")
    (folder / "table.csv").write_text("a,b\n1,x\n")


@pytest.mark.parametrize(
    "file", ["shape.npy", "rank.npy", "text.npy", "nan.npy", "inf.npy", "complex.npy", "objects.npy", "none.npy",
             "broken.png", "broken.npy", "table.csv", "missing.png", "*.bmp", "folder"],
)  # fmt: skip
def test_an_input_that_cannot_be_used_is_one_line(file, onnxplain, tmp_path):
    arrays(tmp_path)
    (tmp_path / "folder").mkdir()
    before = sorted(os.listdir())
    fails(onnxplain("run", MODELS / "digits_cnn", file, "--out", "o"), 4)
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize(
    "options, words",
    [
        (["--target", "10"], ["10", "0 to 9"]),
        (["--target", "-1"], ["-1"]),
        (["--target", "1,2"], ["1,2"]),
        (["--target", "zebra"], ["zebra"]),
        (["--target", "top99"], ["10 class"]),
        (["--method", "lpr"], ["lpr", "lrp"]),
        (["--composite", "epsilon_flat"], ["epsilon_flat", "epsilon_plus_flat"]),
        (["--rule", "type:Conv=epsilno"], ["epsilno", "epsilon"]),
        (["--rule", "type:Conv=epsilon(epsilom=1)"], ["epsilom", "epsilon"]),
        (["--rule", "type:Cnov=flat"], ["Cnov", "Conv"]),
        (["--rule", "flat"], ["type:Conv="]),
        (["--form", "book"], ["paper", "code"]),
        (["--explain", "logit"], ["logit", "logits"]),
        (["--attribute-to", "imput"], ["imput", "input"]),
        (["--keep", "imput"], ["imput", "input"]),
        (["--head", "off"], ["cut", "keep"]),
        (["--frobnicate"], ["frobnicate"]),
        (["--provider", "tpu"], ["auto", "cuda", "cpu"]),
        (["--preprocess", "imagnet"], ["imagenet"]),
        (["--palette", "pinkish"], ["pinkish"]),
        (["--method", "gradient", "--composite", "epsilon"], ["composite"]),
        (["--method", "lrp", "--form", "code"], ["form"]),
    ],
)
def test_an_option_that_makes_no_sense_is_one_line(options, words, onnxplain, tmp_path):
    fails(
        onnxplain("run", MODELS / "digits_cnn", samples("digits_cnn") / "digit_3.png", *options, "--out", "o"),
        2,
        *words,
    )
    assert os.listdir() == []


def test_recipes_that_cannot_be_read(onnxplain, tmp_path):
    (tmp_path / "bad.toml").write_text("method = ")
    (tmp_path / "key.toml").write_text('metod = "lrp"')
    (tmp_path / "type.toml").write_text("method = 3")
    (tmp_path / "rules.toml").write_text("rules = [3]")
    wrong = {
        "none": (4, "none.toml"),
        "bad": (4, "TOML"),
        "key": (2, "method"),
        "type": (2, "3"),
        "rules": (2, "rules is a list of texts"),
    }
    for name, (code, word) in wrong.items():
        fails(onnxplain("compile", MODELS / "digits_cnn", "--recipe", f"{name}.toml", "-o", "o.onnx"), code, word)


def test_a_command_that_does_not_exist(onnxplain):
    fails(onnxplain("expalin"), 2, "expalin")
    fails(onnxplain("run"), 2, "MODEL")
    fails(onnxplain("compile", repository("digits_cnn"), "--seed", "random"), 2, "tensor", "index")


def test_a_looped_method_cannot_be_compiled(onnxplain):
    found = onnxplain("compile", repository("digits_cnn"), "--method", "integrated_gradients")
    fails(found, 2, "integrated_gradients", "gradient")


@pytest.mark.parametrize("place", ["/proc/onnxplain", "file/o", "file"])
def test_places_that_cannot_be_written_are_one_line(place, onnxplain, tmp_path):
    (tmp_path / "file").write_text("before")
    fails(onnxplain("run", MODELS / "digits_cnn", samples("digits_cnn") / "three.npy", "--out", place), 4)
    if place != "file":
        fails(onnxplain("compile", MODELS / "digits_cnn", "-o", f"{place}/o.onnx"), 4, "cannot write")
    assert os.listdir() == ["file"] and (tmp_path / "file").read_text() == "before"


@pytest.mark.parametrize("command", ["run", "compile"])
def test_a_full_disk_leaves_nothing_half_written(command, tmp_path):
    """No file may grow beyond 20 kB: the same as a full disk, from a certain point of the writing on."""
    more = [samples("digits_cnn") / "digit_3.png", "--out", "o"] if command == "run" else ["-o", "o.onnx"]

    def small_files_only() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    done = subprocess.run(
        [sys.executable, "-m", "onnxplain", command, MODELS / "digits_cnn", *more],
        cwd=tmp_path, capture_output=True, text=True, preexec_fn=small_files_only,
    )  # fmt: skip
    fails(Result(done.returncode, done.stdout, done.stderr), 4, "too large")
    assert os.listdir(tmp_path) == []


def test_an_earlier_result_survives_a_failed_run(onnxplain, tmp_path):
    image = samples("digits_cnn") / "digit_3.png"
    assert onnxplain("run", MODELS / "digits_cnn", image, "--out", "o").code == 0
    before = {p.name: p.read_bytes() for p in (tmp_path / "o").iterdir()}
    fails(onnxplain("run", MODELS / "digits_cnn", image, "--target", "zebra", "--out", "o"), 2)
    assert {p.name: p.read_bytes() for p in (tmp_path / "o").iterdir()} == before


def test_the_explained_model_is_not_overwritten(onnxplain, tmp_path):
    onnx.save(net("g (float[N, 3] x) => (float[N, 3] y) { y = Exp (x) }"), tmp_path / "m.onnx")
    before = (tmp_path / "m.onnx").read_bytes()
    fails(onnxplain("compile", "m.onnx", "--method", "gradient", "-o", "./m.onnx"), 4, "another name")
    assert (tmp_path / "m.onnx").read_bytes() == before


def test_a_method_may_be_a_recipes_name_and_two_of_one_method_are_told_apart(onnxplain, tmp_path):
    words = ["run", MODELS / "digits_cnn", samples("digits_cnn") / "digit_3.png", "--out", "o", "--json"]
    names = ["lrp-epsilon", "lrp-epsilon_plus", "smooth_grad-lrp-epsilon"]
    found = onnxplain(*words, *(word for name in names for word in ("--method", name)), "--option", "samples=3")
    assert found.code == 0, found.err
    assert {f"{name}.npz" for name in names} <= {p.name for p in (tmp_path / "o").iterdir()}
    recipes = json.loads((tmp_path / "o/manifest.json").read_text())["recipes"]
    assert [
        Recipe.of(
            {
                k: v
                for k, v in r.items()
                if k in ("method", "composite", "rules", "base", *METHODS["smooth_grad"].options)
            }
        )
        for r in recipes
    ] == [
        named("lrp-epsilon"),
        named("lrp-epsilon_plus"),
        Recipe("smooth_grad", {"samples": 3}, named("lrp-epsilon")),
    ]


@pytest.mark.parametrize(
    "words, why",
    [
        (["lrp-epsilo"], "no recipe named 'lrp-epsilo'. did you mean lrp-epsilon"),
        (["lrp-epsilon", "--composite", "epsilon_plus"], "lrp-epsilon names its composite already"),
        (["smooth_grad-lrp-epsilon", "--composite", "epsilon_plus"], "names its composite already"),
        (["smooth_grad-lrp", "--base", "gradient"], "smooth_grad-lrp names its base already"),
    ],
)
def test_what_a_recipes_name_says_is_not_said_again(onnxplain, words, why):
    digit = samples("digits_cnn") / "digit_3.png"
    found = onnxplain("run", MODELS / "digits_cnn", digit, "--method", *words)
    assert found.code and why in found.err.lower()


# -- localisation boxes ------------------------------------------------------------------------------------------------


def test_boxes_of_several_pictures_and_targets_are_printed_and_written(onnxplain, tmp_path):
    files = [samples("digits_cnn") / f"digit_{n}.png" for n in (3, 8)]
    asked = ("run", MODELS / "digits_cnn", *files, "--method", "grad_cam", "--target", "top2", "--out", "o", "--box")
    found = onnxplain(*asked, "--json")
    assert found.code == 0, found.err
    printed = [next(iter(e["boxes"].values())) for e in found.json["explanations"]]
    boxes = json.loads((tmp_path / "o" / "manifest.json").read_text())["recipes"][0]["boxes"]
    assert boxes["threshold"] == 0.2
    assert list(boxes["tensors"].values()) == [printed]
    assert len(printed) == 4 and all(box is None or (box["width"], box["height"]) == (28, 28) for box in printed)
    assert (tmp_path / "o" / "report.html").read_text().count("localisation box") == 4
    assert "box: (" in onnxplain(*asked).out
    peak = onnxplain(*asked, "--box-threshold", "1", "--json").json["explanations"]
    squares = [next(iter(e["boxes"].values())) for e in peak]  # of a 3 × 3 map the one highest position
    assert all(box["right"] - box["left"] <= 10 and box["bottom"] - box["top"] <= 10 for box in squares)
