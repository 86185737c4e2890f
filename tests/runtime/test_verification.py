"""Verification judges what users run: the file in a session of default options, forward and backward."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref

import numpy as np
import onnx
import pytest
from nets import net, normal, relu_net

from onnxplain import Explainer
from onnxplain.cli import main
from onnxplain.errors import ConversionChanged
from onnxplain.frontend import normalise
from onnxplain.frontend.verify import second
from onnxplain.graph.builder import Builder
from onnxplain.runtime import verification


@pytest.fixture
def rotary(tmp_path):
    """Halves of an attention head exchanged: the gradient of Slice lies between two Transposes."""
    text = """g (float[N, 4, 6] x) => (float[N, 4, 6] y) {
        h = Reshape (x, split)
        t = Transpose <perm = [0, 2, 1, 3]> (h)
        a = Slice (t, zero, one, axis)
        b = Slice (t, one, three, axis)
        n = Neg (b)
        r = Concat <axis = -1> (n, a)
        m = Mul (r, t)
        u = Transpose <perm = [0, 2, 1, 3]> (m)
        y = Reshape (u, join)
    }"""
    numbers = {"zero": [0], "one": [1], "three": [3], "axis": [3], "split": [0, 4, 2, 3], "join": [0, 4, 6]}
    path = tmp_path / "rotary.onnx"
    onnx.save(net(text, **{name: np.array(n) for name, n in numbers.items()}), path)
    return path


def test_a_gradient_of_rotary_attention_runs_in_a_stock_session(rotary, tmp_path):
    explainer = Explainer(rotary, "gradient")
    explainer.save(tmp_path / "c.onnx")
    assert explainer.verify(tmp_path / "c.onnx") == []


def test_a_file_that_a_stock_session_gets_wrong_is_refused(rotary, tmp_path, monkeypatch):
    monkeypatch.setattr(Builder, "_full_rank", lambda self, values: values)
    explainer = Explainer(rotary, "gradient")
    explainer.save(tmp_path / "c.onnx")
    with pytest.raises(ConversionChanged, match=r"session of onnxruntime's default options|default optimisation"):
        explainer.verify(tmp_path / "c.onnx")


def test_the_command_refuses_it_too(rotary, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Builder, "_full_rank", lambda self, values: values)
    with pytest.raises(SystemExit) as stopped:
        main(["compile", str(rotary), "--method", "gradient", "-o", str(tmp_path / "c.onnx")])
    assert stopped.value.code == 3 and "default opti" in capsys.readouterr().err


@pytest.fixture
def vector_net(tmp_path):
    text = "g (float[N, 4, 3] x) => (float[N, 3] y) { t = Transpose <perm = [0, 2, 1]> (x) y = MatMul (t, v) }"
    onnx.save(net(text, v=normal(4)), tmp_path / "vector.onnx")
    return tmp_path / "vector.onnx"


def test_a_vector_behind_a_transpose_answers_as_the_model_says(vector_net):
    explainer = Explainer(vector_net, "gradient")
    x = normal(2, 4, 3)
    np.testing.assert_allclose(
        explainer.run(x, normal(2, 3))["y"], np.einsum("nks,k->ns", x, normal(4)), rtol=1e-5, atol=1e-6
    )


def test_a_forward_answer_that_optimisation_changes_is_refused_with_output_and_node(vector_net, monkeypatch):
    monkeypatch.setitem(normalise.STEPS, "settle forms", lambda model, *_: model)
    explainer = Explainer(vector_net, "gradient")
    with pytest.raises(
        ConversionChanged, match=r"optimisation changes the answer: output y: .*first at MatMul_1 \(Mat"
    ):
        explainer.verify()
    with pytest.raises(ConversionChanged, match="output y"):  # it is small enough to be verified when it is first used
        explainer.run(normal(2, 4, 3), normal(2, 3))


class Fake:
    """A session that answers by a function."""

    def __init__(self, answer):
        self.answer = answer

    def run(self, feeds):
        return self.answer(feeds)


@pytest.fixture
def judged(tmp_path):
    """(compiled, questions, names of the outputs, the true answers)."""
    onnx.save(relu_net(), tmp_path / "m.onnx")
    explainer = Explainer(tmp_path / "m.onnx", "lrp")
    first = explainer.subject.normalised.reference
    asked = verification.questions(explainer.compiled, [first, second(explainer.subject.source, first)])
    return explainer.compiled, asked, ["logits"], explainer.session.run


def test_batches_of_two_sizes_and_several_seeds_of_one_row_are_asked(judged):
    shapes = [(len(q.feeds["x"]), len(q.feeds["logits.seed"])) for q in judged[1]]
    assert shapes == [(2, 2), (3, 3), (1, 2)]
    assert all(np.any(q.feeds["logits.seed"]) for q in judged[1])


@pytest.mark.parametrize("output", ["logits", "x.relevance"])
@pytest.mark.parametrize("rows", [2, 3, 1])
def test_what_is_wrong_for_one_batch_size_only_is_refused(output, rows, judged, monkeypatch):
    compiled, asked, names, true = judged
    monkeypatch.setattr(verification, "first_difference", lambda *_: "Conv_0 (Conv)")

    def wrong(feeds):
        found = true(feeds)
        return {**found, output: 1.01 * found[output]} if len(feeds["x"]) == rows else found

    def ask():
        verification.verify(compiled, asked, names, lambda: Fake(wrong), lambda: Fake(true))

    if (output, rows) == ("logits", 1):  # the third question has no answer of the source; the row was among the first
        ask()
    else:
        with pytest.raises(ConversionChanged, match=rf"output {output}: differs .*first at Conv_0"):
            ask()


def test_rounding_is_what_noise_on_the_inputs_does(judged):
    compiled, asked, names, true = judged
    rng = np.random.default_rng(0)

    def unstable(feeds):  # a relevance that hangs on the last digit of its input
        found = true(feeds)
        return {**found, "x.relevance": found["x.relevance"] * (1 + 0.01 * rng.standard_normal())}

    verification.verify(compiled, asked, names, lambda: Fake(unstable), lambda: Fake(unstable))
    with pytest.raises(ConversionChanged):
        steady = Fake(lambda feeds: {**true(feeds), "x.relevance": 1.5 * true(feeds)["x.relevance"]})
        verification.verify(compiled, asked, names, lambda: steady, lambda: Fake(true))


def test_one_session_is_held_at_a_time(judged):
    compiled, asked, names, true = judged
    opened = []

    def open_session():
        gc.collect()
        assert all(session() is None for session in opened)
        session = Fake(true)
        opened.append(weakref.ref(session))
        return session

    verification.verify(compiled, asked, names, open_session, open_session)
    assert len(opened) == 2


def test_a_relevance_that_is_not_finite_where_the_answer_is_becomes_a_note(tmp_path):
    text = "g (float[N, 4] x) => (float[N, 4] y) { r = Mul (x, zero) s = Sqrt (r) y = Add (s, x) }"
    onnx.save(net(text, zero=np.zeros(1, np.float32)), tmp_path / "m.onnx")
    (note,) = Explainer(tmp_path / "m.onnx", "gradient").verify()
    assert "in the relevance of x" in note and "backward/" in note


PEAK = """
import sys
from pathlib import Path
from onnxplain import Explainer
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024
folder = Path(sys.argv[1])
before = peak()
explainer = Explainer(folder / "m.onnx", "gradient")
explainer.save(folder / "c.onnx")
explainer.verify(folder / "c.onnx")
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_compiling_and_verifying_peaks_at_twice_the_weights(tmp_path):
    """Which is what a stock session takes that packs the weights and the transposed ones of the gradient."""
    size, layers = 4096, 4  # 64 MB each: what malloc gives back to the system when it is freed
    nodes = "".join(f"a{i} = MatMul (r{i}, w{i}) r{i + 1} = Relu (a{i}) " for i in range(layers))
    text = f"g (float[N, {size}] r0) => (float[N, {size}] r{layers}) {{ {nodes} }}"
    model = net(text, **{f"w{i}": normal(size, size, seed=i) * np.float32(size**-0.5) for i in range(layers)})
    onnx.save_model(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data")
    done = subprocess.run([sys.executable, "-c", PEAK, str(tmp_path)], capture_output=True, text=True, check=True)
    weights, rest = 4 * size * size * layers, 130e6  # modules imported later, buffers of the optimiser and of threads
    assert int(done.stdout) <= 2.1 * weights + rest
