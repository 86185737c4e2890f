"""`onnxplain fit`: labelled data from a folder or an npz, what is printed, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from nets import MODELS
from PIL import Image
from test_cli import fails, onnxplain  # noqa: F401

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The UCI digits of scikit-learn: a folder of pictures for each class, and the same rows in an npz."""
    from sklearn.datasets import load_digits

    folder, data = tmp_path_factory.mktemp("digits"), load_digits(n_class=10)
    pictures = [Image.fromarray(np.uint8(np.rint(image * 255 / 16))) for image in data.images[:200]]
    for n, (picture, label) in enumerate(zip(pictures, data.target, strict=False)):
        (folder / "rows" / str(label)).mkdir(parents=True, exist_ok=True)
        picture.save(folder / "rows" / str(label) / f"{n}.png")
    x = [np.asarray(p.resize((28, 28), Image.Resampling.BILINEAR), np.float32)[None] / 255 for p in pictures]
    np.savez(folder / "rows.npz", input=np.array(x), labels=data.target[:200])
    return folder


@pytest.mark.parametrize("data", ["rows", "rows.npz"])
def test_a_digits_classifier_gets_a_head_and_keeps_its_accuracy(data, digits, onnxplain, tmp_path):  # noqa: F811
    found = onnxplain("fit", "cam", MODELS / "digits_cnn", digits / data, "-o", "f.onnx", "--json")
    assert found.code == 0, found.err
    said = found.json
    assert said["rows"] == {"fitted": 160, "held_out": 40} and said["accuracy"]["after"] >= 0.9
    pictures = MODELS / "digits_cnn/samples"
    explained = onnxplain("run", "f.onnx", pictures / "ten_digits.npz", "--method", "cam", "--box", "--out", "o")
    assert explained.code == 0, explained.err
    text = onnxplain("fit", "cam", MODELS / "digits_cnn", digits / data, "-o", "g.onnx")
    assert "accuracy on 40 held-out rows: " in text.out and (tmp_path / "g.onnx").exists()


@pytest.mark.parametrize(
    "given, code, says",
    [
        (["samples/ten_digits.npz"], 4, "no array named labels"),
        (["samples"], 4, "there are no folders in it"),
        (["samples/digit_0.png"], 4, "a folder that holds a folder for each class"),
        (["nowhere"], 4, "no such file or folder"),
        ([""], 2, "no class named"),
    ],
)
def test_data_without_classes_is_one_line(given, code, says, onnxplain):  # noqa: F811
    fails(onnxplain("fit", "cam", MODELS / "digits_cnn", MODELS / "digits_cnn" / given[0], "-o", "f.onnx"), code, says)
