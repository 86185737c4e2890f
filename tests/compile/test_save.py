"""Compiled files on disk: weights in external files are neither doubled nor lost, and a failure leaves nothing."""

from __future__ import annotations

import errno
import os

import numpy as np
import onnx
import onnxruntime
import pytest
from nets import net, normal

from onnxplain import Explainer, chain, cut
from onnxplain.compile import save as saving
from onnxplain.errors import InputError, UnsupportedModel

SIZE = 64


def model() -> onnx.ModelProto:
    text = f"g (float[N, {SIZE}] x) => (float[N, {SIZE}] y) {{ a = MatMul (x, w) b = Relu (a) y = MatMul (b, v) }}"
    return net(text, w=normal(SIZE, SIZE), v=normal(SIZE, SIZE, seed=1))


@pytest.fixture
def external(tmp_path):
    """A model whose weights lie in a file beside it."""
    folder = tmp_path / "models"
    folder.mkdir()
    path = folder / "m.onnx"
    onnx.save_model(model(), path, save_as_external_data=True, location="m.weights", size_threshold=0)
    return path


def run(path, **feeds):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(["x.relevance"], {name.replace("_", "."): value for name, value in feeds.items()})[0]


@pytest.fixture
def expected(tmp_path):
    onnx.save(model(), tmp_path / "inline.onnx")
    Explainer(tmp_path / "inline.onnx", "lrp").save(tmp_path / "inline.lrp.onnx")
    return run(tmp_path / "inline.lrp.onnx", x=normal(2, SIZE), y_seed=normal(2, SIZE, seed=2))


FEEDS = {"x": normal(2, SIZE), "y_seed": normal(2, SIZE, seed=2)}


def test_beside_the_model_its_weights_are_shared(external, expected):
    Explainer(external, "lrp").save(external.parent / "m.lrp.onnx")
    assert sorted(p.name for p in external.parent.iterdir()) == ["m.lrp.onnx", "m.onnx", "m.weights"]
    np.testing.assert_allclose(run(external.parent / "m.lrp.onnx", **FEEDS), expected, rtol=1e-4, atol=1e-4)


def test_in_a_folder_above_the_weights_are_found_below(external, expected):
    Explainer(external, "lrp").save(external.parent.parent / "up.onnx")
    assert not (external.parent.parent / "up.onnx.data").exists()
    np.testing.assert_allclose(run(external.parent.parent / "up.onnx", **FEEDS), expected, rtol=1e-4, atol=1e-4)


def test_in_another_folder_they_are_copied_once(external, expected, tmp_path):
    (tmp_path / "out").mkdir()
    Explainer(external, "lrp").save(tmp_path / "out" / "m.lrp.onnx")
    sizes = {p.name: p.stat().st_size for p in (tmp_path / "out").iterdir()}
    assert set(sizes) == {"m.lrp.onnx", "m.lrp.onnx.data"}
    assert (
        sizes["m.lrp.onnx"] < 20_000
        and sizes["m.lrp.onnx.data"] <= 1.1 * (external.parent / "m.weights").stat().st_size
    )
    os.remove(external.parent / "m.weights")
    np.testing.assert_allclose(run(tmp_path / "out" / "m.lrp.onnx", **FEEDS), expected, rtol=1e-4, atol=1e-4)


def test_an_explainer_of_external_weights_explains(external, expected):
    explainer = Explainer(external, "lrp")
    np.testing.assert_allclose(
        explainer.run(FEEDS["x"], FEEDS["y_seed"])["x.relevance"], expected, rtol=1e-4, atol=1e-4
    )
    explainer.verify()


def test_a_model_too_large_for_one_file_gets_a_data_file(tmp_path, expected, monkeypatch):
    monkeypatch.setattr(saving, "INLINE_LIMIT", 1000)
    monkeypatch.setattr("onnxplain.runtime.open.INLINE_LIMIT", 1000)
    onnx.save(model(), tmp_path / "m.onnx")
    explainer = Explainer(tmp_path / "m.onnx", "lrp", fold=True)
    explainer.save(tmp_path / "big.onnx")
    assert (tmp_path / "big.onnx").stat().st_size < 20_000 < (tmp_path / "big.onnx.data").stat().st_size
    np.testing.assert_allclose(run(tmp_path / "big.onnx", **FEEDS), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        explainer.run(FEEDS["x"], FEEDS["y_seed"])["x.relevance"], expected, rtol=1e-4, atol=1e-4
    )


def test_saving_replaces_a_file_and_keeps_it_when_it_fails(tmp_path, monkeypatch):
    onnx.save(model(), tmp_path / "m.onnx")
    explainer, path = Explainer(tmp_path / "m.onnx"), tmp_path / "out.onnx"
    path.write_text("before")

    def full(*args, **kwargs):
        (tmp_path / next(p for p in os.listdir(tmp_path) if p.startswith(".out")) / "out.onnx").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(saving, "_write_whole", full)
        with pytest.raises(InputError, match="No space left on device"):
            explainer.save(path)
    assert path.read_text() == "before" and sorted(os.listdir(tmp_path)) == ["m.onnx", "out.onnx"]
    explainer.save(path)
    assert sorted(os.listdir(tmp_path)) == ["m.onnx", "out.onnx"]
    onnx.checker.check_model(path)


def test_the_explained_model_is_never_overwritten(tmp_path):
    onnx.save(model(), tmp_path / "m.onnx")
    with pytest.raises(InputError, match="the model to be explained"):
        Explainer(tmp_path / "m.onnx").save(tmp_path / "." / "m.onnx")


@pytest.mark.parametrize("place", ["folder", "missing/out.onnx", "file/out.onnx", "/proc/out.onnx"])
def test_places_that_cannot_be_written(place, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    onnx.save(model(), tmp_path / "m.onnx")
    with pytest.raises(InputError, match="cannot write"):
        Explainer(tmp_path / "m.onnx").save(tmp_path / place)


def test_missing_weights_are_one_clear_line(external):
    os.remove(external.parent / "m.weights")
    with pytest.raises(UnsupportedModel, match=r"m\.weights.*not beside the model"):
        Explainer(external)


def written(folder, data: str, seed: int):
    model = net(
        "g (float[N, 64] x) => (float[N, 64] y) { a = MatMul (x, w) b = Tanh (a) y = MatMul (b, v) }",
        w=normal(64, 64, seed=seed),
        v=normal(64, 64, seed=seed + 1),
    )
    folder.mkdir(exist_ok=True)
    onnx.save(model, folder / "m.onnx", save_as_external_data=True, location=data, size_threshold=100)
    return folder / "m.onnx"


def test_a_file_that_holds_weights_which_are_read_is_never_written_over(tmp_path):
    """By any command that writes a model: the file itself, and the `.data` that may go beside it."""
    first, second = written(tmp_path / "a", "m.data", 0), written(tmp_path / "b", "q.onnx.data", 10)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for write in (
        lambda: chain(first, second, tmp_path / "b" / "q.onnx"),
        lambda: chain(second, first, tmp_path / "b" / "q.onnx"),
        lambda: cut(first, tmp_path / "a" / "m.data", at="b"),
        lambda: Explainer(first, "gradient").save(tmp_path / "a" / "m.data"),
        lambda: Explainer(second, "gradient").save(tmp_path / "b" / "q.onnx"),
    ):
        with pytest.raises(InputError, match=r"holds weights that are read; give another name"):
            write()
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
