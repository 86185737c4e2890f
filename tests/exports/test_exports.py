"""Exports: what Triton and KServe are given is what they accept, and does what the graph does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from google.protobuf import text_format
from nets import MODELS, net, normal, relu_net

from onnxplain import Explainer
from onnxplain.cli.export import export
from onnxplain.cpu_session import Port
from onnxplain.errors import InputError, UnsupportedModel, UsageError
from onnxplain.exports import batching, triton
from onnxplain.exports.pbtxt import TYPES, Config, quoted
from onnxplain.graph.outline import runtime
from onnxplain.recipes import Recipe
from onnxplain.wire.inference import messages as oip

RECIPES = {  # model -> its recipe and seed, whether its rows may be joined
    "mobilenet_v2": ("lrp", "tensor", True),
    "digits_vit": ("lrp", "index", True),
    "digits_gru": ("gradient", "tensor", True),
    "iris_mlp": ("lrp", "tensor", False),
    "bc_logreg": ("gradient", "index", True),
}


def onnxplain(*arguments: object) -> str:
    """What `onnxplain export …` prints; errors come as exceptions."""
    return CliRunner().invoke(export, [str(a) for a in arguments], catch_exceptions=False, standalone_mode=False).stdout


def parsed(folder: Path):
    """A config.pbtxt as Triton reads it: an unknown field or a wrong value is an error."""
    return text_format.Parse((folder / "config.pbtxt").read_text(), oip.ModelConfig())


def session(folder: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(folder / "1" / "model.onnx", providers=["CPUExecutionProvider"])


def saved(model: onnx.ModelProto, folder: Path, name: str = "m") -> Path:
    path = folder / f"{name}.onnx"
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """All models of RECIPES with their explanations, as Triton would load them."""
    folder = tmp_path_factory.mktemp("triton")
    for name, (method, seed, _) in RECIPES.items():
        path = MODELS / name
        onnxplain(path, "--triton", folder, "--with-model", "--method", method, "--seed", seed)
    return folder


ENTRIES = [name + suffix for name in RECIPES for suffix in ("", ".explain")]


def random_feeds(ports, rows: int) -> dict[str, np.ndarray]:
    return {
        port.name: np.arange(rows, dtype=np.int64) % 2
        if port.type == "tensor(int64)"
        else normal(rows, *port.shape[1:], seed=i)
        for i, port in enumerate(ports)
    }


@pytest.mark.parametrize("name", ENTRIES)
def test_a_config_says_what_onnxruntime_says(repository, name):
    config, graph = parsed(repository / name), session(repository / name)
    assert config.name == name and config.backend == "onnxruntime"
    assert [t.name for t in config.input] == [p.name for p in graph.get_inputs()]
    assert [t.name for t in config.output] == [p.name for p in graph.get_outputs()]
    for tensor, port in zip([*config.input, *config.output], [*graph.get_inputs(), *graph.get_outputs()], strict=True):
        shape = [d if isinstance(d, int) else -1 for d in port.shape]
        if config.max_batch_size:
            assert shape.pop(0) == -1
        assert list(tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims) == shape
        assert list(tensor.dims) and 0 not in tensor.dims  # as Triton demands
        assert (
            oip.ModelConfig.DESCRIPTOR.file.enum_types_by_name["DataType"].values_by_number[tensor.data_type].name
            == TYPES[port.type[len("tensor(") : -1]]
        )


@pytest.mark.parametrize("name", ENTRIES)
def test_rows_are_joined_only_where_that_changes_nothing(repository, name):
    config, graph = parsed(repository / name), session(repository / name)
    assert (config.max_batch_size > 0) == RECIPES[name.removesuffix(".explain")][2]
    assert config.HasField("dynamic_batching") == (config.max_batch_size > 0)
    if not config.max_batch_size:
        return
    feeds = random_feeds(graph.get_inputs(), 3)
    together = graph.run(None, feeds)
    alone = [graph.run(None, {k: x[i : i + 1] for k, x in feeds.items()}) for i in range(3)]
    for found, *parts in zip(together, *alone, strict=True):
        expected = np.concatenate(parts)
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * max(scale, 1e-30))  # float32, other kernels


def test_an_entry_says_whose_it_is(repository):
    explainer = Explainer(MODELS / "digits_gru" / "1" / "model.onnx", "gradient")
    parameters = parsed(repository / "digits_gru.explain").parameters
    assert parameters["onnxplain_recipe_digest"].string_value == explainer.recipe.digest
    assert parameters["onnxplain_method"].string_value == "gradient"
    assert parameters["onnxplain_model_sha256"].string_value == explainer.subject.source.sha256


def test_the_model_itself_is_copied_byte_for_byte(repository):
    for name in RECIPES:
        copied = repository / name / "1" / "model.onnx"
        assert copied.read_bytes() == (MODELS / name / "1" / "model.onnx").read_bytes()


def test_config_of_is_the_text_that_export_writes(repository):
    explainer = Explainer(MODELS / "digits_gru" / "1" / "model.onnx", "gradient")
    assert (
        triton.config_of(explainer, "digits_gru.explain")
        == (repository / "digits_gru.explain" / "config.pbtxt").read_text()
    )


COMPANY = {  # models that keep their row axis and answer differently in company
    "the mean over rows": """a = ReduceMean <keepdims = 1> (x, first)
        d = Sub (x, a)""",
    "divided by the number of rows": """s = Shape (x)
        n = Gather (s, zero)
        f = Cast <to = 1> (n)
        d = Div (x, f)""",
    "zeros like the rows, counted by NonZero": """s = Shape (x)
        n = Gather (s, zero1)
        e = Expand (one, n)
        p = NonZero (e)
        q = Transpose (p)
        f = Cast <to = 1> (q)
        d = Add (x, f)""",
    "the row's position added": """s = Shape (x)
        n = Gather (s, zero1)
        e = Expand (one, n)
        c = CumSum (e, zero)
        r = Unsqueeze (c, last)
        d = Add (x, r)""",
}


@pytest.mark.parametrize("why", COMPANY)
def test_a_model_whose_rows_know_each_other_is_never_joined(tmp_path, why):
    model = net(
        f"g (float[N, 4] x) => (float[N, 3] y) {{ {COMPANY[why]} \n y = Gemm (d, w) }}",
        w=normal(4, 3),
        first=np.array([0]), zero=np.array(0), zero1=np.array([0]), last=np.array([1]), one=np.ones(1, np.float32),
    )  # fmt: skip
    used = {i for node in model.graph.node for i in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    explainer = Explainer(saved(model, tmp_path), "gradient")
    assert explainer.row_axes() is None or batching.counted(explainer.subject.normalised.model.graph)
    assert batching.leak(explainer, runtime(explainer.compiled.model), seeded=True)  # seen even without the proof
    entries = triton.export(explainer, "m", tmp_path / "repository", with_model=True)
    for entry in entries:
        assert entry.rows == 0 and "max_batch_size 0" in entry.notes[0]
        config = parsed(entry.path)
        assert list(config.input[0].dims) == [-1, 4]


def test_a_first_state_made_for_every_row_does_not_keep_them_apart(tmp_path):
    model = net(
        """g (float[N, 4] x) => (float[N, 3] y) {
            s = Shape (x)
            n = Gather (s, zero)
            l = Concat <axis = 0> (n, four)
            h = ConstantOfShape <value = float[1] {0.5}> (l)
            d = Mul (x, h)
            y = Gemm (d, w)
        }""",
        w=normal(4, 3), zero=np.array([0]), four=np.array([4]),
    )  # fmt: skip
    (entry,) = triton.export(Explainer(saved(model, tmp_path), "gradient"), "m", tmp_path / "repository")
    assert entry.rows > 0, entry.notes


def test_the_length_of_another_axis_does_not_keep_rows_apart(tmp_path):
    model = net(
        """g (float[N, L, 4] x) => (float[N, 3] y) {
            s = Shape (x)
            n = Gather (s, one)
            f = Cast <to = 1> (n)
            t = ReduceSum <keepdims = 0> (x, axis)
            d = Div (t, f)
            y = Gemm (d, w)
        }""",
        w=normal(4, 3), one=np.array(1), axis=np.array([1]),
    )  # fmt: skip
    (entry,) = triton.export(Explainer(saved(model, tmp_path), "gradient"), "m", tmp_path / "repository")
    assert entry.rows > 0
    assert list(parsed(entry.path).input[0].dims) == [-1, 4]


def test_a_fixed_batch_keeps_every_axis_in_dims(tmp_path):
    (entry,) = triton.export(Explainer(saved(relu_net(batch="1"), tmp_path)), "m", tmp_path / "repository")
    assert entry.rows == 0 and list(parsed(entry.path).input[0].dims) == [1, 2, 6, 6]


def test_large_explanations_get_smaller_batches():
    assert triton._rows(1) == triton.MOST_ROWS
    assert triton._rows(triton.BATCH_BYTES // 5) == 4
    assert triton._rows(3 * triton.BATCH_BYTES) == 1


def test_what_triton_cannot_serve_is_refused_or_left_out():
    x, y = Port("x", "tensor(float)", ("N", 3)), Port("n", "tensor(int64)", ())
    config = Config("m", [x], [y, Port("z", "tensor(float)", ("N", 3))])
    assert config.dropped == ["n"] and 'name: "n"' not in config.text()
    with pytest.raises(UnsupportedModel, match="ZipMap"):
        Config("m", [x], [Port("p", "seq(map(int64,tensor(float)))", ())]).text()
    with pytest.raises(UnsupportedModel, match="without axes"):
        Config("m", [y], [x]).text()


@pytest.mark.parametrize("name", ['a"b', "a\\b", "tab\t", "é.relevance", "a/b:0", "\x7f"])
def test_any_name_survives_the_text_format(name):
    config = text_format.Parse(f"name: {quoted(name)}", oip.ModelConfig())
    assert config.name == name


def test_weights_in_other_files_come_along(tmp_path):
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "m.onnx"
    onnx.save(relu_net(), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    expected = onnxruntime.InferenceSession(path).run(None, {"x": normal(2, 2, 6, 6)})[0]
    onnxplain(path, "--triton", tmp_path / "out", "--with-model")
    shutil.rmtree(tmp_path / "in")
    found = session(tmp_path / "out" / "m").run(None, {"x": normal(2, 2, 6, 6)})[0]
    np.testing.assert_array_equal(found, expected)
    feeds = {"x": normal(2, 2, 6, 6), "logits.seed": np.ones((2, 4), np.float32)}
    np.testing.assert_allclose(session(tmp_path / "out" / "m.explain").run(["logits"], feeds)[0], expected, rtol=1e-5)


# Nothing is lost, nothing is half there


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_same_export_twice_changes_nothing(tmp_path):
    path = saved(relu_net(), tmp_path)
    first = onnxplain(path, "--triton", tmp_path / "r")
    before = everything(tmp_path / "r")
    second = onnxplain(path, "--triton", tmp_path / "r")
    assert everything(tmp_path / "r") == before
    assert "as it was" in second and "as it was" not in first


def test_another_model_of_that_name_stays_until_force(tmp_path):
    path, folder = saved(relu_net(), tmp_path), tmp_path / "r"
    onnxplain(path, "--triton", folder)
    before = everything(folder)
    with pytest.raises(InputError, match="--force"):
        onnxplain(path, "--triton", folder, "--method", "gradient", "--with-model")
    assert everything(folder) == before  # not even the model beside it
    onnxplain(path, "--triton", folder, "--method", "gradient", "--force")
    assert parsed(folder / "m.explain").parameters["onnxplain_method"].string_value == "gradient"
    assert {p.name for p in folder.iterdir()} == {"m.explain"}


def test_force_does_not_delete_what_export_did_not_write(tmp_path):
    path, folder = saved(relu_net(), tmp_path), tmp_path / "r"
    onnxplain(path, "--triton", folder)
    (folder / "m.explain" / "2").mkdir()
    (folder / "m.explain" / "2" / "model.onnx").write_bytes(b"another's")
    before = everything(folder)
    with pytest.raises(InputError, match=r"2/model\.onnx"):
        onnxplain(path, "--triton", folder, "--method", "gradient", "--force")
    assert everything(folder) == before


def test_a_failed_move_brings_the_old_back(tmp_path, monkeypatch):
    path, folder = saved(relu_net(), tmp_path), tmp_path / "r"
    onnxplain(path, "--triton", folder, "--with-model")
    before = everything(folder)
    saved(relu_net(bias=False), tmp_path)
    replace = os.replace

    def full(source, target):
        if Path(target) == folder / "m.explain":  # "m" is in its new place by then
            monkeypatch.undo()
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match="No space left"):
        onnxplain(path, "--triton", folder, "--with-model", "--force")
    assert everything(folder) == before and {p.name for p in folder.iterdir()} == {"m", "m.explain"}


def test_a_model_that_cannot_be_explained_leaves_no_folder(tmp_path):
    bad = net("g (float[N, 4] x) => (int64[N] y) { y = ArgMax <axis = 1, keepdims = 0> (x) }")
    with pytest.raises(UnsupportedModel):
        onnxplain(saved(bad, tmp_path), "--triton", tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_a_file_in_the_way_is_an_error(tmp_path):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "m.explain").write_text("notes")
    with pytest.raises(InputError, match="another kind"):
        onnxplain(saved(relu_net(), tmp_path), "--triton", tmp_path / "r", "--force")
    assert (tmp_path / "r" / "m.explain").read_text() == "notes"


# One target, and only options that mean something to it


@pytest.mark.parametrize(
    "options, words",
    [
        ((), "none of them"),
        (("--kserve", "--triton", "d"), "--kserve and --triton"),
        (("--kserve",), "--storage-uri"),
        (("--kserve", "--storage-uri", "s3://b", "--method", "lrp"), "model.toml"),
        (("--triton", "d", "--storage-uri", "s3://b"), "goes with --kserve and --kubernetes"),
        (("--kubernetes", "d"), "--storage-uri"),
        (("--kubernetes", "d", "--storage-uri", "hf://b"), "pvc://"),
        (("--kubernetes", "d", "--storage-uri", "file:///b"), "pvc://"),
        (("--mlflow", "http://127.0.0.1:1", "--with-model"), "goes with --triton"),
    ],
)
def test_wrong_options_are_refused_in_one_line(options, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as found:
        onnxplain(MODELS / "digits_gru", *options)
    assert words in str(found.value) and "\n" not in str(found.value)
    assert not list(tmp_path.iterdir())


def test_without_mlflow_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'onnxplain\[mlflow\]'"):
        onnxplain(MODELS / "digits_gru", "--mlflow", "http://127.0.0.1:1")


def test_mlflow_gets_the_explainer_its_recipe_and_its_settings(monkeypatch):
    called = {}
    server, flavor = ModuleType("mlflow"), ModuleType("onnxplain.mlflow")
    server.exceptions = SimpleNamespace(MlflowException=KeyError)
    server.set_tracking_uri = lambda uri: called.update(uri=uri)
    info = SimpleNamespace(model_uri="models:/digits_gru/1", registered_model_version=1)
    flavor.log_model = lambda *arguments, **named: called.update(arguments=arguments, **named) or info
    monkeypatch.setitem(sys.modules, "mlflow", server)
    monkeypatch.setitem(sys.modules, "onnxplain.mlflow", flavor)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: server)
    out = onnxplain(MODELS / "digits_gru", "--mlflow", "http://127.0.0.1:1", "--method", "gradient")
    explainer, name = called["arguments"]
    assert called["uri"] == "http://127.0.0.1:1" and name == called["registered_model_name"] == "digits_gru"
    assert explainer.recipe == called["recipe"] == Recipe("gradient")
    assert called["settings"] == MODELS / "digits_gru" / "model.toml"
    assert "models:/digits_gru/1" in out and "version 1" in out


def test_a_file_with_an_impossible_name_is_refused(tmp_path):
    with pytest.raises(UsageError, match="Rename"):
        onnxplain(saved(relu_net(), tmp_path, "my model"), "--triton", tmp_path / "r")


def test_the_bundled_folder_needs_no_network_and_no_mlflow():
    code = "import sys, onnxplain.cli.export; sys.exit(any(m.split('.')[0] == 'mlflow' for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
