"""Laws of the pictures: what a colour means, that nothing is hidden, and that files come whole or not at all."""

import io
import os
import re
import subprocess
import sys
import tempfile
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from onnxplain.errors import InputError, UnknownName
from onnxplain.render import (
    ClassScore,
    OutputFolder,
    Panel,
    Report,
    as_photo,
    bars,
    colours,
    features,
    grid,
    heatmap,
    html,
    limits,
    lut,
    overlay,
    picture,
    png,
    reduce_channels,
    safe_name,
    strip,
)
from onnxplain.render.colour import CENTRE, HATCH, SIGNED, UNSIGNED
from onnxplain.render.layout import fit
from onnxplain.render.text import elide, font, number, plain, wrap

GREYS = set(HATCH)


def random_map(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def panel(method="lrp", target=281, values=None, **more):
    values = random_map((80, 80)) if values is None else values
    return Panel(method, target, more.pop("target_name", "tabby"), 7.1, 0.4, 6.9, values, **more)


def pixels(image):
    return {tuple(p) for p in np.asarray(image.convert("RGB")).reshape(-1, 3).tolist()}


# colours


@pytest.mark.parametrize("palette", SIGNED)
def test_zero_is_exactly_the_white_centre_of_every_signed_palette(palette):
    assert lut(palette).shape == (256, 3)
    assert tuple(lut(palette)[CENTRE]) == (255, 255, 255)
    rgb, _ = colours([[0.0, -0.0]], (-3.0, 3.0), palette)
    assert (rgb == 255).all()


@pytest.mark.parametrize("palette", SIGNED)
def test_positive_is_red_and_negative_is_blue(palette):
    rgb, _ = colours(np.array([[0.3, 0.6, 0.9], [-0.3, -0.6, -0.9]]), (-1.0, 1.0), palette)
    rgb = rgb.astype(int)
    assert (rgb[0, :, 0] > rgb[0, :, 2]).all()
    assert (rgb[1, :, 2] > rgb[1, :, 0]).all()


@pytest.mark.parametrize("palette", [*SIGNED, *sorted(UNSIGNED.keys() - {"grey"})])
def test_no_palette_of_colours_contains_the_greys_of_the_hatch(palette):
    assert not GREYS & {tuple(entry) for entry in lut(palette).tolist()}


def test_unsigned_palettes_get_brighter_with_the_value():
    for palette in UNSIGNED:
        luminance = lut(palette).astype(float) @ [0.299, 0.587, 0.114]
        assert luminance[-1] > luminance[0] + 100
        assert (np.diff(luminance) > -1).all()  # rounding to 8 bits


def test_signed_limits_are_symmetric_and_equivariant():
    values = random_map((50, 60)) + 0.7
    low, high = limits(values, signed=True)
    assert low == -high
    assert high == pytest.approx(np.percentile(np.abs(values), 99.5))
    assert limits(-values) == (low, high)
    assert limits(values * 4) == pytest.approx((4 * low, 4 * high))


def test_limits_fall_back_to_the_maximum_and_then_to_one():
    sparse = np.zeros((100, 100))
    sparse[3, 4] = -2.0
    assert limits(sparse) == (-2.0, 2.0)
    assert limits(np.zeros((4, 4))) == (-1.0, 1.0)
    assert limits(np.zeros((4, 4)), signed=False) == (0.0, 1.0)
    assert limits(np.full((4, 4), np.nan)) == (-1.0, 1.0)


def test_a_map_of_zeros_is_drawn_white():
    rgb, bad = colours(np.zeros((5, 5)))
    assert (rgb == 255).all() and bad == 0


def test_an_unsigned_map_with_negative_values_is_drawn_signed():
    assert limits(np.array([[-1.0, 2.0]]), signed=False)[0] < 0


def test_values_beyond_the_limits_get_the_colours_of_the_ends():
    rgb, _ = colours([[9.0, -9.0]], (-1.0, 1.0), "bwr")
    assert tuple(rgb[0, 0]) == tuple(lut("bwr")[255]) and tuple(rgb[0, 1]) == tuple(lut("bwr")[1])


@pytest.mark.parametrize("extreme", [1e-310, 1e-30, 1e30, 1e300])
def test_colours_depend_on_ratios_only(extreme):
    values = np.array([[0.5, -1.0, 0.0]])
    assert (colours(values * extreme)[0] == colours(values)[0]).all()


def test_nan_and_inf_are_counted_drawn_grey_and_leave_the_rest_alone():
    values = random_map((40, 40))
    clean, _ = colours(values, (-2.0, 2.0))
    values[:8, :8] = np.nan
    values[20, 20], values[20, 21] = np.inf, -np.inf
    rgb, bad = colours(values, (-2.0, 2.0))
    mask = ~np.isfinite(values)
    assert bad == mask.sum() == 66
    assert {tuple(p) for p in rgb[:8, :8].reshape(-1, 3).tolist()} == GREYS
    assert {tuple(p) for p in rgb[mask].tolist()} <= GREYS
    assert (rgb[~mask] == clean[~mask]).all()
    assert np.isfinite(limits(values)).all()


@pytest.mark.parametrize("side", [20, 80, 300])
def test_one_nan_shows_at_every_size(side):
    values = np.zeros((80, 80))
    values[40, 40] = np.nan
    assert pixels(heatmap(values, side=side)) & GREYS
    assert pixels(overlay(values, np.full((80, 80), 255, np.uint8), size=(side, side))) != {(255, 255, 255)}


def test_bad_maps_and_palettes_are_named():
    for values in (np.zeros((3, 4, 4)), np.zeros(3), np.zeros((0, 3)), np.zeros((2, 2), complex), [["a"]]):
        with pytest.raises(InputError):
            colours(values)
    with pytest.raises(UnknownName):
        lut("viridiss")
    with pytest.raises(UnknownName):
        heatmap(np.zeros((3, 3)), palette="viridiss")
    with pytest.raises(InputError):
        colours(np.zeros((3, 3)), (1.0, -1.0))


# channels, text, sizes


@pytest.mark.parametrize("layout, shape", [("NCHW", (3, 5, 4)), ("NHWC", (5, 4, 3)), ("NCHW", (1, 3, 5, 4))])
def test_channels_are_summed_averaged_or_maximised(layout, shape):
    values = random_map(shape)
    axis = len(shape) - 3 if layout == "NCHW" else 2
    assert reduce_channels(values, layout, "sum").sum() == pytest.approx(values.sum(), rel=1e-5)  # float32
    assert reduce_channels(values, layout, "max").ravel() == pytest.approx(np.abs(values).max(axis).ravel(), rel=1e-6)
    assert reduce_channels(values, layout, "mean").shape == (5, 4)
    with pytest.raises(InputError):
        reduce_channels(values[..., None], layout)


@pytest.mark.parametrize(
    "text", ["x" * 500, "a b " * 100, "", "short", "中文\n\x00tab\t", "Staffordshire bullterrier, dog"]
)
def test_text_never_leaves_its_column(text):
    for width in (40, 168, 400):
        assert font().getlength(elide(text, width)) <= width
        wrapped = wrap(text, width, 2)
        assert len(wrapped) <= 2 and all(font().getlength(line) <= width for line in wrapped)
    assert plain(text).isprintable()


def test_wrapping_loses_no_word_that_fits():
    text = "Staffordshire bullterrier, Staffordshire bull terrier"
    assert " ".join(wrap(text, 300, 3)) == text


def test_numbers_are_short_and_have_real_minus_signs():
    shown = [number(v) for v in (0.0, -1.5, 123456.0, 0.00001234, float("nan"), float("-inf"), None, 1234.5)]
    assert shown == ["0", "−1.5", "1.23e+05", "1.23e−05", "NaN", "−∞", "–", "1234"]
    assert number(2.0, sign=True) == "+2"


def test_small_maps_are_enlarged_by_whole_numbers():
    assert fit((28, 28), 224) == (224, 224)
    assert fit((30, 30), 224) == (210, 210)
    assert max(fit((32, 320), 224)) <= 448
    assert min(fit((1, 5000), 224)) >= 1


def test_a_digit_keeps_its_square_pixels():
    values = random_map((28, 28))
    rgb, _ = colours(values, limits(values))
    drawn = np.asarray(heatmap(values, side=224))[16 : 16 + 224, 16 : 16 + 224]
    assert (drawn[::8, ::8] == rgb).all() and (drawn[7::8, 7::8] == rgb).all()


# pictures


def test_an_overlay_has_the_photos_size_and_leaves_it_where_relevance_is_zero():
    photo = np.random.default_rng(1).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    values = np.zeros((90, 120))
    values[:45] = 1.0
    drawn = np.asarray(overlay(values, photo)).astype(int)
    grey = np.asarray(Image.fromarray(photo).convert("L")).astype(int)
    assert drawn.shape == photo.shape
    assert (drawn[45:] == grey[45:, :, None]).all()
    assert (drawn[:45, :, 0] > drawn[:45, :, 2]).all()
    assert drawn[:45, :, 2].std() > 5  # the photo shows through


@pytest.mark.parametrize("shape", [(9, 8), (9, 8, 1), (9, 8, 3), (9, 8, 4)])
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_photos_of_any_layout_become_rgb(shape, kind):
    array = (np.random.default_rng(0).random(shape) * (255 if kind == np.uint8 else 1)).astype(kind)
    image = as_photo(array)
    assert image.mode == "RGB" and image.size == (8, 9)


def test_normalised_photos_are_stretched_and_wrong_ones_refused():
    assert np.asarray(as_photo(random_map((9, 9)))).max() == 255
    assert as_photo(np.full((3, 3), np.nan)).size == (3, 3)
    with pytest.raises(InputError):
        as_photo(np.zeros((3, 9, 9)))


def test_a_grid_has_a_column_for_every_method_and_a_row_for_every_target():
    photo = np.zeros((80, 80), np.uint8)
    one = grid([panel(photo=photo)])
    wide = grid([panel(name, photo=photo) for name in ("lrp", "gradient", "saliency")])
    high = grid([panel(target=t, photo=photo) for t in (1, 2, 3)])
    column = wide.width - grid([panel(name, photo=photo) for name in ("lrp", "gradient")]).width
    assert wide.width == one.width + 2 * column and wide.height == one.height
    assert high.width == one.width and high.height > 2.5 * one.height


def test_a_grid_draws_every_tile_at_its_place():
    flat = {"up": 1.0, "down": -1.0, "none": 0.0}
    drawn = np.asarray(grid([panel(name, values=np.full((56, 56), value)) for name, value in flat.items()], side=224))
    tiles = {name: tuple(map(int, lut("bwr")[CENTRE + 127 * int(value)])) for name, value in flat.items()}
    counts = [int((drawn == tiles[name]).all(-1).sum()) for name in ("up", "down")]
    assert all(count > 0.9 * 224 * 224 for count in counts)
    left = [np.flatnonzero((drawn == tiles[name]).all(-1).sum(0) > 150).min() for name in ("up", "down")]
    assert left[0] + 224 <= left[1]


def test_long_names_do_not_widen_or_overlap_a_grid():
    short, long = (
        grid([panel(), panel("b")]),
        grid([panel(target_name="dog " * 99), panel("b", target_name="cat" * 99)]),
    )
    assert short.width == long.width


def test_a_grid_with_a_hole_two_samples_and_no_photo_is_drawn():
    holes = [panel("a", 1, sample="x"), panel("b", 1, sample="x"), panel("a", 1, sample="y")]
    assert grid(holes).size[0] > 400
    assert grid(holes, overlaid=True, title="no photo").size[0] > 400
    with pytest.raises(InputError):
        grid([])
    with pytest.raises(InputError):
        grid([panel(), panel()])


def test_a_feature_sheet_has_at_most_64_near_square_tiles():
    sheet = features(np.abs(random_map((300, 14, 14))), "layer1")
    few = features(np.abs(random_map((9, 14, 14))))
    assert 0.6 < sheet.width / sheet.height < 1.4
    assert few.height < sheet.height
    assert features(random_map((1, 16, 12, 12))).width > 100
    assert features(np.full((3, 4, 4), np.nan)).width > 100
    assert features(np.zeros((3, 4, 4))).width > 100


def test_a_feature_sheet_shows_the_channels_of_largest_mean():
    activation = np.zeros((70, 8, 8))
    activation[69] = 1.0
    top = np.asarray(features(activation, top=1))
    assert (top == lut("viridis")[255]).all(-1).sum() >= 96 * 96


def test_activations_without_space_become_bars():
    assert features(random_map((1, 512, 1, 1)), top=5).height < features(random_map(512), top=30).height
    with pytest.raises(InputError):
        features(np.zeros((2, 3, 4, 4)))


def red_and_blue(image):
    rgb = np.asarray(image).astype(int)
    return ((rgb[..., 0] > rgb[..., 2] + 90).sum(), (rgb[..., 2] > rgb[..., 0] + 90).sum())


def test_bars_are_as_long_as_their_values_and_signed():
    red, blue = red_and_blue(bars(np.array([2.0, -1.0])))
    assert red == pytest.approx(2 * blue, rel=0.05)
    assert red_and_blue(bars(np.array([1.0, 3.0])))[1] == 0


def test_bars_show_the_strongest_and_never_hide_a_nan():
    values = random_map(100)
    assert bars(values).height == bars(values[:40]).height
    values[77] = np.nan
    assert pixels(bars(values, top=3)) >= GREYS
    assert bars(np.zeros(1)).width > 100
    with pytest.raises(InputError):
        bars(values, names=["a"])
    with pytest.raises(InputError):
        bars(np.zeros((3, 3)))


@pytest.mark.parametrize("shape", [(1,), (7,), (3000,), (1, 50), (20, 5), (5, 700)])
def test_sequences_of_any_length_are_drawn_within_the_page(shape):
    image = strip(random_map(shape))
    assert image.width == 752 and image.height < 900


def test_tokens_stay_in_the_page_and_must_fit_the_positions():
    words = ["tokens", "are", "", "x" * 300, "<b>", "中文"] * 20
    assert strip(random_map(120), words).width == 752
    assert pixels(strip(np.array([1.0, np.nan]), ["a", "b"])) & GREYS
    with pytest.raises(InputError):
        strip(random_map(3), ["a"])


# the report


def report(**more):
    panels = [
        panel(photo=random_map((80, 80, 3)), notes=["box fell back"], where={"input": 6.9, "bias": 0.2}),
        panel("saliency", values=np.abs(random_map((28, 28))), signed=False),
        panel("shapley", values=random_map(12), kind="features", names=[f"f{i}" for i in range(12)]),
        panel("gradient", values=random_map(3), kind="tokens", names=["a", "b", "c"]),
        panel("broken", values=np.full((8, 8), np.nan)),
    ]
    given = {
        "title": "model explained",
        "facts": {"file": "model.onnx", "opset": 18},
        "classes": [ClassScore(281, "tabby", 7.1, 0.4), ClassScore(282, "tiger", 3.0)],
        "panels": panels,
        "grid_png": png(grid(panels[:2])),
        "recipe": {"method": "lrp", "epsilon": 1e-6},
        "provenance": {"version": "0.1"},
    }
    return Report(**(given | more))


class Links(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.sources = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]


def test_a_report_stands_alone():
    text = html(report())
    page = Links(text)
    assert not re.search(r"https?://|url\(|@import", text)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert len(page.sources) == 1 + 5 + 1  # the grid, a picture each, one overlay
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)


def test_a_report_says_what_it_was_given():
    text = html(report(notes=["stepped back over Softmax"]))
    for expected in (
        "model explained",
        "tabby",
        "stepped back over Softmax",
        "box fell back",
        "64 of 64 values",
        "bias",
    ):
        assert expected in text
    assert "prefers-color-scheme: dark" in text and "<details" in text


def test_a_report_escapes_everything():
    evil = "<script>alert('x')</script>"
    text = html(
        report(
            title=evil,
            facts={evil: evil},
            notes=[evil],
            classes=[ClassScore(evil, evil, 1.0, sample=evil)],
            panels=[panel(evil, evil, target_name=evil, sample=evil, predicted=evil, notes=[evil], where={evil: 1.0})],
            recipe={evil: evil},
            provenance={evil: evil},
        )
    )
    assert "<script" not in text and text.count("&lt;script&gt;") >= 12


def test_a_report_of_nothing_is_still_a_page():
    text = html(Report("empty", {}, [], []))
    assert "<title>empty</title>" in text and "<img" not in text


def test_every_kind_of_panel_is_a_png():
    for one in report().panels:
        assert Image.open(io.BytesIO(png(picture(one)))).size[0] > 100


# files


@pytest.mark.parametrize(
    "name, safe",
    [("/conv1/Conv:0", "_conv1_Conv_0"), ("a-b_c.d", "a-b_c.d"), ("..", "__"), ("", "_"), ("é ü", "___")],
)
def test_names_become_safe(name, safe):
    assert safe_name(name) == safe
    assert safe_name(safe) == safe


def test_long_names_are_cut_and_stay_different():
    a, b = safe_name("x" * 300 + "a"), safe_name("x" * 300 + "b")
    assert a != b and len(a) <= 200 and safe_name(a) == a


def test_a_folder_gets_all_files_at_the_end(tmp_path):
    with OutputFolder(tmp_path / "new" / "out") as out:
        path = out.write("a.txt", "é")
        np.save(out.new("b.npy"), np.arange(3))
        assert not path.exists()
    assert path.read_text("utf-8") == "é"
    assert sorted(os.listdir(tmp_path / "new" / "out")) == ["a.txt", "b.npy"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
def test_a_failed_run_leaves_nothing_and_spoils_nothing(tmp_path, error):
    (tmp_path / "old.txt").write_text("old")
    expected = InputError if error is OSError else error
    with pytest.raises(expected), OutputFolder(tmp_path) as out:
        out.write("old.txt", "new")
        out.write("fresh.txt", "new")
        raise error("stop")
    assert os.listdir(tmp_path) == ["old.txt"] and (tmp_path / "old.txt").read_text() == "old"
    with pytest.raises(expected), OutputFolder(tmp_path / "a" / "b") as out:
        out.write("fresh.txt", "new")
        raise error("stop")
    assert os.listdir(tmp_path) == ["old.txt"]


def test_a_missing_input_is_not_called_an_unwritable_folder(tmp_path):
    with pytest.raises(InputError, match=r"cat\.png: No such file"), OutputFolder(tmp_path / "out"):
        (tmp_path / "cat.png").read_bytes()
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_one_clear_line_and_leaves_nothing(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left on device") as caught, OutputFolder(tmp_path / "out") as out:
        out.write("a.txt", "x")
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_a_failing_rename_removes_what_was_new(tmp_path, monkeypatch):
    real, calls = os.replace, []

    def second_fails(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError(5, "Input/output error")
        real(source, target)

    monkeypatch.setattr(os, "replace", second_fails)
    with pytest.raises(InputError, match="Input/output"), OutputFolder(tmp_path) as out:
        out.write("a.txt", "x")
        out.write("b.txt", "x")
    assert os.listdir(tmp_path) == []


def test_unusable_folders_and_names_are_refused_up_front(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError), OutputFolder(tmp_path / "file"):
        pytest.fail("must not get here")
    with pytest.raises(InputError), OutputFolder(tmp_path / "file" / "below"):
        pytest.fail("must not get here")
    (tmp_path / "sub").mkdir()
    for name in ("../a", "a/b", "..", "sub"):
        with pytest.raises(InputError), OutputFolder(tmp_path) as out:
            out.write(name, "x")
    with pytest.raises(InputError, match="two results"), OutputFolder(tmp_path) as out:
        out.write("a", "x")
        out.write("a", "y")
    assert sorted(os.listdir(tmp_path)) == ["file", "sub"]


def test_a_read_only_folder_is_refused_up_front(tmp_path, monkeypatch):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)  # chmod does not stop the superuser
    with pytest.raises(InputError, match="Permission denied"), OutputFolder(tmp_path / "a" / "b"):
        pytest.fail("must not get here")
    assert os.listdir(tmp_path) == []


def test_rendering_leaves_the_callers_arrays_alone():
    values, photo = random_map((70, 70)), random_map((70, 70, 3))
    kept = values.copy(), photo.copy()
    overlay(values, photo)
    heatmap(values)
    assert (values == kept[0]).all() and (photo == kept[1]).all()


def test_rendering_needs_no_display_and_no_onnx():
    unwanted = {"matplotlib.pyplot", "tkinter", "onnx", "onnxruntime"}
    code = f"import sys, onnxplain.render; print({unwanted} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
