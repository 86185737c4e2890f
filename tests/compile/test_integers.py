"""Relevance of tokens, categories and bytes: where integers become floats, and through the arithmetic before that."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from nets import compiled, net, normal, one_hot

from onnxplain import Explainer
from onnxplain.errors import UnsupportedOp

T = np.array([[1, 3, 0, 2], [4, 4, 1, 0]])
WORDS, V = normal(6, 3, seed=1), normal(3, 4, seed=2)
END = "a = ReduceMean <keepdims = 0> (s, one) y = MatMul (a, v)"
FORMS = {
    "look-up": "s = Gather (words, t)",
    "look-up of a shifted number": "u = Add (t, one) o = Sub (u, one) s = Gather (words, o)",
    "look-up through a table of numbers": "u = Gather (order, t) s = Gather (turned, u)",
    "look-up along the last axis": "c = Gather <axis = 1> (columns, t) s = Transpose <perm = [1, 2, 0]> (c)",
    "one-hot by Equal": "l = Unsqueeze (t, last) e = Equal (l, range) f = Cast <to = 1> (e) s = MatMul (f, words)",
    "one-hot by OneHot": "f = OneHot (t, six, offon) s = MatMul (f, words)",
    "one-hot along axis 1": """
        o = OneHot <axis = 1> (t, six, offon) f = Transpose <perm = [0, 2, 1]> (o) s = MatMul (f, words)""",
}


def tokens(form: str, **more: np.ndarray) -> onnx.ModelProto:
    order = np.array([2, 0, 1, 5, 3, 4])
    return net(
        f"g (int64[N, 4] t) => (float[N, 4] y) {{ {form} {END} }}",
        words=WORDS,
        v=V,
        one=np.array([1]),
        last=np.array([-1]),
        order=order,
        turned=WORDS[np.argsort(order)],
        columns=WORDS.T.copy(),
        range=np.arange(6),
        six=np.array(6),
        offon=np.array([0, 1], np.float32),
        **more,
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", ["gradient", "gradient_x_input", "lrp"])
def test_a_token_has_the_relevance_of_its_embedding_however_it_is_looked_up(form, method, tmp_path):
    options = {"composite": "epsilon"} if method == "lrp" else {}
    seed = one_hot((2, 4), 1, 1)
    found = compiled(tokens(FORMS[form]), tmp_path, method, **options).run(t=T, seed=seed)
    expected = WORDS[T] @ V[:, 1] / 4  # gradient times embedding, summed over the features
    np.testing.assert_allclose(found["t.relevance"], expected, rtol=1e-3, atol=1e-5)  # float32; LRP's epsilon


def test_bytes_are_attributed_through_their_cast(tmp_path):
    text = "g (uint8[N, 4] t) => (float[N, 4] y) { f = Cast <to = 1> (t) y = MatMul (f, w) }"
    w = normal(4, 4)
    found = compiled(net(text, w=w), tmp_path, "gradient_x_input").run(t=T.astype(np.uint8), seed=one_hot((2, 4), 1, 1))
    np.testing.assert_allclose(found["t.relevance"], T * w[:, 1], rtol=1e-5)


def test_a_mask_compared_with_one_token_is_no_code(tmp_path):
    """ids == padding is a condition: relevance comes by the look-up alone."""
    mask = "p = Equal (t, zero) k = Cast <to = 1> (p) l = Unsqueeze (k, last) m = Mul (l, minus)"
    numbers = {"zero": np.array(0), "minus": np.full((), -3, np.float32)}
    model = tokens(f"w = Gather (words, t) {mask} s = Add (w, m)", **numbers)
    found = compiled(model, tmp_path, "gradient").run(t=T, seed=one_hot((2, 4), 1, 1))["t.relevance"]
    np.testing.assert_allclose(found, WORDS[T] @ V[:, 1] / 4, rtol=1e-4, atol=1e-6)


POSITIONS = """g (int64[N, 4] t, int64[N, 4] k) => (float[N, 4] y) {
    c = CumSum (k, axis) m = Mul (c, k) p = Gather (places, m) w = Gather (words, t) s = Add (w, p)
    a = ReduceMean <keepdims = 0> (s, one) y = MatMul (a, v)
}"""


def test_positions_counted_from_a_mask_are_no_tokens_of_it(tmp_path):
    """By default the mask is left out and it is said; asked for, it is refused; the tokens have their relevance."""
    numbers = {"one": np.array([1]), "axis": np.array(1)}
    model = net(POSITIONS, words=WORDS, places=normal(6, 3, seed=5), v=V, **numbers)
    file = compiled(model, tmp_path)
    assert "k.relevance" not in file.outputs
    assert any(note.startswith("no relevance for k: the integers") for note in file.explainer.notes)
    found = file.run(t=T, k=np.ones_like(T), seed=one_hot((2, 4), 1, 1))["t.relevance"]
    np.testing.assert_allclose(found, WORDS[T] @ V[:, 1] / 4, rtol=1e-4, atol=1e-6)
    with pytest.raises(UnsupportedOp, match=r"integers .* (mixed|combined) at "):
        Explainer(tmp_path / "source.onnx", "gradient", attribute_to="k")
