"""Laws of what counts as a sample: rows that answer for themselves, proven or tried; a time axis is no batch."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from nets import folded_heads, net, normal, relu_net
from running import running_server

from onnxplain import Explainer
from onnxplain.cli import main
from onnxplain.client import Client
from onnxplain.subject import Subject

SPEECH, CLASSES = 9, 5


def time_convolution(time: str = "T") -> onnx.ModelProto:
    """(T, features) to (T, classes): a convolution along time."""
    return net(
        f"""g (float[{time}, 4] x) => (float[{time}, 5] y) {{
            axes = Constant <value = int64[1] {{0}}> ()
            u = Unsqueeze (x, axes)
            t = Transpose <perm = [0, 2, 1]> (u)
            c = Conv <pads = [1, 1]> (t, w)
            r = Tanh (c)
            b = Transpose <perm = [0, 2, 1]> (r)
            s = Squeeze (b, axes)
            y = MatMul (s, v)
        }}""",
        w=normal(6, 4, 3),
        v=normal(6, 5, seed=1),
    )


def time_first(direction: str = "forward") -> onnx.ModelProto:
    """(time, batch, features) to (time, batch, classes): an LSTM as PyTorch exports it."""
    return net(
        f"""g (float[T, N, 4] x) => (float[T, N, 5] y) {{
            a, h, c = LSTM <hidden_size = 3, direction = "{direction}"> (x, w, r)
            axes = Constant <value = int64[1] {{1}}> ()
            s = Squeeze (a, axes)
            y = MatMul (s, v)
        }}""",
        w=normal(1, 12, 4),
        r=normal(1, 12, 3, seed=1),
        v=normal(3, 5, seed=2),
    )


def attention() -> onnx.ModelProto:
    """(T, features) mixed by attention without positions: equal under any order of the rows, and still one thing."""
    return net(
        """g (float[T, 4] x) => (float[T, 5] y) {
            t = Transpose <perm = [1, 0]> (x)
            q = MatMul (x, t)
            p = Softmax (q)
            m = MatMul (p, x)
            y = MatMul (m, v)
        }""",
        v=normal(4, 5, seed=1),
    )


def pooled() -> onnx.ModelProto:
    """A fixed number of frames, one answer for all of them."""
    return net(
        """g (float[9, 4] x) => (float[1, 5] y) {
            axes = Constant <value = int64[1] {0}> ()
            t = Tanh (x)
            m = ReduceMean (t, axes)
            y = MatMul (m, w)
        }""",
        w=normal(4, 5),
    )


def without_batch() -> onnx.ModelProto:
    """(channels, height, width) to (classes,)."""
    return net(
        """g (float[3, 4, 4] x) => (float[5] y) {
            t = Tanh (x)
            f = Reshape (t, all)
            y = MatMul (f, w)
        }""",
        all=np.array([48]),
        w=normal(48, 5),
    )


def scalar() -> onnx.ModelProto:
    return net("g (float[N, 4] x) => (float y) { t = Tanh (x) y = ReduceSum <keepdims = 0> (t) }")


ONE_THING = {
    "a convolution along time": (time_convolution, (SPEECH, 4)),
    "a fixed number of frames": (lambda: time_convolution("9"), (SPEECH, 4)),
    "time first": (time_first, (SPEECH, 1, 4)),
    "time first, backwards": (lambda: time_first("reverse"), (SPEECH, 1, 4)),
    "time first, a batch behind": (time_first, (SPEECH, 2, 4)),
    "attention": (attention, (SPEECH, 4)),
    "one answer for all frames": (pooled, (SPEECH, 4)),
    "no batch axis": (without_batch, (3, 4, 4)),
    "a number": (scalar, (SPEECH, 4)),
}


def explainer(model: onnx.ModelProto, folder, method: str = "gradient", **options) -> Explainer:
    onnx.save(model, folder / "m.onnx")
    return Explainer(folder / "m.onnx", method, **options)


@pytest.mark.parametrize("kind", ONE_THING)
def test_an_axis_that_counts_no_samples_is_explained_as_one_thing_and_it_is_said(kind, tmp_path):
    make, shape = ONE_THING[kind]
    one, x = explainer(make(), tmp_path), normal(*shape)
    found = one.explain(x, ["predicted", "0"])
    assert found.samples == 1 and len(found.rows()) == 2 and found.relevance.shape == (2, *shape)
    assert any("explained as one thing" in note for note in found.notes)
    for k, target in enumerate(found.targets):
        seed = target.seed.reshape(one.subject.forward({"x": x})["y"].shape)
        np.testing.assert_array_equal(found.row(k), one.run(x, seed)["x.relevance"])
    assert len(found.panels()) == 2
    assert one.explain(x).plot().size[0] > 0


def test_targets_address_positions_of_the_one_thing(tmp_path):
    for make, shape in ((time_convolution, (SPEECH, 4)), (time_first, (SPEECH, 1, 4))):
        one, x = explainer(make(), tmp_path), normal(*shape)
        y = one.subject.forward({"x": x})["y"]
        found = one.explain(x, ["3", "7,3", "predicted"])
        assert [t.name for t in found.targets][:2] == [f"class 3, sum over {SPEECH} positions", "class 3 at 7,3"]
        np.testing.assert_allclose(found.targets[0].score, [y[..., 3].sum()], rtol=1e-5)
        np.testing.assert_allclose(found.targets[1].score, [y[7, ..., 3].item()], rtol=1e-6)
        np.testing.assert_allclose(found.targets[2].score, [y.max(-1).sum()], rtol=1e-5)


SAMPLES = {
    "a network of rows": (relu_net, (3, 2, 6, 6)),
    "a fixed batch": (lambda: relu_net(batch="3"), (3, 2, 6, 6)),
    "heads folded into the batch": (folded_heads, (3, 3, 4)),
    "a layer on every frame": (
        lambda: net("g (float[T, 4] x) => (float[T, 5] y) { y = MatMul (x, w) }", w=normal(4, 5)),
        (SPEECH, 4),
    ),
}


@pytest.mark.parametrize("kind", SAMPLES)
def test_rows_that_answer_for_themselves_are_samples(kind, tmp_path):
    make, shape = SAMPLES[kind]
    found = explainer(make(), tmp_path).explain(normal(*shape), ["predicted", "0"])
    assert found.samples == shape[0] and found.relevance.shape == (2 * shape[0], *shape[1:])
    assert not any("one thing" in note for note in found.notes)


def test_one_row_of_a_batch_that_cannot_be_followed_is_a_sample(tmp_path):
    found = explainer(folded_heads(), tmp_path).explain(normal(1, 3, 4), ["predicted", "0"])
    assert found.samples == 1 and found.relevance.shape == (2, 3, 4)
    assert not any("one thing" in note for note in found.notes)


def test_the_ledger_of_one_thing_has_a_row_for_each_target(tmp_path):
    one = explainer(attention(), tmp_path, "lrp", ledger=True)
    found = one.explain(normal(SPEECH, 4), ["0", "1"])
    assert found.ledger.shape[0] == 2 and set(found.where(1)) == {"input", "bias", "stabiliser", "padding", "rule"}


def test_files_are_no_batch_where_axis_0_is_time(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    onnx.save(time_first(), "m.onnx")
    for name in "ab":
        np.save(f"{name}.npy", normal(SPEECH, 1, 4))
    with pytest.raises(SystemExit) as stop:
        main(["run", "m.onnx", "a.npy", "b.npy", "--method", "gradient", "--out", "o"])
    assert stop.value.code == 4 and "one file at a time" in capsys.readouterr().err
    main(["run", "m.onnx", "a.npy", "--method", "gradient", "--target", "3", "--out", "o", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert [e["target"] for e in found["explanations"]] == [f"class 3, sum over {SPEECH} positions"]
    assert any("one thing" in note for note in found["notes"])


def test_a_shared_subject_says_it_for_every_recipe(tmp_path):
    onnx.save(time_convolution(), tmp_path / "m.onnx")
    subject = Subject.of(tmp_path / "m.onnx")
    for method in ("gradient", "lrp"):
        assert Explainer(subject, method).explain(normal(SPEECH, 4)).samples == 1


def test_a_server_explains_one_thing_as_it_is_explained_offline(tmp_path):
    (tmp_path / "speech" / "1").mkdir(parents=True)
    path = tmp_path / "speech" / "1" / "model.onnx"
    onnx.save(time_first(), path)
    x = normal(SPEECH, 1, 4)
    offline = Explainer(path, "gradient").explain(x, ["3", "7,3"])
    with running_server(tmp_path) as running, Client(running.address) as client:
        found = client.explain("speech", {"x": x}, ["3", "7,3"], method="gradient")
    assert found.samples == 1 and [t.name for t in found.targets] == [t.name for t in offline.targets]
    assert any("one thing" in note for note in found.notes)
    for row in (0, 1):
        np.testing.assert_array_equal(found.row(row), offline.row(row))
        assert found.row(row).shape == x.shape
    assert len(found.panels()) == 2


def test_files_of_several_inputs_are_a_batch_of_each(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    onnx.save(net("g (float[N, 4] a, float[N, 4] b) => (float[N, 4] y) { y = Mul (a, b) }"), "m.onnx")
    for name in ("a0", "a1", "b0", "b1"):
        np.save(f"{name}.npy", normal(1, 4))
    main(["run", "m.onnx", *(f"{n[0]}={n}.npy" for n in ("a0", "a1", "b0", "b1")), "--method", "gradient", "--json"])
    assert len(json.loads(capsys.readouterr().out)["explanations"]) == 2
