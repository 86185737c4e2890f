"""NaN and infinity are never an answer: what is said of them, and with which exit code and status."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from nets import net, normal

from onnxplain import Explainer
from onnxplain.cli import main
from onnxplain.client.errors import made
from onnxplain.errors import NotFinite
from onnxplain.runtime.finite import Holes, first_not_finite
from onnxplain.server.grpc_status import status_of
from onnxplain.server.isolation.errors import CODES

POSITIVE = np.abs(normal(3, 4)) + 0.5


@pytest.fixture
def log_net(tmp_path):
    """Score NaN below zero, score infinite at zero."""
    path = tmp_path / "log.onnx"
    onnx.save(net("g (float[N, 4] x) => (float[N, 3] y) { s = Log (x) y = MatMul (s, w) }", w=normal(4, 3)), path)
    return path


@pytest.fixture
def root_net(tmp_path):
    """Score finite, gradient infinite at zero."""
    path = tmp_path / "root.onnx"
    text = "g (float[N, 4] x) => (float[N, 3] y) { d = Mul (x, two) s = Sqrt (d) y = MatMul (s, w) }"
    onnx.save(net(text, w=normal(4, 3), two=np.array([2], np.float32)), path)
    return path


def with_value(value: float) -> np.ndarray:
    x = POSITIVE.copy()
    x[1, 2] = value
    return x


@pytest.mark.parametrize("ask", ["explain", "run"])
def test_a_score_that_is_nan_names_the_first_tensor_of_the_forward_pass(ask, log_net):
    explainer, x = Explainer(log_net, "gradient"), with_value(-1)
    with pytest.raises(NotFinite, match=r"score y .* 3 of 9 values are NaN, the first at \[1, 0\].*s, output of Log_0"):
        explainer.explain(x) if ask == "explain" else explainer.run(x, normal(3, 3))


@pytest.mark.parametrize("ask", ["explain", "run"])
def test_a_relevance_that_is_not_finite_names_the_first_tensor_of_the_backward_pass(ask, root_net):
    explainer, x = Explainer(root_net, "gradient"), with_value(0)
    with pytest.raises(
        NotFinite, match=r"relevance of x .* 1 of 12 values is infinite, the first at \[1, 2\]"
    ) as error:
        explainer.explain(x) if ask == "explain" else explainer.run(x, normal(3, 3))
    assert "Infinity appears first in backward/Sqrt_1/" in str(error.value)


def test_only_the_row_at_fault_is_searched_whatever_the_chunks(root_net, monkeypatch):
    monkeypatch.setattr("onnxplain.runtime.chunking.free_memory_bytes", lambda: 1)
    with pytest.raises(NotFinite, match="appears first in backward/Sqrt_1/"):
        Explainer(root_net, "gradient").run(with_value(0), normal(3, 3))


def test_what_comes_with_the_input_is_said_of_the_input(log_net):
    with pytest.raises(NotFinite, match=r"comes with the input x: 1 of 12 values is NaN, the first at \[1, 2\]"):
        Explainer(log_net, "gradient").explain(with_value(np.nan))


def test_an_input_that_is_nan_is_an_answer_where_the_model_replaces_it(tmp_path):
    text = "g (float[N, 4] x) => (float[N, 4] y) { m = IsNaN (x) f = Where (m, zero, x) y = Mul (f, f) }"
    onnx.save(net(text, zero=np.zeros(1, np.float32)), tmp_path / "m.onnx")
    relevance = Explainer(tmp_path / "m.onnx", "gradient").explain(with_value(np.nan), 2).relevance
    assert np.isfinite(relevance).all() and relevance[1, 2] == 0


def test_a_weight_that_is_nan_is_named(tmp_path):
    weights = normal(4, 3)
    weights[0, 1] = np.nan
    onnx.save(net("g (float[N, 4] x) => (float[N, 3] y) { y = MatMul (x, w) }", w=weights), tmp_path / "m.onnx")
    with pytest.raises(NotFinite, match=r"output of MatMul_0 \(MatMul\), whose weight w has it"):
        Explainer(tmp_path / "m.onnx", "gradient").explain(POSITIVE)


def test_the_session_returns_the_values_as_they_are(root_net):
    explainer = Explainer(root_net, "gradient")
    found = explainer.session.run({"x": with_value(0), "y.seed": normal(3, 3)})
    assert np.isinf(found["x.relevance"][1, 2]) and np.isfinite(found["y"]).all()


def test_an_index_out_of_range_is_nan_in_the_file_and_an_error_of_the_explainer(root_net):
    explainer = Explainer(root_net, "gradient", seed="index")
    asked = {"x": POSITIVE, "y.target": np.array([0, 7, 1])}
    assert np.isnan(explainer.session.run(asked)["x.relevance"][1]).all()
    with pytest.raises(NotFinite, match="index out of range"):
        explainer.run(POSITIVE, asked["y.target"])


def test_the_search_finds_the_first_of_many_and_none_where_none_is(root_net):
    explainer = Explainer(root_net, "gradient")
    feeds = {"x": POSITIVE, "y.seed": normal(3, 3)}
    assert first_not_finite(explainer.compiled.model, feeds, nan=True) is None
    assert first_not_finite(explainer.compiled.model, {**feeds, "x": with_value(-1)}, nan=True)[0] == "s"


def test_searches_are_few(root_net, monkeypatch):
    explainer, searched = Explainer(root_net, "gradient"), []
    monkeypatch.setattr("onnxplain.runtime.nonfinite.first_not_finite", lambda *args: searched.append(1))
    for _ in range(20):
        with pytest.raises(NotFinite):
            explainer.run(with_value(0), normal(3, 3))
    assert len(searched) == 8


def test_the_command_line_stops_with_exit_code_4(log_net, tmp_path, capsys):
    np.save(tmp_path / "x.npy", with_value(-1))
    with pytest.raises(SystemExit) as stopped:
        main(["run", str(log_net), str(tmp_path / "x.npy"), "--method", "gradient", "--out", str(tmp_path / "out")])
    assert stopped.value.code == 4 and "NaN appears first in s" in capsys.readouterr().err


def test_random_input_shows_what_is_possible_and_still_stops_with_exit_code_4(log_net, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["run", str(log_net)])
    said = capsys.readouterr()
    assert stopped.value.code == 4 and "gradient" in said.out and "no answer" in said.err


def test_the_service_and_its_clients_have_one_status_for_it():
    error = NotFinite("the score y is no answer")
    assert (error.exit_code, error.status) == (4, "OUT_OF_RANGE")
    assert status_of(error).message == str(error)
    assert isinstance(made("OUT_OF_RANGE", str(error)), NotFinite) and CODES["OUT_OF_RANGE"] is NotFinite


@pytest.mark.parametrize(
    ("array", "text"),
    [
        ([1.0, np.nan, np.inf], "1 of 3 values is NaN and 1 is infinite, the first at [1]"),
        ([[np.inf], [-np.inf]], "2 of 2 values are infinite, the first at [0, 0]"),
        (np.float16(np.nan), "1 of 1 values is NaN"),
    ],
)
def test_what_is_not_finite_is_counted(array, text):
    assert str(Holes.of(array)) == text


@pytest.mark.parametrize("array", [[1.0, 2.0], [], [1, 2], ["a"]])
def test_what_is_finite_has_no_holes(array):
    assert Holes.of(array) is None
