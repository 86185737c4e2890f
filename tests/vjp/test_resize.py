"""Resize in models of open height and width: the derivative is the adjoint of what onnxruntime did at run time."""

from __future__ import annotations

import numpy as np
import pytest
from nets import compiled, net, normal

FORMS = {  # of what the length after the Resize is made
    "sizes of another tensor": ("", "sizes = Concat <axis = 0> (nc, hw)", ", , sizes"),
    "sizes that are fixed": ("", "sizes = Concat <axis = 0> (nc, fixed)", ", , sizes"),
    "a scale that is no whole number": ("", "", ", scale"),
    "scales computed of shapes": (
        "",
        "a = Cast <to = 1> (hw) b = Cast <to = 1> (inner) c = Div (a, b) scales = Concat <axis = 0> (ones, c)",
        ", scales",
    ),
    "the aspect ratio kept": (', axes = [2, 3], keep_aspect_ratio_policy = "not_larger"', "", ", , hw"),
    "the aspect ratio kept and exceeded": (
        ', axes = [2, 3], keep_aspect_ratio_policy = "not_smaller"',
        "",
        ", , fixed",
    ),
}
MODES = [
    'mode = "linear"',
    'mode = "linear", coordinate_transformation_mode = "align_corners"',
    'mode = "linear", coordinate_transformation_mode = "pytorch_half_pixel"',
    'mode = "linear", antialias = 1',
    'mode = "cubic", coordinate_transformation_mode = "asymmetric", exclude_outside = 1, cubic_coeff_a = -0.5',
    'mode = "cubic", antialias = 1',
    'mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor"',
    'mode = "nearest", nearest_mode = "ceil"',
    'mode = "nearest"',
]


def resizing(form: str, mode: str, shape: str = "N, 2, H, W"):
    more, made, given = FORMS[form]
    return net(
        f"""g (float[{shape}] x) => (float[n, m, h, w] y) {{
            p = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (x, kernel)
            shape = Shape (p) nc = Slice (shape, zero, two) inner = Slice (shape, two, four)
            whole = Shape (x) hw = Slice (whole, two, four)
            {made}
            y = Resize <{mode}{more}> (p, {given}) }}""",
        kernel=normal(3, 2, 3, 3),
        zero=np.array([0]),
        two=np.array([2]),
        four=np.array([4]),
        fixed=np.array([11, 6]),
        ones=np.ones(2, np.float32),
        scale=np.array([1, 1, 1.6, 0.7], np.float32),
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("form", FORMS)
def test_open_sizes_have_their_adjoint(form, mode, tmp_path):
    """<g, f(x) - f(0)> = <vjp(g), x>, of one compiled file at several sizes; streams are free."""
    file = compiled(resizing(form, mode), tmp_path)
    for height, width in ((12, 9), (7, 14), (3, 4)):
        x = normal(2, 2, height, width)
        y = file.explainer.subject.forward({"x": x}, ["y"])["y"]
        zero = file.explainer.subject.forward({"x": 0 * x}, ["y"])["y"]
        seed = normal(*y.shape, seed=1)
        found = file.run(x=x, seed=seed)["x.relevance"].astype(np.float64)
        assert found.shape == x.shape
        left, right = float((seed.astype(np.float64) * (y - zero)).sum()), float((found * x).sum())
        assert left == pytest.approx(right, abs=1e-5 * float(np.abs(seed).sum() * np.abs(y).max()))  # float32


@pytest.mark.parametrize("form", ["sizes of another tensor", "sizes that are fixed", "a scale that is no whole number"])
def test_ten_seeds_over_one_row_of_open_size_equal_ten_runs(form, tmp_path):
    file = compiled(resizing(form, MODES[0]), tmp_path)
    assert file.about["streams"] != "exact"
    x = normal(1, 2, 8, 10)
    y = file.explainer.subject.forward({"x": x}, ["y"])["y"]
    seeds = normal(10, *y.shape[1:])
    together = file.run(x=x, seed=seeds)["x.relevance"]
    apart = np.concatenate([file.run(x=x, seed=seed[None])["x.relevance"] for seed in seeds])
    np.testing.assert_allclose(together, apart, rtol=1e-4, atol=1e-5)  # float32
