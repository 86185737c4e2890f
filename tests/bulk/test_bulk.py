"""Bulk runs: every row is there, once, in order, and the same whoever explained it, however often it was begun."""

from __future__ import annotations

import builtins
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from nets import MODELS, net, normal
from PIL import Image

from onnxplain import Explainer
from onnxplain.bulk import BulkJob, Dataset, Row, explain_all, plan
from onnxplain.bulk.explaining import Worker
from onnxplain.bulk.partition import FORMATS, decode
from onnxplain.bulk.reading import RowReader
from onnxplain.cli import main
from onnxplain.errors import InputError, OnnxplainError, UsageError
from onnxplain.inputs import InputSpec, Preprocessing
from onnxplain.inputs.settings import ModelSettings

CNN, IRIS = MODELS / "digits_cnn", MODELS / "iris_mlp"
ROWS = 60
DIGITS = np.load(CNN / "samples" / "ten_digits.npz")["input"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Sixty pictures, no two alike."""
    root = tmp_path_factory.mktemp("pictures")
    (root / "more").mkdir()
    rng = np.random.default_rng(0)
    for n in range(ROWS):
        noisy = np.clip(255 * DIGITS[n % 10, 0] + rng.normal(0, 10, (28, 28)), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(root / ("more" if n % 3 else ".") / f"digit_{n:02}.png")
    return root


def run(*arguments: object) -> int:
    """A command line; its exit code."""
    try:
        main(["run", *map(str, arguments)])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def files(folder: Path) -> dict[str, bytes]:
    """Everything in a folder of results."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def one_pass(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("one") / "out"
    assert run(CNN, folder, "--engine", "local", "--out", out, "--partition-rows", 4, "--workers", 1) == 0
    return out


def test_a_run_that_is_killed_and_resumed_equals_one_that_is_not(folder, tmp_path):
    options = ["--engine", "local", "--partition-rows", "4", "--method", "integrated_gradients", "--option", "steps=40"]
    command = [sys.executable, "-m", "onnxplain", "run", str(CNN), str(folder), *options, "--workers", "1"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(MODELS.parent), os.environ.get("PYTHONPATH", "")])}
    running = subprocess.Popen([*command, "--out", str(tmp_path / "out")], env=env)
    until = time.monotonic() + 60
    while len(list((tmp_path / "out").glob("part-*.json"))) < 3 and time.monotonic() < until:
        time.sleep(0.002)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("part-*.json")}
    assert 3 <= len(made) < ROWS // 4 and not (tmp_path / "out" / "manifest.json").exists()
    for out, more in (("out", ["--resume"]), ("whole", [])):
        assert run(CNN, folder, *options, "--out", tmp_path / out, *more) == 0
    assert all(path.stat().st_mtime_ns == at for path, at in made.items())  # none was made again
    left = files(tmp_path / "out")
    assert {name: content for name, content in left.items() if not name.startswith(".")} == files(tmp_path / "whole")


def test_the_number_of_workers_changes_no_byte(folder, one_pass, tmp_path):
    assert run(CNN, folder, "--engine", "local", "--out", tmp_path, "--partition-rows", 4, "--workers", 3) == 0
    assert files(tmp_path) == files(one_pass)


def test_a_row_is_what_the_explainer_gives_for_its_batch(folder, one_pass):
    rows = list(Dataset(one_pass).rows())
    assert [row.row for row in rows] == list(range(ROWS)) and not any(row.error for row in rows)
    assert [row.path for row in rows] == sorted(str(p) for p in folder.rglob("*.png"))
    explainer = Explainer(CNN / "1" / "model.onnx", "lrp", bounds=([0.0], [1.0]), threads=1)
    pictures = [np.asarray(Image.open(row.path), np.float32) * np.float32(1 / 255) for row in rows[:4]]
    found = explainer.explain(np.stack(pictures)[:, None])
    for n, row in enumerate(rows[:4]):
        np.testing.assert_array_equal(row.relevances["input"][0], found.relevances["input"][n])
        np.testing.assert_array_equal(row.scores, found.scores[n])
        assert row.target_scores == (pytest.approx(found.targets[0].score[n]),)


def tables(root: Path, values: np.ndarray, names: list[str]) -> dict[str, Path]:
    """The same rows in every type of file that holds several."""
    np.save(root / "a.npy", values)
    np.savez(root / "a.npz", values)
    text = "\n".join([",".join(names), *(",".join(map(repr, row)) for row in values.astype(float).tolist())])
    (root / "a.csv").write_text(text)
    (root / "nameless.csv").write_text(text.split("\n", 1)[1])
    return {path.name: path for path in root.iterdir()}


def relevances(out: Path) -> list[np.ndarray]:
    return [row.relevances["input"] for row in Dataset(out).rows()]


@pytest.mark.parametrize("kind", ["a.npy", "a.npz", "a.csv", "nameless.csv", "a.parquet", "list.parquet"])
def test_rows_are_the_same_from_every_type_of_file(kind, tmp_path):
    values = np.random.default_rng(1).uniform(0.5, 6, (23, 4)).astype(np.float32)
    model = tmp_path / "m.onnx"
    onnx.save(net("g (float[N, 4] input) => (float[N, 4] y) { t = Tanh (input) y = Mul (t, input) }"), model)
    paths = tables(tmp_path, values, ["p", "q", "r", "s"])
    if "parquet" in kind:
        import pyarrow
        from pyarrow import parquet

        columns = (
            dict(zip("pqrs", values.T, strict=True))
            if kind == "a.parquet"
            else {"input": list(values), "id": values[:, 0]}
        )
        parquet.write_table(pyarrow.table(columns), tmp_path / kind, row_group_size=5)
        paths[kind] = tmp_path / kind
    assert run(model, paths[kind], "--engine", "local", "--out", tmp_path / "o", "--partition-rows", 6) == 0
    assert run(model, paths["a.npy"], "--engine", "local", "--out", tmp_path / "npy", "--partition-rows", 6) == 0
    assert [row.index for row in Dataset(tmp_path / "o").rows()] == list(range(23))
    for found, expected in zip(relevances(tmp_path / "o"), relevances(tmp_path / "npy"), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_what_is_wrong_with_a_row_is_said_in_its_row_and_by_the_exit_code(tmp_path, capsys):
    model, data = tmp_path / "m.onnx", tmp_path / "data"
    data.mkdir()
    onnx.save(net("g (float[N, 4] input) => (float[N, 4] y) { t = Log (input) y = Mul (t, input) }"), model)
    values = np.full((8, 4), 2, np.float32)
    values[3, 1] = np.nan
    values[5] = -1  # a logarithm that is not finite
    np.save(data / "a.npy", values)
    (data / "b.csv").write_text("p,q,r,s\n1,2,3,4\n1,x,3,4\n1,2,3\n\n5,6,7,8\n")
    (data / "c.npz").write_bytes(b"PK")
    (data / "d.txt").write_text("not an input")
    assert (
        run(model, data, "--engine", "local", "--out", tmp_path / "o", "--partition-rows", 5, "--method", "gradient")
        == 4
    )
    rows = list(Dataset(tmp_path / "o").rows())
    errors = {(Path(row.path).name, row.index): row.error for row in rows if row.error}
    assert len(rows) == 13 and set(errors) == {("a.npy", 3), ("a.npy", 5), ("b.csv", 1), ("b.csv", 2), ("c.npz", 0)}
    for place, words in {
        ("a.npy", 3): "NaN at [1]",
        ("b.csv", 1): "found 'x'",
        ("b.csv", 2): "3 columns, expected 4",
        ("c.npz", 0): "c.npz",
    }.items():
        assert words in errors[place]
    said = capsys.readouterr().err
    assert "5 of 13 rows" in said and "(.txt) are left out" in said
    manifest = json.loads((tmp_path / "o" / "manifest.json").read_text())
    assert (manifest["rows"], manifest["errors"]) == (13, 5)


@pytest.mark.parametrize(
    "change, says",
    [
        (["--method", "gradient"], "recipe.method"),
        (["--target", "3"], "targets"),
        (["--mean", "0.5"], "preprocessing.options.mean"),
        (["--threads", "2"], "threads"),
        (["--batch-size", "2"], "batch"),
        (["--partition-rows", "5"], "partitions"),
        (["--head", "keep"], "request.head"),
    ],
)
def test_another_run_in_the_same_folder_is_refused(change, says, folder, one_pass, capsys):
    before = files(one_pass)
    options = [
        "--engine",
        "local",
        "--out",
        one_pass,
        *([] if "--partition-rows" in change else ["--partition-rows", 4]),
    ]
    assert run(CNN, folder, *options, "--resume", *change) == 2
    assert says in capsys.readouterr().err
    assert run(CNN, folder, *options, *change) == 2  # without --resume any run is
    assert files(one_pass) == before


def test_other_inputs_in_the_same_folder_are_refused(tmp_path, capsys):
    np.save(tmp_path / "a.npy", DIGITS)
    command = [CNN, tmp_path / "a.npy", "--engine", "local", "--out", tmp_path / "o", "--resume"]
    assert run(*command) == 0
    np.save(tmp_path / "a.npy", DIGITS[::-1])
    assert run(*command) == 2 and "begun with inputs" in capsys.readouterr().err


def test_a_partition_without_its_entry_or_cut_short_is_made_again(folder, one_pass, tmp_path):
    out = tmp_path / "o"
    out.mkdir()
    for name, content in files(one_pass).items():
        (out / name).write_bytes(content)
    (out / "part-00002.json").unlink()
    (out / "part-00005.npz").write_bytes(b"short")
    (out / "part-00007.npz").unlink()
    assert run(CNN, folder, "--engine", "local", "--out", out, "--partition-rows", 4, "--resume") == 0
    assert files(out) == files(one_pass)


def test_what_is_wrong_with_every_row_ends_the_run(folder, tmp_path):
    assert run(CNN, folder, "--engine", "local", "--out", tmp_path, "--target", 99) == 2
    assert not list(tmp_path.glob("part-*"))


def test_a_batch_that_the_model_fixes_is_filled_up(tmp_path):
    onnx.save(
        net("g (float[4, 3] input) => (float[4, 3] y) { t = Tanh (input) y = Mul (t, input) }"), tmp_path / "m.onnx"
    )
    values = np.random.default_rng(2).normal(size=(10, 3)).astype(np.float32)
    np.save(tmp_path / "a.npy", values)
    assert run(tmp_path / "m.onnx", tmp_path / "a.npy", "--engine", "local", "--out", tmp_path / "o") == 0
    found = relevances(tmp_path / "o")
    assert len(found) == 10
    explainer = Explainer(tmp_path / "m.onnx", "lrp", threads=1)
    np.testing.assert_array_equal(np.stack(found)[4:8, 0], explainer.explain(values[4:8]).relevances["input"])


ROWS_OF_ALL_KINDS = [
    Row(0, "a.png", 0, "", ("cat", "dog"), (1.5, -2.0), normal(3), {"x": normal(2, 3, 4)}),
    Row(1, "b.png", 0, "not a picture"),
    Row(2, "c.csv", 7, "", ("dog", "cat"), (0.5, 0.25), normal(3), {"x": normal(2, 1, 2)}),
]
OF_SAMPLES = [
    Row(3, "d.csv", 0, "", ("dog",), (0.5,), normal(3), {"x": normal(1, 2)}, {"x": normal(1, 2) ** 2}, ("a", "b")),
    Row(4, "d.csv", 1, "", ("cat",), (0.5,), normal(3), {"x": normal(1, 3)}, {"x": normal(1, 3) ** 2}),
    Row(5, "d.csv", 2, "no number"),
]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("rows", [ROWS_OF_ALL_KINDS, ROWS_OF_ALL_KINDS[1:2], ROWS_OF_ALL_KINDS[2:], OF_SAMPLES])
def test_rows_come_back_from_every_format_and_equal_rows_make_equal_bytes(kind, rows):
    content = FORMATS[kind].encode(rows)
    assert FORMATS[kind].encode(rows) == content
    for found, row in zip(decode(kind, content, "here"), rows, strict=True):
        assert (found.row, found.path, found.index, found.error, found.targets, found.target_scores) == (
            row.row, row.path, row.index, row.error, row.targets, row.target_scores
        )  # fmt: skip
        assert found.relevances.keys() == row.relevances.keys() and (found.scores is None) == (row.scores is None)
        for name, values in row.relevances.items():
            np.testing.assert_array_equal(found.relevances[name], values)
        assert found.notes == row.notes and found.standard_errors.keys() == row.standard_errors.keys()
        for name, values in row.standard_errors.items():
            np.testing.assert_array_equal(found.standard_errors[name], values)


@pytest.mark.parametrize("kind", FORMATS)
def test_standard_errors_and_notes_of_every_row_reach_partitions_and_summary(kind, tmp_path, capsys):
    """As offline row by row; a text is said once, with the largest figure and how many rows have it."""
    values = np.random.default_rng(3).normal(size=(9, 4)).astype(np.float32)
    model = tmp_path / "m.onnx"
    onnx.save(net("g (float[N, 4] input) => (float[N, 4] y) { t = Tanh (input) y = Mul (t, input) }"), model)
    np.save(tmp_path / "a.npy", values)
    for name, options in (("rise", ["masks=20"]), ("integrated_gradients", ["steps=1", "quadrature=right"])):
        words = [word for option in options for word in ("--option", option)]
        command = [model, tmp_path / "a.npy", "--engine", "local", "--partition-rows", 4, "--batch-size", 2]
        out = tmp_path / name
        assert (
            run(*command, "--out", out, "--format", kind, "--method", name, "--target", 1, "--target", 2, *words) == 0
        )
        said = capsys.readouterr().err
        rows = list(Dataset(out).rows())
        explainer = Explainer(model, name, threads=1, **dict(option.split("=") for option in options))
        alone = [explainer.explain(values[n : n + 1], [1, 2]) for n in range(9)]
        for row, expected in zip(rows, alone, strict=True):
            assert row.standard_errors.keys() == expected.standard_errors.keys()
            for tensor, errors in expected.standard_errors.items():
                np.testing.assert_allclose(row.standard_errors[tensor], errors, rtol=1e-5)  # float32, another batch
            noted = [note.said for k in range(2) for note in expected.row_notes.get(k, ())]
            assert [note.split(" is off by")[0] for note in row.notes] == [n.split(" is off by")[0] for n in noted]
        manifest = json.loads((out / "manifest.json").read_text())
        assert all(f"note: {note}" in said for note in manifest["notes"])
        if name == "rise":
            assert all(row.standard_errors["input"].shape == (2, 4) for row in rows) and not manifest["notes"]
        else:
            noted = [e.row_notes for e in alone if e.row_notes]
            largest = max(note.figure for notes in noted for of_row in notes.values() for note in of_row)
            (note,) = manifest["notes"]
            assert note.endswith(f"(in {len(noted)} of 9 rows)") and f"off by up to {largest:.2g}"[:18] in note


def test_a_worker_takes_no_other_model_than_the_jobs(tmp_path):
    job = BulkJob(CNN / "1" / "model.onnx", "0" * 64, {"method": "lrp"})
    with pytest.raises(InputError, match="not the model"):
        Worker(job)


@pytest.mark.parametrize(
    "missing, arguments", [("ray", ["--engine", "ray"]), ("pyarrow", ["--engine", "local", "--format", "parquet"])]
)
def test_what_is_not_installed_is_named_before_anything_is_done(
    missing, arguments, folder, tmp_path, monkeypatch, capsys
):
    real = builtins.__import__

    def without(name, *rest, **more):
        if name.split(".")[0] == missing:
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    assert run(CNN, folder, *arguments, "--out", tmp_path / "o") == 2
    assert "pip install 'onnxplain[" in capsys.readouterr().err and not (tmp_path / "o").exists()


def test_blocks_are_full_and_cover_every_row_once(tmp_path):
    for n, rows in enumerate((3, 1, 9, 2)):
        np.save(tmp_path / f"{n}.npy", np.zeros((rows, 4), np.float32))
    found = plan([str(tmp_path)], [InputSpec("x", "float32", ("N", 4))], {}, 4)
    assert [block.rows for block in found.blocks] == [4, 4, 4, 3] and [b.first for b in found.blocks] == [0, 4, 8, 12]
    covered = [(p.file.name, i) for block in found.blocks for p in block.pieces for i in range(p.start, p.stop)]
    assert len(set(covered)) == len(covered) == found.rows == 15


def test_an_executor_that_fails_keeps_what_is_done(folder, tmp_path, monkeypatch):
    explainer = Explainer(CNN / "1" / "model.onnx", threads=1)
    job = BulkJob(CNN / "1" / "model.onnx", explainer.subject.source.sha256, {"method": "lrp"})
    found = plan([str(folder)], explainer.subject.inputs, {}, 4)
    real, calls = Worker.explain, []

    def failing(self, block):
        calls.append(block.number)
        if len(calls) > 5:
            raise UsageError("all is wrong")
        return real(self, block)

    monkeypatch.setattr(Worker, "explain", failing)
    with pytest.raises(OnnxplainError, match="all is wrong"):
        explain_all(job, explainer, found, tmp_path, workers=1)
    assert 4 <= len(list(tmp_path.glob("part-*.json"))) <= 5


@pytest.mark.parametrize("names", ["", "/*.png", "/more/*.png", "/digit_00.png"])
def test_files_by_address_are_the_files_by_path(names, folder):
    inputs = [InputSpec("x", "float32", ("N", 1, 28, 28))]
    here, there = (plan([f"{where}{names}"], inputs, {}, 4) for where in (folder, f"file://{folder}"))
    assert there.rows == here.rows > 0
    for block, other in zip(here.blocks, there.blocks, strict=True):
        for piece, remote in zip(block.pieces, other.pieces, strict=True):
            assert remote.file.name == f"file://{piece.file.name}"
            with remote.file.path() as copy:
                assert copy.read_bytes() == Path(piece.file.name).read_bytes()


@pytest.mark.parametrize("kind", ["a.npy", "a.npz", "a.csv", "nameless.csv"])
def test_rows_by_address_are_the_rows_by_path(kind, tmp_path):
    inputs = [InputSpec("x", "float32", ("N", 4))]
    path = tables(tmp_path, normal(9, 4), ["p", "q", "r", "s"])[kind]
    rows = []
    for name in (str(path), f"file://{path}"):
        found = plan([name], inputs, {}, 4)
        reader = RowReader(inputs, Preprocessing(ModelSettings()), found.columns)
        rows.append([row for block in found.blocks for piece in block.pieces for row in reader.read(piece)])
    assert len(rows[0]) == 9
    np.testing.assert_array_equal(*[[row["x"] for row in found] for found in rows])


def test_a_folder_that_takes_no_manifest_is_said_in_one_line(tmp_path):
    dataset = Dataset.begin(tmp_path / "out", {"format": "npz", "partitions": 0}, resume=False)
    (tmp_path / "out" / "manifest.json").mkdir()
    with pytest.raises(InputError, match="cannot write to"):
        dataset.finish()
