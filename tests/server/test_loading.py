"""Laws of one load in its thread."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from onnxplain.errors import Busy, InputError, OnnxplainError, OutOfMemory
from onnxplain.inputs.settings import ModelSettings
from onnxplain.server.models.loading import LoadAttempt, Opener
from onnxplain.sources import ResolvedModel

MODEL = ResolvedModel(Path("m.onnx"), "m", "1", ModelSettings())


def attempted(*outcomes: OnnxplainError | str) -> tuple[list[str], object]:
    """What was done, and the result, where making the model goes like this."""
    done: list[str] = []
    left = list(outcomes)

    def make(model: ResolvedModel) -> str:
        done.append("make")
        outcome = left.pop(0)
        if isinstance(outcome, OnnxplainError):
            raise outcome
        return outcome

    async def main() -> object:
        attempt = LoadAttempt(MODEL, Opener(make, lambda made: None, lambda: done.append("relieve")))
        await attempt.ended
        try:
            return attempt.result()
        except OnnxplainError as error:
            return error

    return done, asyncio.run(main())


@pytest.mark.parametrize("full", [OutOfMemory("no memory"), Busy("full")])
def test_a_load_that_finds_no_memory_is_tried_again_when_some_was_given_back(full):
    assert attempted(full, "model") == (["make", "relieve", "make"], "model")
    done, error = attempted(full, OutOfMemory("still none"))
    assert done == ["make", "relieve", "make"] and "still none" in str(error)


def test_a_load_that_fails_for_another_reason_is_not_tried_again():
    done, error = attempted(InputError("wrong"))
    assert done == ["make"] and "wrong" in str(error)
