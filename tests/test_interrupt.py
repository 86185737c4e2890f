"""Laws of interruption: who started the work ends it, whatever the work catches."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxplain.compile import Request
from onnxplain.errors import Cancelled, Expired
from onnxplain.explainer import Explainer
from onnxplain.interrupt import check_interrupt, interruptible
from onnxplain.recipes import Recipe
from onnxplain.subject import Subject

MODEL = Path(__file__).parent.parent / "models" / "mobilenet_v2" / "1" / "model.onnx"


def after(steps: int, reason: Exception):
    left = [steps]

    def check() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise reason

    return check


def test_without_a_check_work_goes_on():
    check_interrupt()


def test_no_except_on_the_way_takes_an_interruption_for_its_own():
    with pytest.raises(Expired), interruptible(after(0, Expired("late"))):
        try:
            check_interrupt()
        except Exception as error:
            raise AssertionError("caught") from error


def test_an_inner_check_ends_the_inner_work_and_an_outer_one_all():
    inner = interruptible(after(0, Expired("inner")))
    with interruptible(after(1, Cancelled("outer"))), pytest.raises(Expired), inner:
        check_interrupt()
    with pytest.raises(Cancelled), interruptible(after(0, Cancelled("outer"))):
        with interruptible(lambda: None):
            check_interrupt()
        raise AssertionError("went on")


@pytest.mark.parametrize("steps", [0, 1, 5, 50, 300])
def test_loading_and_compiling_end_where_they_are_told_to(steps):
    with pytest.raises(Expired, match="late"), interruptible(after(steps, Expired("late"))):
        subject = Subject.of(MODEL, Request())
        Explainer(subject, Recipe("lrp", {})).compiled  # noqa: B018
        raise AssertionError("went on")
