"""A budget of memory: what is a size, how many rows it holds, and that no run has more."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from nets import counted, normal, relu_net

from onnxplain import Explainer
from onnxplain.errors import UnsupportedModel, UsageError
from onnxplain.methods import METHODS
from onnxplain.runtime.memory_budget import BESIDE, SAFETY, MemoryBudget, nbytes_of
from onnxplain.subject import Subject

OTHERS = ("of_trees", "of_tables")
X = normal(40, 2, 6, 6)


@pytest.mark.parametrize(
    "text, nbytes",
    [("1GB", 10**9), ("256 mb", 256 * 10**6), ("1.5GiB", 3 * 2**29), ("123", 123), (77, 77), ("2k", 2000)],
)
def test_sizes_are_read_in_decimal_and_binary_units(text, nbytes):
    assert nbytes_of(text) == nbytes


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0", 0, "1 PB", "1e9", "one"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(UsageError, match="give a size above 0 such as 256MB"):
        nbytes_of(text)


def test_a_budget_holds_the_rows_that_fit_beside_what_is_held():
    budget = MemoryBudget(BESIDE + 1000 + int(10.5 * (int(SAFETY * 10_000) + 1)))
    assert budget.rows(10_000, 99, held=1000) == 10 and budget.rows(10_000, 3, held=1000) == 3
    with pytest.raises(UsageError, match=r"does not hold 11 rows that cannot go apart .* give at least \d+MB"):
        budget.rows(10_000, 11, held=1000, together=True)


def test_the_size_that_a_refusal_names_is_enough():
    with pytest.raises(UsageError, match="does not hold one row") as refused:
        MemoryBudget(1000).rows(50_000_000, 4)
    enough = str(refused.value).split("give at least ")[1].rstrip(".")
    assert MemoryBudget(nbytes_of(enough)).rows(50_000_000, 4) == 1


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("model") / "m.onnx"
    onnx.save(relu_net(), path)
    return str(path)


@pytest.mark.parametrize(
    "name", [n for n, m in METHODS.items() if n != "d_rise" and not any(getattr(m, o, 0) for o in OTHERS)]
)  # d_rise is for detectors
def test_no_run_has_more_rows_than_the_budget_holds_and_the_answer_stays(name, saved, monkeypatch):
    """Of every method: the model's own runs, the graph's, those of points."""
    options = counted(name, 7) | ({"samples": 150} if name in ("lime", "kernel_shap") else {})
    options |= {"background": X[:2]} if getattr(METHODS[name], "background", "") == "required" else {}
    try:
        explainer = Explainer(saved, name, **options)
    except UnsupportedModel:
        pytest.skip("not of such a model")
    expected = explainer.explain(X[:7], 1)
    subject = Subject.of(saved, memory=10**9)
    bounded = Explainer(subject, name, **options)
    runs = []
    monkeypatch.setattr(MemoryBudget, "rows", lambda self, row, rows, held=0, together=False: min(rows, 5))
    for session in (subject.session, *([] if bounded._graph is None else [bounded._graph.session])):
        run = session.run
        monkeypatch.setattr(
            session, "run", lambda f, *n, run=run: (runs.append(max(map(len, f.values()))), run(f, *n))[1]
        )
    found = bounded.explain(X[:7], 1)
    assert max(runs) == 5
    size = np.abs(expected.relevance).max()
    np.testing.assert_allclose(found.relevance, expected.relevance, rtol=1e-4, atol=1e-5 * size)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5, atol=1e-6)


def test_a_budget_belongs_to_the_subject(saved):
    with pytest.raises(UsageError, match="memory=1000"):
        Explainer(Subject.of(saved), "lrp", memory="1kB")
    with pytest.raises(UsageError, match=r"memory 1GB? ?does not hold|does not hold one row"):
        Explainer(saved, "lrp", memory="1MB").explain(X, 1)
