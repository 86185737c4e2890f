"""Tokens that are patches of a picture: the grid is the one in which pixels reach tokens, or there is none."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from nets import net, normal, repository, sample

from onnxplain import Explainer

ROWS, COLUMNS = 3, 4  # patches of 2 × 2 pixels
FLAT = "v = Reshape (c, flat) p = Transpose <perm = [0, 2, 1]> (v)"
CLASS = "cls = Expand (token, one_each)"
TOKENS = {  # nodes from the convolution's answer c to tokens t, and the places of patches among them
    "alone": (f"{FLAT} t = Add (p, pos)", 12, 0),
    "class token in front": (f"{FLAT} {CLASS} j = Concat <axis = 1> (cls, p) t = Add (j, pos)", 13, 1),
    "class token behind": (f"{FLAT} {CLASS} j = Concat <axis = 1> (p, cls) t = Add (j, pos)", 13, 0),
    "two tokens in turn": (
        f"{FLAT} {CLASS} i = Concat <axis = -2> (cls, p) j = Concat <axis = 1> (cls, i) t = Add (j, pos)", 14, 2
    ),
    "channels last": ("h = Transpose <perm = [0, 2, 3, 1]> (c) v = Reshape (h, tokens) t = Add (v, pos)", 12, 0),
    "joined before they are turned": (
        "v = Reshape (c, flat) k = Expand (column, one_each) i = Concat <axis = 2> (k, v) "
        "j = Transpose <perm = [0, 2, 1]> (i) t = Add (j, pos)", 13, 1
    ),
    "of attention alone": (
        f"{FLAT} q = Transpose <perm = [0, 2, 1]> (p) a = MatMul (p, q) s = Softmax (a) b = MatMul (s, p) "
        "t = Add (b, pos)", 12, 0,
    ),
    "beside attention": (
        f"{FLAT} q = Transpose <perm = [0, 2, 1]> (p) a = MatMul (p, q) s = Softmax (a) b = MatMul (s, p) "
        "r = Add (p, b) n = LayerNormalization <axis = -1> (r, scale) t = Add (n, pos)", 12, 0
    ),
}  # fmt: skip
UNKNOWN = {  # tokens that are patches in another order, or no single ones
    "in another order": f"{FLAT} o = Gather <axis = 1> (p, order) t = Add (o, pos)",
    "elements mixed": "v = Reshape (c, tokens) t = Add (v, pos)",
}


def vision(nodes: str, tokens: int) -> onnx.ModelProto:
    """A convolution into patches, tokens, and a head that reads them all."""
    return net(
        f"""g (float[N, 2, 6, 8] x) => (float[N, 3] y) {{
            c = Conv <strides = [2, 2]> (x, w)
            shape = Shape (x)
            n = Slice (shape, zero, unit)
            one_each = Concat <axis = 0> (n, unit, unit)
            {nodes}
            g = Gelu <approximate = "none"> (t)
            m = ReduceMean <keepdims = 0> (g, unit)
            y = MatMul (m, head)
        }}""".replace(" n = LayerN", " ln = LayerN").replace("Add (n, pos)", "Add (ln, pos)"),
        opset=20,
        w=normal(5, 2, 2, 2, seed=1), pos=normal(1, tokens, 5, seed=2), head=normal(5, 3, seed=3),
        token=normal(1, 1, 5, seed=4), column=normal(1, 5, 1, seed=4), scale=np.ones(5, np.float32),
        flat=np.array([0, 5, 12]), tokens=np.array([0, 12, 5]), order=np.arange(12)[::-1].copy(),
        zero=np.array([0]), unit=np.array([1]),
    )  # fmt: skip


def reached(model: onnx.ModelProto, folder, row: int, column: int, tensor: str) -> set[int]:
    """Tokens of `tensor` that change where one pixel of a patch does."""
    path = folder / "m.onnx"
    onnx.save(model, path)
    explainer = Explainer(path, "gradient", keep=tensor)
    x = normal(1, 2, 6, 8)
    other = x.copy()
    other[0, 1, 2 * row + 1, 2 * column] += 1
    before, after = (explainer.explain(each, "0").kept[tensor][0] for each in (x, other))
    return set(np.flatnonzero(np.abs(before - after).sum(-1)).tolist())


@pytest.mark.parametrize("name", TOKENS)
def test_every_patch_is_where_the_grid_says(name, tmp_path):
    nodes, tokens, first = TOKENS[name]
    onnx.save(vision(nodes, tokens), tmp_path / "m.onnx")
    found = Explainer(tmp_path / "m.onnx", "grad_cam", attribute_to="t").explain(normal(2, 2, 6, 8), "1")
    assert found.provenance["maps"]["t"] == {
        "channels": 2, "patches": {"first": first, "rows": ROWS, "columns": COLUMNS}
    }  # fmt: skip
    if "attention" not in name:  # which lets every pixel reach every token
        for row, column in ((0, 0), (1, 2), (2, 3)):
            place = first + row * COLUMNS + column
            assert reached(vision(nodes, tokens), tmp_path, row, column, "t") == {place}
    shares = found.relevance[1, :, 0][first : first + 12].reshape(ROWS, COLUMNS)
    np.testing.assert_array_equal(found.row_map(1), shares)
    assert found.map.shape == (2, ROWS, COLUMNS)


@pytest.mark.parametrize("name", UNKNOWN)
def test_there_is_no_grid_where_the_order_is_not_known(name, tmp_path):
    onnx.save(vision(UNKNOWN[name], 12), tmp_path / "m.onnx")
    found = Explainer(tmp_path / "m.onnx", "grad_cam", attribute_to="t").explain(normal(1, 2, 6, 8), "1")
    assert found.provenance["maps"]["t"] == {"channels": 2}
    assert found.panels()[0].kind != "image" or found.panels()[0].map.shape == (12, 1)


def test_a_vision_transformers_tokens_are_drawn_over_the_picture_and_the_class_token_is_told_of():
    explainer = Explainer(repository("digits_vit"), "hires_cam")
    found = explainer.explain(sample("digits_vit"), "predicted")
    (panel,) = found.panels()[:1]
    assert (panel.kind, panel.map.shape) == ("image", (7, 7)) and panel.photo is not None
    (note,) = panel.notes
    assert f"{float(found.row(0)[0, 0]):.4g} of {float(found.row(0).sum()):.4g}" in note
    box = found.boxes()["layer_norm_4"][0]
    assert (box.width, box.height) == (28, 28)
