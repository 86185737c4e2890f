"""Laws of what goes into a run: settings, pictures, arrays, labels."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from PIL import Image

from onnxplain import inputs
from onnxplain.errors import InputError, OnnxplainError, UnknownName, UsageError
from onnxplain.inputs import InputSpec, PictureSettings, labels
from onnxplain.inputs.files import read
from onnxplain.inputs.formats import FORMATS
from onnxplain.inputs.preparation import INTERPOLATIONS

MODELS = Path(__file__).parents[2] / "models"
PHOTO = MODELS / "mobilenet_v2/samples/chelsea.png"
IMAGE = ("N", 3, 16, 16)
X = InputSpec("x", "float32", ("N", 3))


def picture(tmp_path: Path, values: np.ndarray, name: str = "p.png", mode: str | None = None, **save) -> Path:
    image = Image.fromarray(np.asarray(values, np.uint8))
    (image.convert(mode) if mode else image).save(tmp_path / name, **save)
    return tmp_path / name


def gradient_picture(height: int = 20, width: int = 30) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([8 * x, 10 * y, 100 + x + y], -1).astype(np.uint8)


def toml(tmp_path: Path, text: str, name: str = "model.toml") -> Path:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(text)
    return tmp_path / name


# settings


def test_a_version_overrides_its_model_key_by_key(tmp_path):
    below = toml(tmp_path, '[input]\nmean = [1, 2, 3]\nscale = "1/255"\n[output]\nlabels = "names.txt"\n')
    above = toml(tmp_path, '[input]\nmean = 0.5\n[output]\nkind = "dense"\n', "1/model.toml")
    settings = inputs.load_settings(below, above)
    assert settings.input.mean == (0.5,)
    assert settings.input.scale == 1 / 255
    assert settings.output == inputs.OutputSettings((), str(tmp_path / "names.txt"), "dense")


def test_input_is_the_first_and_named_tables_are_their_own(tmp_path):
    settings = inputs.load_settings(toml(tmp_path, "[input]\nscale = 2\n[inputs.b]\nscale = 3\n"))
    assert settings.picture("a", 0).scale == 2
    assert settings.picture("b", 1).scale == 3
    assert settings.picture("c", 2) is None


@pytest.mark.parametrize(
    "text, says",
    [
        ("[input]\nmeen = 1", "mean"),
        ("[imput]\nmean = 1", "input"),
        ("[output]\nlabel = 'x'", "labels"),
        ("[output]\nkind = 'clasification'", "classification"),
        ("[licence]\nnames = 'x'", "name"),
        ("[input]\nlayout = 'NCHH'", "layout"),
        ("[input]\nlayout = 'CNHW'", "N first"),
        ("[input]\nscale = '1/0'", "scale"),
        ("[input]\nstd = [1, 0, 1]", "no zero"),
        ("[input]\nmean = [1, 2]\nstd = [1, 2, 3]", "one length"),
        ("[input]\nbounds = [1, 0]", "low below high"),
        ("[input]\ncrop = [0, 0, 4]", "crop"),
        ("[inputs]\nx = 3", "[inputs.NAME]"),
        ("input = 3", "table"),
    ],
)
def test_a_wrong_setting_is_a_usage_error_that_names_the_right_one(tmp_path, text, says):
    with pytest.raises(UsageError) as error:
        inputs.load_settings(toml(tmp_path, text))
    assert says in str(error.value)


def test_broken_toml_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="not valid TOML"):
        inputs.load_settings(toml(tmp_path, "[input\n"))


def test_bounds_are_what_black_and_white_become():
    low, high = inputs.PRESETS["imagenet"].low_high()
    np.testing.assert_allclose(low, [-2.1179, -2.0357, -1.8044], atol=1e-4)
    np.testing.assert_allclose(high, [2.2489, 2.4286, 2.6400], atol=1e-4)
    assert PictureSettings(bounds=((0.0,), (1.0,)), scale=7).low_high() == ((0.0,), (1.0,))
    assert PictureSettings(std=(-1.0,)).low_high() == ((-255.0,), (0.0,))


@pytest.mark.parametrize("name", inputs.PRESETS)
def test_no_picture_leaves_its_presets_bounds(tmp_path, name):
    settings, _ = inputs.from_options(IMAGE, preprocess=name)
    for value in (0, 255):
        array = inputs.prepare(picture(tmp_path, np.full((20, 20, 3), value)), settings, IMAGE).array
        low, high = (np.asarray(end).reshape(-1, 1, 1) for end in settings.low_high())
        assert (array >= low - 1e-5).all()  # float32 rounding
        assert (array <= high + 1e-5).all()


def test_a_preset_fits_the_size_the_model_declares():
    settings, _ = inputs.from_options(("N", 3, 299, 299), preprocess="imagenet")
    assert (settings.resize, settings.size) == (342, (299, 299))  # torchvision's own numbers for Inception


def test_a_preset_takes_the_layout_it_is_given(tmp_path):
    settings, _ = inputs.from_options(("N", 8, 8), preprocess="unit", layout="nhw")
    path = picture(tmp_path, np.full((9, 9, 3), 255))
    np.testing.assert_array_equal(inputs.prepare(path, settings, ("N", 8, 8)).array, np.ones((1, 8, 8)))
    settings, _ = inputs.from_options(("N", 32, 48, 3), preprocess="imagenet", layout="NWHC")
    assert settings.size == (48, 32)


def test_options_win_over_model_toml_and_presets():
    base = PictureSettings(mean=(9.0,), layout="NHWC")
    settings, note = inputs.from_options(IMAGE, mean=[1, 2, 3], scale="1/2", base=base)
    assert (settings.mean, settings.scale, settings.layout, note) == ((1, 2, 3), 0.5, "NHWC", None)
    assert inputs.from_options(IMAGE, preprocess="unit", scale=3)[0].scale == 3


@pytest.mark.parametrize("mean, scale", [([0.5], 1 / 255), ([104, 117, 123], 1.0)])
def test_without_a_scale_the_size_of_the_mean_tells_it_and_it_is_said(mean, scale):
    settings, note = inputs.from_options(IMAGE, mean=mean)
    assert settings.scale == scale
    assert "--scale" in note


@pytest.mark.parametrize(
    "shape, layout, size",
    [
        (("N", 3, 8, 9), "NCHW", (8, 9)),
        (("N", 8, 9, 3), "NHWC", (8, 9)),
        ((1, 1, None, "w"), "NCHW", None),
        (("a", "b", "c", "d"), "NCHW", None),
        ((3, 8, 9), "CHW", (8, 9)),
        ((8, 9, 3), "HWC", (8, 9)),
    ],
)
def test_a_guess_reads_layout_and_size_from_the_shape_and_says_so(shape, layout, size):
    settings, note = inputs.guess(shape)
    assert (settings.layout, settings.size, settings.scale) == (layout, size, 1 / 255)
    assert layout in note
    assert "0..1" in note


@pytest.mark.parametrize("shape", [("N", 10), ("N", 64, 7, 7), ("N", 8, 8), ()])
def test_a_shape_that_is_no_picture_is_not_guessed(shape):
    with pytest.raises(InputError, match="does not look like a picture"):
        inputs.guess(shape)


# pictures


def test_mobilenet_answers_as_it_did_when_it_was_packaged():
    session = onnxruntime.InferenceSession(MODELS / "mobilenet_v2/1/model.onnx", providers=["CPUExecutionProvider"])
    settings = inputs.load_settings(MODELS / "mobilenet_v2/model.toml").input
    expected = {"chelsea.png": (285, 19.021), "china.jpg": (698, 14.8143), "hopper.jpg": (457, 12.2766)}
    for name, (index, score) in expected.items():
        prepared = inputs.prepare(MODELS / "mobilenet_v2/samples" / name, settings, ("N", 3, 224, 224))
        logits = session.run(None, {"input": prepared.array})[0][0]
        assert logits.argmax() == index
        assert logits[index] == pytest.approx(score, abs=0.02)  # across resize implementations


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "NWHC", "CHW", "HWC"])
def test_the_array_is_the_picture_seen_whatever_the_layout(layout, interpolation):
    sides = {"N": "N", "C": 3, "H": 40, "W": 60}
    settings = PictureSettings(layout=layout, interpolation=interpolation, scale=1 / 255)
    prepared = inputs.prepare(PHOTO, settings, [sides[axis] for axis in layout])
    array = prepared.array[0] if "N" in layout else prepared.array
    back = array.transpose([layout.replace("N", "").index(axis) for axis in "HWC"])
    np.testing.assert_allclose(back, prepared.picture / 255, atol=1e-6)
    assert prepared.array.dtype == np.float32
    assert prepared.picture.shape == (40, 60, 3)


def test_bgr_is_rgb_reversed_and_the_picture_stays_rgb(tmp_path):
    path = picture(tmp_path, gradient_picture())
    rgb, bgr = (inputs.prepare(path, PictureSettings(channels=order), IMAGE) for order in ("RGB", "BGR"))
    np.testing.assert_array_equal(rgb.array, bgr.array[:, ::-1])
    np.testing.assert_array_equal(rgb.picture, bgr.picture)


def test_every_way_to_store_a_grey_picture_is_the_same_picture(tmp_path):
    grey = gradient_picture()[..., 0]
    wide = Image.fromarray(grey.astype(np.uint16) * 257)
    wide.save(tmp_path / "wide.png")
    paths = [picture(tmp_path, grey, f"{mode}.png", mode) for mode in ("L", "RGB", "LA", "RGBA", "P")]
    for shape in (("N", 1, 20, 30), ("N", 3, 20, 30)):
        arrays = [inputs.prepare(path, PictureSettings(), shape).array for path in (*paths, tmp_path / "wide.png")]
        for array in arrays:
            np.testing.assert_array_equal(array[0, 0], grey)


@pytest.mark.parametrize("suffix", ["png", "jpg", "jpeg", "bmp", "webp"])
def test_every_picture_type_is_read(tmp_path, suffix):
    path = picture(tmp_path, np.full((16, 16, 3), 77), f"p.{suffix}")
    np.testing.assert_allclose(inputs.prepare(path, PictureSettings(), IMAGE).array, 77, atol=1)  # lossy types


def test_transparent_is_white(tmp_path):
    values = np.zeros((16, 16, 4), np.uint8)
    values[:8, :, 3] = 255
    prepared = inputs.prepare(picture(tmp_path, values), PictureSettings(), IMAGE)
    assert (prepared.picture[:8] == 0).all()
    assert (prepared.picture[8:] == 255).all()
    assert "white" in prepared.notes[0]


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to view
    values = np.zeros((16, 16, 3), np.uint8)
    values[:8] = 255
    array = inputs.prepare(picture(tmp_path, values, exif=exif), PictureSettings(), IMAGE).array
    assert (array[..., 8:] == 255).all()
    assert (array[..., :8] == 0).all()


def test_resize_then_centre_crop_is_the_window_in_the_middle(tmp_path):
    values = gradient_picture(40, 60)
    settings = PictureSettings(resize=20, interpolation="box")
    prepared = inputs.prepare(picture(tmp_path, values), settings, IMAGE)
    small = values.reshape(20, 2, 30, 2, 3).mean((1, 3))
    np.testing.assert_allclose(
        prepared.picture, small[2:18, 7:23], atol=1.01
    )  # rounded to whole greys, along each axis


def test_a_box_is_cut_before_the_resize_that_fits_it_and_after_one_that_is_asked_for(tmp_path):
    path = picture(tmp_path, gradient_picture())
    before = inputs.prepare(path, PictureSettings(crop=(1, 2, 16, 16)), IMAGE)
    np.testing.assert_array_equal(before.picture, gradient_picture()[1:17, 2:18])
    after = inputs.prepare(path, PictureSettings(resize=(32, 32), crop=(3, 4, 16, 16)), IMAGE)
    whole = inputs.prepare(path, PictureSettings(resize=(32, 32), crop="none"), ("N", 3, "h", "w"))
    np.testing.assert_array_equal(after.picture, whole.picture[3:19, 4:20])


@pytest.mark.parametrize(
    "shape, multiple, size",
    [(("N", 3, "h", "w"), 1, (20, 30)), (("N", 3, None, None), 16, (16, 32)), (("N", 3, 10, "w"), 1, (10, 15))],
)
def test_open_sides_keep_the_pictures_own_size(tmp_path, shape, multiple, size):
    path = picture(tmp_path, gradient_picture())
    assert inputs.prepare(path, PictureSettings(multiple=multiple), shape).picture.shape[:2] == size


@pytest.mark.parametrize(
    "settings, shape, says",
    [
        (PictureSettings(size=(8, 8)), IMAGE, "declared H = 16"),
        (PictureSettings(layout="NHW"), IMAGE, "one letter per axis"),
        (PictureSettings(channels="GRAY"), IMAGE, "3 channel"),
        (PictureSettings(), ("N", 4, 16, 16), "4 channel"),
        (inputs.PRESETS["imagenet"], ("N", 1, 224, 224), "channel"),
        (PictureSettings(mean=(1.0, 2.0)), IMAGE, "mean has 2"),
        (PictureSettings(resize=8), IMAGE, "cannot cut 16x16"),
        (PictureSettings(resize=(8, 8), crop="none"), IMAGE, "resize and crop give 8x8"),
        (PictureSettings(crop=(0, 0, 99, 99)), IMAGE, "cannot cut 99x99"),
    ],
)
def test_settings_that_do_not_fit_the_model_are_refused(tmp_path, settings, shape, says):
    with pytest.raises(InputError, match=says):
        inputs.prepare(picture(tmp_path, gradient_picture()), settings, shape)


# arrays


def test_all_array_types_say_the_same(tmp_path):
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.save(tmp_path / "a.npy", x)
    np.savez(tmp_path / "a.npz", x=x)
    np.savez(tmp_path / "b.npz", x)  # numpy calls it arr_0
    (tmp_path / "a.csv").write_text("\n".join(",".join(map(str, row)) for row in x.tolist()))
    (tmp_path / "b.csv").write_text("one;two;three\n0;1;2\n\n3;4;5\n")
    (tmp_path / "a.pb").write_bytes(numpy_helper.from_array(x).SerializeToString())
    for name in ("a.npy", "a.npz", "b.npz", "a.csv", "b.csv", "a.pb"):
        loaded = inputs.load([tmp_path / name], [X])
        np.testing.assert_array_equal(loaded.feeds["x"], x)
        assert loaded.feeds["x"].dtype == np.float32
        assert loaded.features == ({"x": ("one", "two", "three")} if name == "b.csv" else {})


def test_several_files_and_a_pattern_are_a_batch_in_order(tmp_path):
    for i in range(3):
        np.save(tmp_path / f"{i}.npy", np.full(3, i, np.float32))  # the batch axis is missing, and added
    together = inputs.load([tmp_path / f"{i}.npy" for i in range(3)], [X])
    by_pattern = inputs.load([str(tmp_path / "*.npy")], [X])
    np.testing.assert_array_equal(together.feeds["x"][:, 0], [0, 1, 2])
    np.testing.assert_array_equal(together.feeds["x"], by_pattern.feeds["x"])
    assert [path.name for path in by_pattern.files] == ["0.npy", "1.npy", "2.npy"]


def test_photographs_are_a_batch_with_their_pictures():
    loaded = inputs.load([PHOTO, PHOTO.with_name("hopper.jpg")], [InputSpec("i", "float32", ("N", 3, 32, 32))])
    assert loaded.feeds["i"].shape == (2, 3, 32, 32)
    assert [seen.shape for seen in loaded.pictures["i"]] == [(32, 32, 3)] * 2
    assert len(loaded.notes) == 1  # the guess, said once


def test_an_integer_picture_input_gets_0_to_255():
    feeds = inputs.load([PHOTO], [InputSpec("i", "uint8", (1, 32, 32, 3))]).feeds
    assert feeds["i"].dtype == np.uint8
    assert feeds["i"].max() > 200


TWO = [InputSpec("a", "float32", ("N", 2)), InputSpec("b", "int64", ("N", 1))]


def test_several_inputs_go_by_name_by_position_or_by_assignment(tmp_path):
    a, b = np.ones((1, 2), np.float32), np.array([[7]])
    np.savez(tmp_path / "both.npz", b=b, a=a)
    np.save(tmp_path / "a.npy", a)
    np.save(tmp_path / "b.npy", b)
    for name, array in (("b", b), ("a", a)):
        tensor = numpy_helper.from_array(array, name)
        (tmp_path / f"input_{'ba'.index(name)}.pb").write_bytes(tensor.SerializeToString())
    one, two = (inputs.InputSpec(name, "float32", (None, 1)) for name in ("p", "q"))
    (tmp_path / "columns.csv").write_text("q,p\n1,2\n3,4\n")
    for files in (
        ["both.npz"],
        ["a.npy", "b.npy"],
        ["input_0.pb", "input_1.pb"],  # by the names inside, not by position
    ):
        feeds = inputs.load([tmp_path / file for file in files], TWO).feeds
        assert (feeds["a"].tolist(), feeds["b"].tolist()) == ([[1, 1]], [[7]])
    assert inputs.load([f"b={tmp_path / 'b.npy'}", tmp_path / "a.npy"], TWO).feeds["b"].tolist() == [[7]]
    columns = inputs.load([tmp_path / "columns.csv"], [one, two]).feeds
    assert (columns["p"].tolist(), columns["q"].tolist()) == ([[2], [4]], [[1], [3]])
    with pytest.raises(InputError, match=r"'a' \(N, 2\) float32; 'b' \(N, 1\) int64"):
        inputs.load([tmp_path / "a.npy"], TWO)
    with pytest.raises(InputError, match="no file for 'b'"):
        inputs.load([f"a={tmp_path / 'a.npy'}"], TWO)


@pytest.mark.parametrize(
    "values, dtype, good",
    [
        (np.array([1.5, 2, 3]), "float32", True),
        (np.array([1e300, 2, 3]), "float32", False),
        (np.array([1, 2, 2**24 + 1]), "float32", False),
        (np.array([1, 2, 2**24]), "float32", True),
        (np.array([1.0, 2, 3]), "int64", True),
        (np.array([1.5, 2, 3]), "int64", False),
        (np.array([-1, 2, 3]), "uint8", False),
        (np.array([2**64 - 1] * 3, np.uint64), "int64", False),
        (np.array([2**63 - 1] * 3), "float64", False),
        (np.array([300, 2, 3]), "uint8", False),
        (np.array([0, 1, 1]), "bool", True),
        (np.array([0, 1, 2]), "bool", False),
        (np.array([True, False, True]), "float32", True),
        (np.array([1j, 2, 3]), "float32", False),
        (np.array(["1", "2", "3"]), "float32", False),
    ],
)
def test_a_cast_keeps_every_value_or_is_refused(values, dtype, good):
    spec = InputSpec("x", dtype, (3,))
    if good:
        cast = inputs.conform(values, spec)
        assert cast.dtype == dtype
        np.testing.assert_allclose(cast.astype(float), values.astype(float))
    else:
        with pytest.raises(InputError, match="expected 'x'"):
            inputs.conform(values, spec)


@pytest.mark.parametrize(
    "shape, declared, says",
    [
        ((4,), ("N", 3), r"found shape \(4,\), expected 'x' \(N, 3\) float32"),
        ((1, 8, 8, 3), ("N", 3, 8, 8), "NHWC: transpose to NCHW"),
        ((1, 3, 8, 8), ("N", 8, 8, 3), "NCHW: transpose to NHWC"),
        ((2, 3), (1, 3), "1 sample"),
        ((3, 3, 3), ("N", 3), "found shape"),
    ],
)
def test_a_wrong_shape_says_what_was_found_and_expected(shape, declared, says):
    with pytest.raises(InputError, match=says):
        inputs.conform(np.zeros(shape, np.float32), InputSpec("x", "float32", declared))


def _npy(array: np.ndarray, **options) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


BAD = {
    "empty.npy": (b"", "is empty"),
    "text.npy": (b"hello world", "not a numpy file"),
    "nested.npy": (b"\x93NUMPY\x01\x00" + (9000).to_bytes(2, "little") + b"(" * 9000, "not a numpy file"),
    "cut.npy": (_npy(np.zeros(100))[:-8], "not a numpy file"),
    "objects.npy": (_npy(np.array([{}, 1], dtype=object), allow_pickle=True), "Python objects"),
    "none.npy": (_npy(np.zeros((0, 3))), "holds no values"),
    "nan.npy": (_npy(np.array([[0, 1, np.nan]])), r"NaN at \[0, 2\]"),
    "inf.npy": (_npy(np.array([[0, -np.inf, np.nan]])), r"infinity at \[0, 1\], 2 in all"),
    "strings.npy": (_npy(np.array(["a"])), "expected real numbers"),
    "text.npz": (b"hello", "not a numpy file"),
    "word.csv": (b"1,2,3\n4,five,6\n", "line 2, column 2: found 'five'"),
    "hole.csv": (b"a,b,c\n4,,6\n", "line 2, column 'b': found nothing"),
    "ragged.csv": (b"1,2,3\n4,5\n", "line 2: 2 columns, expected 3"),
    "nan.csv": (b"a,b,c\n1,2,nan\n", "column 'c'"),
    "header.csv": (b"a,b,c\n", "no row of numbers"),
    "latin.csv": ("é,b\n".encode("latin-1"), "UTF-8"),
    "text.pb": (b"hello world", "not an ONNX tensor|holds no ONNX tensor"),
    "cut.pb": (numpy_helper.from_array(np.zeros(50)).SerializeToString()[:-9], "not an ONNX tensor"),
    "model.pb": (b"\x08\x07\x12\x00", "ONNX tensor"),
    "text.png": (b"hello world", "not a picture"),
    "cut.png": (PHOTO.read_bytes()[:5000], "cannot be read as a picture"),
    "notes.unknown": (b"hello", "are not read. Give one of .npy"),
    "bare": (b"hello", "no suffix"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_one_clear_line(tmp_path, name):
    content, says = BAD[name]
    (tmp_path / name).write_bytes(content)
    spec = InputSpec("i", "float32", ("N", 3, 8, 8)) if name.endswith("png") else X
    with pytest.raises(InputError, match=says) as error:
        inputs.load([tmp_path / name], [spec])
    assert name in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("content", [b"\x00\xff not this", b"no numbers in here", b"\n"])
def test_a_file_of_any_format_that_is_none_is_one_clear_line(suffix, content, tmp_path):
    path = tmp_path / f"file{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        read(path)
    assert path.name in str(error.value) and "\n" not in str(error.value)


def test_a_missing_file_names_its_neighbours_and_a_folder_asks_for_files(tmp_path):
    np.save(tmp_path / "cats.npy", np.zeros(3))
    with pytest.raises(InputError, match=r"cats\.npy"):
        inputs.load([tmp_path / "cat.npy"], [X])
    with pytest.raises(InputError, match=r"no file matches .* cats\.npy"):
        inputs.load([str(tmp_path / "*.png")], [X])
    with pytest.raises(InputError, match="is a directory"):
        inputs.load([tmp_path], [X])
    with pytest.raises(InputError, match="check the path"):
        inputs.load([tmp_path / "nowhere/cat.npy"], [X])


def test_files_that_cannot_be_one_batch_are_named(tmp_path):
    spec = InputSpec("x", "float32", ("N", "L"))
    for length in (2, 3):
        np.save(tmp_path / f"{length}.npy", np.zeros((1, length)))
    with pytest.raises(InputError, match=r"2\.npy .*3\.npy .*cannot be one batch"):
        inputs.load([tmp_path / "2.npy", tmp_path / "3.npy"], [spec])


def test_an_external_tensor_is_never_followed(tmp_path):
    tensor = onnx.TensorProto(data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../../etc/passwd")
    (tmp_path / "x.pb").write_bytes(tensor.SerializeToString())
    with pytest.raises(InputError, match="in another file"):
        read(tmp_path / "x.pb")


def test_random_inputs_have_the_declared_shapes_and_types_and_repeat():
    specs = [
        InputSpec("image", "float32", ("N", 3, "h", "w")),
        InputSpec("ids", "int64", ("N", "L")),
        InputSpec("attention_mask", "int64", ("N", "L")),
        InputSpec("flag", "bool", ()),
    ]
    first, second = (inputs.random_inputs(specs, np.random.default_rng(3), sizes={"w": 32}) for _ in range(2))
    assert [array.shape for array in first.values()] == [(1, 3, 64, 32), (1, 8), (1, 8), ()]
    for spec in specs:
        assert first[spec.name].dtype == spec.dtype
        np.testing.assert_array_equal(first[spec.name], second[spec.name])
        inputs.conform(first[spec.name], spec)
    assert first["attention_mask"].all()
    assert 0 <= first["ids"].min() <= first["ids"].max() < 2


def test_a_random_text_is_refused():
    with pytest.raises(OnnxplainError, match="Give it with --input"):
        inputs.random_inputs([InputSpec("t", "object", (1,))], np.random.default_rng(0))


# labels


def test_imagenet_has_a_thousand_names():
    names = inputs.load_labels("imagenet")
    assert len(names) == 1000
    assert names[285] == "Egyptian Mau"


@pytest.mark.parametrize(
    "name, text",
    [
        ("l.txt", "cat\ndog\n\n"),
        ("l.json", '["cat", "dog"]'),
        ("l.json", '{"1": "dog", "0": "cat"}'),
        ("l.json", '{"0": ["n01", "cat"], "1": ["n02", "dog"]}'),
    ],
)
def test_every_label_file_says_the_same(tmp_path, name, text):
    assert inputs.load_labels(toml(tmp_path, text, name)) == ["cat", "dog"]


@pytest.mark.parametrize(
    "text", ["{", "3", "[1, 2]", "{}", '{"a": "b"}', '{"-1": "a"}', '{"99999999999": "a"}', "[[]]"]
)
def test_a_broken_label_file_is_an_input_error(tmp_path, text):
    with pytest.raises(InputError, match=r"l\.json"):
        inputs.load_labels(toml(tmp_path, text, "l.json"))


def test_a_name_is_a_whole_label_or_the_only_one_with_these_words():
    names = ["tiger", "tiger shark", "Egyptian Mau", "dog", "dog", "a.b"]
    assert labels.find("TIGER", names) == 0
    assert labels.find("mau", names) == 2
    assert labels.find("shark", names) == 1
    assert labels.find("a.b", names) == 5
    with pytest.raises(UsageError, match="3 dog, 4 dog"):
        labels.find("dog", names)
    for wrong in ("tige", "egyptian mao", "", "axb"):
        with pytest.raises(UnknownName):
            labels.find(wrong, names)
    with pytest.raises(UnknownName, match="Egyptian Mau"):
        labels.find("egyptian mao", names)
