"""Feature groups, windows, baselines and masks: what perturbation methods switch, and what to."""

from __future__ import annotations

import numpy as np
import pytest
from nets import normal

from onnxplain.errors import UsageError
from onnxplain.methods.feature_groups import partition, windows
from onnxplain.methods.masks import GridMasks
from onnxplain.methods.replacements import replacement_of
from onnxplain.methods.tensors import Tensors

SHAPES = {
    "a table": ((1, 7), None, 7),
    "a sequence": ((1, 12, 3), 5, 3),
    "channels before time": ((1, 2, 12), 4, 3),
    "a picture": ((1, 3, 10, 8), 4, 6),
    "a picture, channels last": ((1, 10, 8, 3), 4, 6),
    "a volume": ((1, 2, 4, 4, 4), 2, 8),
    "a patch of each axis": ((1, 3, 10, 8), [1, 0, 4], 6),
    "a number": ((1,), None, 1),
}


@pytest.mark.parametrize("case", SHAPES)
def test_feature_groups_are_a_partition(case):
    shape, patch, count = SHAPES[case]
    x = Tensors({"x": normal(*shape)})
    groups = partition(x, "auto", patch, 7)
    assert groups.count == count and groups.sizes.sum() == x["x"].size
    alone = groups.points(x, x * 0.0, np.eye(count, dtype=bool))["x"]
    assert alone.dtype == np.float32
    np.testing.assert_array_equal(alone.sum(0, keepdims=True), x["x"])
    np.testing.assert_array_equal((alone != 0).reshape(count, -1).sum(1), groups.sizes)
    values = np.arange(1.0, count + 1)
    np.testing.assert_allclose(groups.shared(values)["x"].sum(), values.sum(), rtol=1e-12)


def test_groups_go_over_all_inputs_and_may_be_named():
    x = Tensors({"a": normal(1, 4), "b": normal(1, 2, 6, 6)})
    assert partition(x, "auto", None, 3).count == 4 + 9
    assert partition(x, "elements", None, 3).count == 4 + 72 and partition(x, "inputs", None, 3).count == 2
    one_hot = partition(Tensors({"a": x["a"]}), [7, 7, 2, 7], None, 3)
    np.testing.assert_array_equal(one_hot.numbers["a"], [[1, 1, 0, 1]])
    with pytest.raises(UsageError, match=r"groups has 3 numbers.*a \[1, 4\]"):
        partition(x, [1, 2, 3], None, 3)
    with pytest.raises(UsageError, match="give one of the two"):
        partition(x, "elements", 3, 3)
    with pytest.raises(UsageError, match="no lengths of a patch"):
        partition(x, "auto", [3, 3], 3)


@pytest.mark.parametrize("side, length, stride, starts", [(10, 4, 2, 4), (10, 4, 3, 3), (10, 4, 4, 3), (3, 4, 2, 1)])
def test_windows_cover_every_element(side, length, stride, starts):
    found = list(windows((1, side), (length,), (stride,)))
    assert len(found) == starts and {n for (w,) in found for n in range(*w.indices(side))} == set(range(side))


def test_baselines_keep_what_they_say():
    x = Tensors({"x": normal(1, 3, 20, 20)})
    mean = replacement_of(None, x, "mean")["x"]
    np.testing.assert_allclose(mean[0, :, 5, 5], x["x"][0].mean((1, 2)), rtol=1e-5)
    per_channel = replacement_of(None, x, [1.0, 2.0, 3.0])["x"]
    np.testing.assert_array_equal(per_channel[0, :, 3, 4], [1, 2, 3])
    blurred = replacement_of(None, x, "blur")["x"]
    assert blurred.std() < 0.5 * x["x"].std() and blurred.dtype == np.float32
    np.testing.assert_allclose(replacement_of(None, x * 0.0 + 2.0, "blur")["x"], 2, rtol=1e-6)
    last = Tensors({"x": np.moveaxis(x["x"], 1, 3)})
    np.testing.assert_allclose(
        np.moveaxis(replacement_of(None, last, "blur")["x"], 3, 1), blurred, rtol=1e-5, atol=1e-6
    )
    with pytest.raises(UsageError, match="is a table"):
        replacement_of(None, Tensors({"x": normal(1, 3)}), "blur")
    with pytest.raises(UsageError, match=r"baseline has 2 numbers.* has 3"):
        replacement_of(None, x, [1.0, 2.0])


def test_masks_have_the_mean_of_their_probability_and_do_not_depend_on_pieces():
    shape = (1, 3, 30, 21)
    drawn = GridMasks(shape, 7, 0.3, [5]).draw(4000)
    assert drawn.shape == (4000, 1, 30, 21) and drawn.min() >= 0 and drawn.max() <= 1
    deviation = np.sqrt(0.3 * 0.7 / 4000)  # of a mean of ones and zeros; enlarged masks vary less
    np.testing.assert_allclose(drawn.mean(0), 0.3, atol=5 * deviation)
    pieces = GridMasks(shape, 7, 0.3, [5])
    np.testing.assert_array_equal(np.concatenate([pieces.draw(1), pieces.draw(32)]), drawn[:33])
    assert set(np.unique(GridMasks((1, 9), 7, 0.5, [0]).draw(20))) == {0.0, 1.0}  # columns are kept or not
