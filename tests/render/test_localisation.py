"""Laws of localisation boxes: which positions are one part, what a box holds, and where it is drawn."""

from itertools import pairwise

import numpy as np
import pytest

from onnxplain.errors import InputError
from onnxplain.localisation import LocalisationBox, components, localisation_box
from onnxplain.render import Panel, grid, over_photo, picture
from onnxplain.render.outline import LINE

SHAPES = [(1, 1), (1, 9), (9, 1), (5, 7), (30, 40)]


def flooded(mask):
    """Connected parts by flood fill, corners included: an independent form of `components`."""
    labels, found = np.full(mask.shape, -1), 0
    for start in zip(*np.nonzero(mask), strict=True):
        if labels[start] >= 0:
            continue
        labels[start], pending = found, [start]
        while pending:
            row, column = pending.pop()
            for near in [(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]:
                inside = 0 <= near[0] < mask.shape[0] and 0 <= near[1] < mask.shape[1]
                if inside and mask[near] and labels[near] < 0:
                    labels[near] = found
                    pending.append(near)
        found += 1
    return labels


def blob(centre, size=(64, 96), spread=9.0):
    rows, columns = np.mgrid[: size[0], : size[1]]
    return np.exp(-((rows - centre[0]) ** 2 + (columns - centre[1]) ** 2) / (2 * spread**2))


def corners(box):
    return (box.left, box.top, box.right, box.bottom)


def overlap(one, other):
    """Intersection over union of two boxes."""
    shared = [min(one[i + 2], other[i + 2]) - max(one[i], other[i]) for i in (0, 1)]
    both = max(0, shared[0]) * max(0, shared[1])
    area = [(b[2] - b[0]) * (b[3] - b[1]) for b in (one, other)]
    return both / (sum(area) - both)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [0.0, 0.1, 0.4, 0.7, 1.0])
def test_parts_are_those_of_a_flood_fill(shape, share):
    mask = np.random.default_rng(0).random(shape) < share
    np.testing.assert_array_equal(components(mask), flooded(mask))


def test_a_part_that_winds_through_the_whole_map_is_one():
    mask = np.zeros((65, 65), bool)
    mask[::2] = True
    mask[1::4, -1] = mask[3::4, 0] = True
    assert components(mask).max() == 0


def test_the_box_of_a_planted_blob_is_where_it_was_planted():
    reach = 9.0 * np.sqrt(2 * np.log(5))  # where exp(-r²/2s²) falls to a fifth
    expected = (40 - reach, 30 - reach, 40 + reach + 1, 30 + reach + 1)
    found = localisation_box(blob((30, 40)))
    assert overlap(corners(found), expected) > 0.9  # whole pixels at the edges
    assert (found.width, found.height) == (96, 64)


def test_the_largest_part_is_taken_and_of_equally_large_ones_the_heavier():
    values = np.zeros((6, 9))
    values[0, 0] = 9.0  # the highest
    values[2:4, 2:4] = 2.0
    values[4:6, 6:8] = 3.0
    assert corners(localisation_box(values)) == (6, 4, 8, 6)
    values[2, 4] = 2.0
    assert corners(localisation_box(values)) == (2, 2, 5, 4)


def test_the_box_does_not_depend_on_the_scale_and_turns_with_the_map():
    values = blob((20, 70))
    box = localisation_box(values)
    assert localisation_box(values * 1e-300) == localisation_box(values * 1e300) == box
    assert corners(localisation_box(values[:, ::-1])) == (96 - box.right, box.top, 96 - box.left, box.bottom)
    assert corners(localisation_box(values.T)) == (box.top, box.left, box.bottom, box.right)


def test_a_higher_threshold_never_enlarges_the_box_of_a_single_peak():
    boxes = [corners(localisation_box(blob((30, 40)), share)) for share in (0.1, 0.2, 0.5, 0.9, 1.0)]
    for larger, smaller in pairwise(np.array(boxes)):
        assert (larger[:2] <= smaller[:2]).all() and (larger[2:] >= smaller[2:]).all()
    assert boxes[-1] == (40, 30, 41, 31)


def test_of_a_signed_map_the_positive_part_counts():
    signed = blob((30, 20)) - 5 * blob((30, 75))
    assert localisation_box(signed) == localisation_box(np.maximum(signed, 0))
    assert localisation_box(signed).right < 60


def test_where_nothing_is_positive_there_is_no_box():
    assert localisation_box(np.zeros((4, 4))) is None
    assert localisation_box(-blob((30, 40))) is None
    assert localisation_box(np.full((4, 4), np.nan)) is None


def test_a_stretched_map_has_its_box_in_the_pictures_pixels():
    values = np.zeros((7, 7))
    values[3, 2] = 1.0
    box = localisation_box(values, size=(224, 112))
    centre = ((box.left + box.right) / 2, (box.top + box.bottom) / 2)
    assert (box.width, box.height) == (224, 112)
    assert np.allclose(centre, (2.5 * 32, 3.5 * 16), atol=1)  # pixels: the middle of that position


@pytest.mark.parametrize(
    "values, threshold, says",
    [(np.ones(3), 0.2, r"shape \[3\]"), (np.ones((0, 3)), 0.2, r"\[0, 3\]"), (np.ones((2, 2)), 0.0, "above 0"),
     (np.ones((2, 2)), 1.5, "not 1.5")],
)  # fmt: skip
def test_what_has_no_box_is_refused(values, threshold, says):
    with pytest.raises(InputError, match=says):
        localisation_box(values, threshold)


def test_a_box_lies_at_the_same_place_in_a_picture_of_any_size():
    assert LocalisationBox(2, 1, 4, 3, 8, 8).within((80, 160)) == (20, 20, 40, 60)


def test_a_box_is_drawn_on_the_map_the_overlay_and_the_grid():
    values, photo = blob((30, 40)), np.full((64, 96, 3), 128, np.uint8)
    plain = Panel("grad_cam", 1, "", 1.0, None, 1.0, values, False, photo=photo)
    boxed = Panel("grad_cam", 1, "", 1.0, None, 1.0, values, False, photo=photo, box=localisation_box(values))
    for draw in (picture, over_photo, lambda panel: grid([panel])):
        green = [(np.asarray(draw(panel).convert("RGB")) == LINE).all(-1).sum() for panel in (plain, boxed)]
        assert green[0] == 0 < green[1]
