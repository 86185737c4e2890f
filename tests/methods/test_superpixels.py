"""Superpixels: regions of a picture as feature groups."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from nets import normal

from onnxplain.errors import UsageError
from onnxplain.methods.feature_groups import partition
from onnxplain.methods.tensors import Tensors

COLOURS = np.array([[0.9, -0.4, 0.1], [-0.7, 0.8, -0.2], [0.2, 0.1, -0.9], [-0.9, -0.9, 0.6]])


def quarters(side: int = 32) -> np.ndarray:
    """A picture of four fields of one colour each, (1, 3, side, side), in model units."""
    fields = COLOURS.reshape(2, 2, 3).transpose(2, 0, 1)
    return np.kron(fields, np.ones((side // 2, side // 2)))[None].astype(np.float32)


@pytest.mark.parametrize("groups, patch", [("superpixels", 8), ("superpixels", None), ("quickshift", None)])
@pytest.mark.parametrize("last", [False, True])
def test_no_superpixel_goes_over_a_border_between_colours(groups, patch, last):
    pytest.importorskip("skimage")
    x = quarters()
    x = np.moveaxis(x, 1, 3) if last else x
    found = partition(Tensors({"x": x}), groups, patch, 4)
    numbers = found.numbers["x"].squeeze()
    assert found.sizes.sum() == x.size and found.count >= 4
    assert set(np.unique(numbers)) == set(range(found.count))
    fields = np.kron(np.arange(4).reshape(2, 2), np.ones((16, 16), int))
    assert all(len(np.unique(fields[numbers == n])) == 1 for n in range(found.count))


def test_superpixels_are_about_as_many_as_patches():
    pytest.importorskip("skimage")
    x = Tensors({"x": normal(1, 1, 64, 64) * 0.01 + np.linspace(0, 1, 64, dtype=np.float32)})
    assert 10 <= partition(x, "superpixels", 16, 7).count <= 16
    assert 30 <= partition(x, "superpixels", None, 7).count <= 49


def test_superpixels_are_of_pictures_and_need_scikit_image(monkeypatch):
    x = Tensors({"x": quarters()})
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(UsageError, match=r"not installed: pip install 'onnxplain\[superpixels\]'"):
        partition(x, "superpixels", None, 7)
    with pytest.raises(UsageError, match=r"regions of a picture, and x \[1, 5\] is none"):
        partition(Tensors({"x": normal(1, 5)}), "quickshift", None, 7)
    with pytest.raises(UsageError, match="give one of the two"):
        partition(x, "quickshift", 3, 7)
