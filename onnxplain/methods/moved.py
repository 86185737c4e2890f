"""Which of the attributed tensors a looped method moves: the float inputs of the model."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from onnxplain.errors import UnsupportedModel


def moved(
    attributed: Sequence[str], floats: Collection[str], by_user: bool, method: str
) -> tuple[list[str], list[str]]:
    """The attributed tensors that a method moves, and notes on the others.

    floats: float inputs of the model. by_user: whether the user named what to attribute to. Raises UnsupportedModel
    where there is none to move, and for any other that the user named.
    """
    rest = [name for name in attributed if name not in floats]
    if rest and (by_user or len(rest) == len(attributed)):
        raise UnsupportedModel(
            f"method {method} moves what it attributes to, and {rest[0]} is no float input of the model: attribute to "
            "float inputs (--attribute-to), or cut the model there (onnxplain cut) and explain the tail."
        )
    notes = [f"{name} gets no relevance: {method} moves float inputs, and it is none" for name in rest]
    return [name for name in attributed if name in floats], notes
