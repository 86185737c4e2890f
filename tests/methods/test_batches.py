"""Batches of looped methods: the answer is the same in all sizes, tried or forced, and ends early where it may."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from nets import counted, repository, sample

from onnxplain import Explainer
from onnxplain.errors import Cancelled
from onnxplain.methods import METHODS, of_family
from onnxplain.runtime import batch_size
from onnxplain.runtime.batch_size import GAIN, SLOW, TRIED, BatchSize, even
from onnxplain.subject import Subject

MANY_LOOKS = [name for name in of_family("looped", "forward-only") if not METHODS[name].of_trees]
LOOKS = ("samples", "masks", "permutations")
ESTIMATES = [name for name in MANY_LOOKS if "until" in METHODS[name].options]
X = sample("digits_cnn")[:2]


@functools.cache
def digits() -> Subject:
    return Subject.of(repository("digits_cnn"))


def few(name: str, count: int) -> dict[str, object]:
    """Options with which a method looks some tens of times."""
    least = {"lime": 256, "kernel_shap": 256}.get(name, count)
    found: dict[str, object] = {option: least for option in LOOKS if option in METHODS[name].options}
    if "steps" in METHODS[name].options:
        found |= counted(name, count)
    return {**found, **({"patch": 14} if name == "exact_shapley" else {})}


def answers(name: str, rows: int | None, options: dict[str, object], progress=None):
    digits().batch_rows = rows
    try:
        return Explainer(digits(), name, **options).explain(X, ["predicted", 3], progress)
    finally:
        digits().batch_rows = None


@pytest.mark.parametrize("name", MANY_LOOKS)
def test_answers_and_standard_errors_do_not_depend_on_the_size_of_batches(name):
    """Forced sizes, one that leaves a single row over among them, and sizes that are tried."""
    options = few(name, 41)
    expected = answers(name, 8, options)
    for rows in (2, 5, 20, 64, None):
        found = answers(name, rows, options)
        for a, b in ((found.relevances, expected.relevances), (found.standard_errors, expected.standard_errors)):
            assert a.keys() == b.keys()
            for key in b:
                scale = float(np.abs(b[key]).max())
                np.testing.assert_allclose(a[key], b[key], rtol=1e-5, atol=1e-5 * scale)  # float32


@pytest.mark.parametrize("name", MANY_LOOKS)
def test_an_answer_that_is_asked_for_twice_is_the_same_to_the_last_bit(name):
    """In one process: the size that was found fastest is kept, and a size that is given is."""
    for rows in (None, 16):
        explained = [answers(name, rows, few(name, 41)).relevance for _ in range(3)]
        np.testing.assert_array_equal(explained[2], explained[1])


@pytest.mark.parametrize("left", range(1, 40))
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_no_row_is_left_alone(size, left):
    cuts, all_of_them = [], left
    while left:
        cuts.append(even(size, left))
        left -= cuts[-1]
    assert sum(cuts) == all_of_them and max(cuts) <= size
    assert cuts[-1] > 1 or size < 3 or all_of_them == 1


@pytest.mark.parametrize("fastest", TRIED)
def test_the_size_that_is_kept_is_the_fastest_tried(fastest):
    """Rows a second rise to `fastest` and fall behind it; what a batch takes never reaches SLOW."""
    sizes, used = BatchSize(), []
    for _ in range(2 * len(TRIED) + 3):
        rows = sizes.rows(10**6, 10**6)
        used.append(rows)
        rate = 1e6 * 1.5 ** -abs(TRIED.index(rows) - TRIED.index(fastest))
        sizes.took(rows, rows / rate, 10**6)
    assert used[-1] == fastest and set(used) <= set(TRIED)


def test_a_run_that_is_slow_is_not_made_longer_and_a_small_gain_is_no_reason():
    slow, flat = BatchSize(), BatchSize()
    for _ in range(6):
        slow.took(slow.rows(10**6, 10**6), 1.1 * SLOW, 10**6)
        rows = flat.rows(10**6, 10**6)
        flat.took(rows, rows * 1e-6 / (1 + (GAIN - 1) / 2 * TRIED.index(rows)), 10**6)
    assert slow.rows(10**6, 10**6) == flat.rows(10**6, 10**6) == TRIED[0]


def test_memory_bounds_every_size():
    sizes = BatchSize()
    for _ in range(9):
        rows = sizes.rows(10**6, 20)
        assert rows <= 20
        sizes.took(rows, rows * 1e-6 if rows < 20 else 1e-9, 20)
    assert sizes.rows(10**6, 20) == 20 and sizes.rows(7, 20) == 7


@pytest.mark.parametrize("name", MANY_LOOKS)
def test_an_explanation_that_is_ended_early_is_that_of_fewer_samples_and_says_so(name, monkeypatch):
    """Of methods that estimate; the others say that they have no answer before the last look."""
    monkeypatch.setattr(batch_size, "TRIED", (100, 400))
    stop = lambda done, total: True  # noqa: E731
    options = few(name, 4000)
    if name not in ESTIMATES:
        if name == "guided_integrated_gradients":
            options = few(name, 4000) | {"fraction": 1.0}
        if max(METHODS[name].options[o].default for o in METHODS[name].options if o == "steps") if "steps" in options else False:
            with pytest.raises(Cancelled, match=r"ended early, at \d+ of 4000 .*no answer before the last"):
                answers(name, 8, options, stop)
        return
    found = answers(name, None, {**options, **({o: 4000 for o in LOOKS if o in options})}, stop)
    (note,) = [note for note in found.notes if "ended early" in note]
    assert " of 4000 " in note or name == "shapley_sampling"
    assert found.standard_errors and np.isfinite(found.relevance).all()
