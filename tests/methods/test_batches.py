"""Batches of looped methods: the answer is the same in all sizes, tried or forced, and ends early where it may."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
from nets import counted, normal, relu_net

from onnxplain import Explainer
from onnxplain.errors import Cancelled
from onnxplain.methods import METHODS, of_family
from onnxplain.recipes import Recipe
from onnxplain.runtime.batch_size import GAIN, SLOW, TRIED, BatchSize, even
from onnxplain.subject import Subject

OTHERS = ("of_trees", "of_tables")  # what they take is no picture
MANY_LOOKS = [
    name
    for name in of_family("looped", "forward-only")
    if name != "d_rise" and not any(getattr(METHODS[name], kind) for kind in OTHERS)  # which is for detectors
]
FOR_EACH_WINDOW = {"prediction_difference"}  # draws samples, and has no answer before the last window
LOOKS = ("samples", "masks", "permutations")
ESTIMATES = [name for name in MANY_LOOKS if "until" in METHODS[name].options]
X = normal(2, 2, 6, 6)


@pytest.fixture(scope="module")
def subject(tmp_path_factory) -> Subject:
    path = tmp_path_factory.mktemp("model") / "m.onnx"
    onnx.save(relu_net(), path)
    return Subject.of(path)


def few(name: str, count: int) -> dict[str, object]:
    """Options with which a method looks some tens of times."""
    least = {"lime": 150, "kernel_shap": 150, "shapley_sampling": 5}.get(name, count)
    found: dict[str, object] = {option: least for option in LOOKS if option in METHODS[name].options}
    if "steps" in METHODS[name].options:
        found |= counted(name, count // 3)
    return found


@pytest.fixture
def answers(subject):
    """(name, rows of a batch or None, options, progress) -> the explanation."""

    def explain(name: str, rows: int | None, options: dict[str, object], progress=None):
        subject.batch_rows = rows
        background = (
            X[:1] * np.float32([0, 0.5]).reshape(2, 1, 1, 1) if Recipe(name, options).background == "required" else None
        )
        return Explainer(subject, name, background=background, **options).explain(X, ["predicted", 3], progress)

    yield explain
    subject.batch_rows = None


@pytest.mark.parametrize("name", MANY_LOOKS)
def test_answers_and_standard_errors_do_not_depend_on_the_size_of_batches(name, answers):
    """Forced sizes, one that leaves a single row over among them, and sizes that are tried."""
    options = few(name, 41)
    expected = answers(name, 8, options)
    for rows in (2, 5, 64, None):
        found = answers(name, rows, options)
        for a, b in ((found.relevances, expected.relevances), (found.standard_errors, expected.standard_errors)):
            assert a.keys() == b.keys()
            for key in b:
                scale = float(np.abs(b[key]).max())
                np.testing.assert_allclose(a[key], b[key], rtol=1e-5, atol=1e-5 * scale)  # float32


@pytest.mark.parametrize("name", MANY_LOOKS)
def test_an_answer_that_is_asked_for_twice_is_the_same_to_the_last_bit(name, answers):
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


@pytest.mark.parametrize("name", ESTIMATES)
def test_what_is_ended_early_is_the_answer_of_fewer_samples_and_says_how_many(name, answers):
    """The same as if no more had been asked for: shapley_sampling counts looks, whole orders count."""
    unit = next(option for option in LOOKS if option in METHODS[name].options)
    found = answers(name, 8, {unit: 4000}, lambda done, total: True)
    (note,) = [note for note in found.notes if "ended early" in note]
    done, planned, what = re.search(r"ended early, at (\d+) of (\d+) (\w+)", note).groups()
    looks = 35 if name == "shapley_sampling" else 1  # of an order of 36 pixels
    assert int(planned) == 4000 * looks and what == ("looks" if looks > 1 else unit) and int(done) < 400
    expected = answers(name, 8, {unit: int(done) // looks})
    for a, b in ((found.relevances, expected.relevances), (found.standard_errors, expected.standard_errors)):
        np.testing.assert_allclose(a["x"], b["x"], rtol=1e-5, atol=1e-5 * np.abs(b["x"]).max())


@pytest.mark.parametrize(
    "name", sorted({name for name in MANY_LOOKS if not METHODS[name].maps} - {*ESTIMATES})
)  # the few channels of a map are one batch
def test_what_has_no_answer_before_its_last_look_says_so(name, answers):
    rows = 1 if name == "deep_lift_shap" else 8  # few rows of a background
    with pytest.raises(Cancelled, match=r"ended early, at \d+ of \d+ looks: this method has no answer before the last"):
        answers(name, rows, {}, lambda done, total: True)


@pytest.mark.parametrize("name", MANY_LOOKS)
def test_every_method_that_draws_samples_tells_its_standard_error_and_may_end_at_one(name, answers):
    draws = {"random_seed", *LOOKS} & {*METHODS[name].options}
    assert (len(draws) == 2) == (name in {*ESTIMATES, *FOR_EACH_WINDOW})
    assert bool(answers(name, None, few(name, 41)).standard_errors) == (len(draws) == 2)
    if name in ESTIMATES:
        unit = next(option for option in LOOKS if option in METHODS[name].options)
        told = []
        found = answers(name, 8, {unit: 4000, "until": 0.5}, lambda *now: told.append(now))
        assert found.standard_error < 0.5 and (not told or told[-1][0] < told[-1][1])
