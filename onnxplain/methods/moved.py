"""Which of the attributed tensors a looped method moves: float inputs of the model, or inner tensors."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from onnxplain.errors import UnsupportedModel, UsageError


def moved(
    attributed: Sequence[str], inputs: Collection[str], floats: Collection[str], by_user: bool, method: str
) -> tuple[list[str], list[str]]:
    """The attributed tensors that a method moves, and notes on the others.

    inputs: of the model; floats: those that are numbers. by_user: whether the user named what to attribute to. Raises
    UnsupportedModel where there is none to move, and for an input that is no number and that the user named; UsageError
    for inputs beside inner tensors.
    """
    inner = [name for name in attributed if name not in inputs]
    if inner and len(inner) < len(attributed):
        other = next(name for name in attributed if name in inputs)
        raise UsageError(
            f"method {method} moves what it attributes to, and {inner[0]} is computed of the input {other}, which it "
            "would move too: attribute to one of the two (--attribute-to)."
        )
    if inner:
        return inner, []
    rest = [name for name in attributed if name not in floats]
    if rest and (by_user or len(rest) == len(attributed)):
        raise UnsupportedModel(
            f"method {method} moves what it attributes to, and {rest[0]} is no float input of the model: attribute to "
            "float inputs, or to an inner tensor, such as what is looked up of it (--attribute-to)."
        )
    notes = [f"{name} gets no relevance: {method} moves float inputs, and it is none" for name in rest]
    return [name for name in attributed if name in floats], notes
