"""The ledger: for every node, what came in is what went on plus what was absorbed."""

from __future__ import annotations

import numpy as np
import pytest
from nets import compiled, net, normal, one_hot, relu_net, widened
from support import evaluate

from onnxplain.composites import COMPOSITES

LRP = [name for name in COMPOSITES if COMPOSITES[name].make(None).relevance]
BOUNDS = ([-4.0, -4.0], [4.0, 4.0])
COLUMNS = ("in", "out", "bias", "stabiliser", "padding", "rule")
X, SEED = normal(2, 2, 6, 6, dtype=np.float64), one_hot((2, 4), 1, 3, dtype=np.float64)


def residual() -> object:
    """Two branches of convolutions that meet in an Add and a Concat, padded, with an AveragePool and a Clip."""
    return net(
        """g (float[N, 2, 6, 6] x) => (float[N, 4] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
            b = Relu (a)
            c = Conv <pads = [2, 2, 2, 2], dilations = [2, 2]> (b, w2, b2)
            d = Add (b, c)
            e = Relu (d)
            f = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (e)
            h = Concat <axis = 1> (f, f)
            i = GlobalAveragePool (h)
            j = Flatten (i)
            y = Gemm <transB = 1> (j, w3, b3)
        }""",
        w1=normal(3, 2, 3, 3, seed=1),
        b1=normal(3, seed=2),
        w2=normal(3, 3, 3, 3, seed=3),
        b2=normal(3, seed=4),
        w3=normal(4, 6, seed=5),
        b3=normal(4, seed=6),
    )


def ledger(model, folder, method="lrp", **options):
    file = compiled(model, folder, method, ledger=True, **options)
    seed = next(name for name in file.inputs if name.endswith(".seed"))
    return file, evaluate(widened(file.proto), {"x": X, seed: SEED})


def closes(rows: np.ndarray, names: list[str]) -> None:
    """rows (streams, nodes, 6): in = out + bias + stabiliser + padding + rule, to 1e-6 of what went through."""
    gap = np.abs(rows[..., 0] - rows[..., 1:].sum(-1))
    scale = np.maximum(np.abs(rows).max(-1), 1e-12)
    worst = np.unravel_index((gap / scale).argmax(), gap.shape)
    assert (gap <= 1e-6 * scale).all(), f"{names[worst[1]]}: {dict(zip(COLUMNS, rows[worst], strict=True))}"


@pytest.mark.parametrize("bounds", [None, BOUNDS], ids=["no bounds", "bounds"])
@pytest.mark.parametrize("composite", LRP)
@pytest.mark.parametrize("make", [relu_net, residual], ids=["relu_net", "residual"])
def test_every_row_closes(make, composite, bounds, tmp_path):
    if bounds and composite not in ("epsilon_gamma_box", "deep_taylor", "clrp"):
        pytest.skip("takes no bounds")
    file, found = ledger(make(), tmp_path, composite=composite, bounds=bounds)
    names = file.about["ledger"]["rows"]
    assert found["onnxplain.ledger"].shape == (2, len(names), 6) and found["onnxplain.ledger"].dtype == np.float64
    assert tuple(file.about["ledger"]["columns"]) == COLUMNS
    closes(found["onnxplain.ledger"], names)


@pytest.mark.parametrize("composite", LRP)
def test_the_books_agree_with_what_comes_out(composite, tmp_path):
    file, found = ledger(relu_net(), tmp_path, composite=composite)
    rows, names = found["onnxplain.ledger"], file.about["ledger"]["rows"]
    assert names[0].startswith("Gemm") and names[-1].startswith("Conv")
    np.testing.assert_allclose(rows[:, 0, 0], (found["logits"] * SEED).sum(1), rtol=1e-9)
    np.testing.assert_allclose(rows[:, -1, 1], found["x.relevance"].sum((1, 2, 3)), rtol=1e-9)
    absorbed = rows[:, :, 2:].sum((1, 2))
    np.testing.assert_allclose(rows[:, 0, 0], rows[:, -1, 1] + absorbed, rtol=1e-6)


def test_without_bias_and_padding_nothing_is_absorbed(tmp_path):
    _, found = ledger(relu_net(bias=False), tmp_path, composite="epsilon")
    np.testing.assert_allclose(found["onnxplain.ledger"][..., [2, 4]], 0, atol=1e-12)


def test_books_are_kept_per_stream(tmp_path):
    model = relu_net()
    file, found = ledger(model, tmp_path)
    for row in range(2):
        alone = evaluate(widened(file.proto), {"x": X[row : row + 1], "logits.seed": SEED[row : row + 1]})
        np.testing.assert_allclose(alone["onnxplain.ledger"][0], found["onnxplain.ledger"][row], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", ["clrp1", "clrp2"])
@pytest.mark.parametrize("form", ["paper", "code"])
def test_contrastive_methods_keep_books_before_the_finish(method, form, tmp_path):
    file, found = ledger(relu_net(), tmp_path, method, form=form)
    rows = found["onnxplain.ledger"]
    assert rows.shape == (2, len(file.about["ledger"]["rows"]), 6) and np.isfinite(rows).all()
    closes(rows, file.about["ledger"]["rows"])


def test_a_gradient_has_books_too(tmp_path):
    file, found = ledger(relu_net(), tmp_path, "gradient")
    assert found["onnxplain.ledger"].shape == (2, len(file.about["ledger"]["rows"]), 6)


def test_what_falls_on_padding_and_on_constants_is_booked(tmp_path):
    """A Pad with a value and a Concat with a constant take part in the next layer; their share is not the input's."""
    model = net(
        """g (float[N, 2, 6, 6] x) => (float[N, 4] y) {
            p = Pad (x, pads, half)
            c = Concat <axis = 1> (p, token)
            f = Flatten (c)
            y = Gemm <transB = 1> (f, w, b)
        }""",
        pads=np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        half=np.float32(0.5).reshape(()),
        token=normal(2, 1, 8, 8, seed=7),
        w=normal(4, 192, seed=8),
        b=normal(4, seed=9),
    )
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    file, found = ledger(model, tmp_path, composite="epsilon")
    rows, names = found["onnxplain.ledger"], file.about["ledger"]["rows"]
    closes(rows, names)
    books = {name.split("_")[0]: rows.sum(0)[i] for i, name in enumerate(names)}
    assert books["Pad"][4] != 0 and books["Pad"][2] == 0  # padding
    assert books["Concat"][2] != 0 and books["Concat"][4] == 0  # a constant beside the data counts as bias


def attention(mask: str) -> object:
    """Tokens, a class token, attention with an additive mask, a gated product, a mean."""
    return net(
        f"""g (int64[N, 4] t, bool[N, 5] keep) => (float[N, 4] y) {{
            e = Gather (words, t)
            n = Shape <start = 0, end = 1> (t)
            s = Concat <axis = 0> (n, oneone)
            c = Expand (token, s)
            h = Concat <axis = 1> (c, e)
            p = Add (h, places)
            q = MatMul (p, wq)
            k = MatMul (p, wk)
            v = MatMul (p, wv)
            kt = Transpose <perm = [0, 2, 1]> (k)
            a = MatMul (q, kt)
            {mask}
            w = Softmax <axis = -1> (m)
            o = MatMul (w, v)
            r = Add (o, p)
            g1 = Sigmoid (r)
            z = Mul (r, g1)
            l = LayerNormalization <axis = -1> (z, scale, shift)
            u = ReduceMean <keepdims = 0> (l, one)
            y = MatMul (u, last)
        }}""",
        words=normal(6, 3, seed=1),
        token=normal(1, 1, 3, seed=2),
        places=normal(1, 5, 3, seed=3),
        wq=normal(3, 3, seed=4),
        wk=normal(3, 3, seed=5),
        wv=normal(3, 3, seed=6),
        scale=normal(3, seed=7),
        shift=normal(3, seed=8),
        last=normal(3, 4, seed=9),
        one=np.array([1]),
        oneone=np.array([1, 3]),
        lowest=np.full((), -np.inf, np.float32),
        zero=np.zeros((), np.float32),
    )


MASKS = {
    "by Add": "b = Where (keep, zero, lowest) d = Unsqueeze (b, one) m = Add (a, d)",
    "by Where": "d = Unsqueeze (keep, one) m = Where (d, a, lowest)",
}


@pytest.mark.parametrize("add", ["add_abs", "add_positive", "add_half", "norm"])
@pytest.mark.parametrize("mask", MASKS)
def test_every_row_of_a_transformer_closes(mask, add, tmp_path):
    """Softmax, tokens, a class token, products, -inf: what is lost is in a named column, and nothing is NaN."""
    rules = [f"type:Add={add}"] if add != "add_abs" else []
    file = compiled(attention(MASKS[mask]), tmp_path, "lrp", composite="epsilon", ledger=True, rules=rules)
    names = file.about["ledger"]["rows"]
    feeds = {"t": np.array([[1, 3, 0, 2], [4, 4, 1, 0]]), "keep": np.ones((2, 5), bool)}
    feeds["keep"][:, 3] = False
    found = evaluate(widened(file.proto), {**feeds, "y.seed": SEED})
    assert np.isfinite(found["t.relevance"]).all() and np.isfinite(found["onnxplain.ledger"]).all()
    closes(found["onnxplain.ledger"], names)
    # of what reaches the tokens, the last row tells; the class token's part is booked as bias where it is joined
    joined = found["onnxplain.ledger"][:, names.index("Concat_4")]
    np.testing.assert_allclose(joined[:, 1], found["t.relevance"].sum(1), rtol=1e-9)
    assert (joined[:, COLUMNS.index("bias")] != 0).all()


@pytest.mark.parametrize("add", ["add_abs", "norm"])
def test_a_row_closes_though_only_one_of_two_inputs_is_asked_for(add, tmp_path):
    """What a rule gives to the other input is booked as passed on."""
    model = net(
        "g (float[N, 3] a, float[N, 3] b) => (float[N, 4] y) { s = Add (a, b) p = Mul (s, b) y = MatMul (p, w) }",
        w=normal(3, 4),
    )
    file = compiled(
        model, tmp_path, "lrp", composite="epsilon", ledger=True, attribute_to="a", rules=[f"type:Add={add}"]
    )
    feeds = {"a": normal(2, 3, seed=1, dtype=np.float64), "b": normal(2, 3, seed=2, dtype=np.float64), "y.seed": SEED}
    found = evaluate(widened(file.proto), feeds)
    closes(found["onnxplain.ledger"], file.about["ledger"]["rows"])
    both = compiled(model, tmp_path, "lrp", composite="epsilon", rules=[f"type:Add={add}"])
    whole = evaluate(widened(both.proto), feeds)
    np.testing.assert_allclose(found["a.relevance"], whole["a.relevance"], rtol=1e-12)
