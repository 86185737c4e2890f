"""Who gets a share: what relevance can go on from. And what is known of a relevance is true."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from nets import compiled, net, normal, one_hot, widened
from support import evaluate

from onnxplain.composites import COMPOSITES
from onnxplain.graph import walk

LRP = [name for name in COMPOSITES if COMPOSITES[name].make(None).relevance]
W, V = normal(6, 5, seed=1), normal(5, 4, seed=2)
X = normal(2, 6)


def relevance(model, folder, x=X, seed=None, wanted="x.relevance", **options):
    file = compiled(model, folder, "lrp", **options)
    feeds = x if isinstance(x, dict) else {"x": x}
    rows = len(next(iter(feeds.values())))
    seed = one_hot((rows, 4), *[1] * rows) if seed is None else seed
    return file.run(**feeds, seed=seed)[wanted]


def masked(hidden: str) -> onnx.ModelProto:
    return net(
        f"g (float[N, 6] x, bool[N, 5] keep) => (float[N, 4] y) {{ h = MatMul (x, w) {hidden} y = MatMul (m, v) }}",
        w=W,
        v=V,
        zero=np.zeros((), np.float32),
    )


@pytest.mark.parametrize("composite", LRP)
def test_a_mask_takes_nothing_however_it_is_written(composite, tmp_path):
    keep = normal(2, 5, seed=3) > 0
    forms = [
        "m = Where (keep, h, zero)",
        "k = Cast <to = 1> (keep) m = Mul (h, k)",
        "k = Cast <to = 1> (keep) m = Mul (k, h)",
    ]
    found = [relevance(masked(form), tmp_path, {"x": X, "keep": keep}, composite=composite) for form in forms]
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4, atol=1e-6)  # float32
    np.testing.assert_allclose(found[2], found[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("composite", LRP)
def test_a_gate_made_by_a_comparison_is_a_relu(composite, tmp_path):
    gate = "p = Greater (h, zero) k = Cast <to = 1> (p) m = Mul (h, k)"
    forms = [gate, "m = Relu (h)"]
    found = [relevance(gated(form), tmp_path, composite=composite) for form in forms]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4, atol=1e-6)  # float32


def gated(hidden: str) -> onnx.ModelProto:
    return net(
        f"g (float[N, 6] x) => (float[N, 4] y) {{ h = MatMul (x, w) {hidden} y = MatMul (m, v) }}",
        w=W,
        v=V,
        zero=np.zeros((), np.float32),
    )


def test_a_computed_addend_of_gemm_gets_its_part_of_the_sum(tmp_path):
    """Gemm(x, w, c(x)) explains as MatMul(x, w) and an Add by `norm` would: R_c = c R / y."""
    text = "g (float[N, 6] x) => (float[N, 4] y) { c = MatMul (x, u) y = Gemm (x, w, c) }"
    model = net(text, w=normal(6, 4, seed=1), u=normal(6, 4, seed=2))
    file = compiled(model, tmp_path, "lrp", composite="epsilon", ledger=True)
    seed = one_hot((2, 4), 1, 1)
    found = file.run(x=X, seed=seed)
    np.testing.assert_allclose(found["x.relevance"].sum(1), (found["y"] * seed).sum(1), rtol=1e-3)


# -- what is known of a relevance ---------------------------------------------------------------------------------


RESIDUAL = """g (float[N, 2, 4, 4] x) => (float[N, 4] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
    r = Relu (a)
    c = Conv <pads = [1, 1, 1, 1]> (r, w2, b2)
    s = Add (c, r)
    q = Relu (s)
    d = Conv <pads = [1, 1, 1, 1]> (q, w2, b2)
    t = Add (d, shift)
    u = Relu (t)
    f = Flatten (u)
    y = MatMul (f, v)
}"""


def residual() -> onnx.ModelProto:
    return net(
        RESIDUAL,
        w1=normal(3, 2, 3, 3, seed=1),
        b1=normal(3, seed=2),
        w2=normal(3, 3, 3, 3, seed=3),
        b2=normal(3, seed=4),
        shift=normal(1, 3, 4, 4, seed=5),
        v=normal(48, 4, seed=6),
    )


@pytest.mark.parametrize("add", ["add_abs", "add_positive", "add_half", "add_skip", "norm"])
@pytest.mark.parametrize("composite", LRP)
def test_what_is_called_zero_with_a_tensor_is(composite, add, tmp_path, monkeypatch):
    """Every claim `Relevance.zero_with` of a compile, on numbers: the relevance is 0 wherever that tensor is."""
    claims: list[tuple[str, str]] = []
    plain = walk.backward

    def watched(op, path, start, *rest):
        found = plain(op, path, start, *rest)
        for relevance in [*start.values(), *found.values()]:
            claims.extend((str(tensor.name), str(relevance.value.name)) for tensor in relevance.zero_with)
        return found

    monkeypatch.setattr("onnxplain.compile.assemble.backward", watched)
    file = compiled(residual(), tmp_path, "lrp", composite=composite, rules=[f"type:Add={add}"])
    assert claims
    proto = widened(file.proto)
    names = {name for node in proto.graph.node for name in node.output}
    claims = [(tensor, value) for tensor, value in claims if tensor in names and value in names]
    for name in {name for claim in claims for name in claim} - {o.name for o in proto.graph.output}:
        proto.graph.output.append(onnx.ValueInfoProto(name=name))
    x = normal(2, 2, 4, 4, dtype=np.float64)
    found = evaluate(proto, {"x": x, "y.seed": np.asarray(one_hot((2, 4), 1, 1), np.float64)})
    for tensor, value in claims:
        assert not found[value][found[tensor] == 0].any(), (tensor, value)


@pytest.mark.parametrize("add", ["add_skip", "add_half", "add_abs"])
def test_a_sum_behind_a_relu_keeps_its_relevance_in_bounds(add, tmp_path):
    """A denominator taken from behind a Relu where relevance is not zero with it gave sums of 1e5 for a logit of 2."""
    file = compiled(residual(), tmp_path, "lrp", composite="epsilon", rules=[f"type:Add={add}"], ledger=True)
    x, seed = normal(2, 2, 4, 4), one_hot((2, 4), 1, 1)
    found = file.run(x=x, seed=seed)
    wide = evaluate(widened(file.proto), {"x": x.astype(np.float64), "y.seed": seed.astype(np.float64)})
    np.testing.assert_allclose(
        found["x.relevance"], wide["x.relevance"], rtol=1e-2, atol=1e-2 * np.abs(wide["x.relevance"]).max()
    )
    rows = wide["onnxplain.ledger"]
    np.testing.assert_allclose(rows[..., 0], rows[..., 1:].sum(-1), rtol=1e-6, atol=1e-6 * np.abs(rows).max())


@pytest.mark.parametrize("named", ["", "backward/"])
def test_a_model_may_use_the_names_of_the_backward_pass(named, tmp_path):
    """Forward and backward nodes are told apart by who emitted them: the Tanh here reads the Gemm beside the Relu."""
    model = net(
        """g (float[N, 6] x) => (float[N, 4] y) {
            h = Gemm (x, w, b) r = Relu (h) t = Tanh (h) s = Add (r, t) y = MatMul (s, v)
        }""",
        w=W,
        b=normal(5, seed=3),
        v=V,
    )
    model.graph.node[2].name = f"{named}tanh"
    file = compiled(model, tmp_path, "lrp", composite="epsilon")
    found = file.run(x=X, seed=one_hot((2, 4), 1, 1))["x.relevance"]
    feeds = {"x": X.astype(np.float64), "y.seed": np.asarray(one_hot((2, 4), 1, 1), np.float64)}
    h = X @ W + normal(5, seed=3)
    r, t = np.maximum(h, 0), np.tanh(h)
    y = (r + t) @ V
    to_s = (r + t) * (V[:, 1] * (y[:, 1:2] / y[:, 1:2]))
    to_h = to_s  # both branches hand theirs on to h, whatever their shares are
    expected = X * ((to_h / h) @ W.T)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())
    np.testing.assert_allclose(evaluate(widened(file.proto), feeds)["x.relevance"], found, rtol=1e-3, atol=1e-4)


# -- first is along the data from the model's inputs ----------------------------------------------------------------


@pytest.mark.parametrize("composite", LRP)
@pytest.mark.parametrize("name", ["r", "c", "q", "d"])
def test_asking_for_an_inner_tensor_changes_no_rule_above_it(name, composite, tmp_path):
    whole = compiled(residual(), tmp_path, "lrp", composite=composite, ledger=True)
    (tmp_path / "inner").mkdir()
    inner = compiled(residual(), tmp_path / "inner", "lrp", composite=composite, attribute_to=name, ledger=True)
    assert inner.about["rules"].items() <= whole.about["rules"].items()
    x, seed = normal(2, 2, 4, 4), one_hot((2, 4), 1, 1)
    rows = whole.run(x=x, seed=seed)["onnxplain.ledger"]
    found = inner.run(x=x, seed=seed)
    above = [whole.about["ledger"]["rows"].index(row) for row in inner.about["ledger"]["rows"]]
    np.testing.assert_allclose(found["onnxplain.ledger"][:, :, 0], rows[:, above, 0], rtol=1e-4, atol=1e-4)


def test_bounds_of_the_box_lie_on_the_channels(tmp_path):
    """Three channels and three columns: an axis of equal length is another one."""
    model = net(
        "g (float[N, 3, 5, 3] x) => (float[N, 4] y) { c = Conv (x, w) f = Flatten (c) y = MatMul (f, v) }",
        w=normal(2, 3, 3, 3),
        v=normal(6, 4),
    )
    low, high = [-1.0, -2.0, -3.0], [1.0, 2.0, 3.0]
    x = np.clip(normal(2, 3, 5, 3), -1, 1)
    found = relevance(model, tmp_path, x, rules=[f"first=box(low={low},high={high})"], composite="epsilon")
    w, v, r = normal(2, 3, 3, 3), normal(6, 4), one_hot((2, 4), 1, 1)
    for sample in range(2):
        columns = np.stack([x[sample, :, i : i + 3].reshape(-1) for i in range(3)], 1)  # (27, positions)
        z = w.reshape(2, -1) @ columns
        y = z.reshape(-1) @ v
        to_c = (z.reshape(-1) * (v @ (r[sample] * y / y))).reshape(2, 3)
        bound = [np.repeat(b, 9)[:, None] for b in (low, high)]
        up, down = np.maximum(w, 0).reshape(2, -1), np.minimum(w, 0).reshape(2, -1)
        s = to_c / (up @ (columns - bound[0]) + down @ (columns - bound[1]))
        shares = (columns - bound[0]) * (up.T @ s) + (columns - bound[1]) * (down.T @ s)
        expected = np.zeros((3, 5, 3))
        for i in range(3):
            expected[:, i : i + 3] += shares[:, i].reshape(3, 3, 3)
        np.testing.assert_allclose(found[sample], expected, rtol=1e-3, atol=1e-4)
