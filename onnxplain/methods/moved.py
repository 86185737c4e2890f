"""Which tensors a looped method moves, and for which it answers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from onnxplain.errors import UnsupportedModel, UsageError
from onnxplain.methods.registry import Looped


class Moves(NamedTuple):
    """moved: float inputs of the model; or inner tensors, where it is cut (`inner`). answered: of those the relevance.

    notes: on what is left out.
    """

    moved: list[str]
    answered: list[str]
    inner: bool = False
    notes: Sequence[str] = ()


def moves(
    method: Looped, attributed: Sequence[str], inputs: Sequence[str], floats: Collection[str], by_user: bool
) -> Moves:
    """What a method moves that attributes to these.

    inputs: of the model; floats: those that are numbers. by_user: whether the user named what to attribute to. Raises
    UnsupportedModel where there is nothing to move, and for what it cannot and the user named; UsageError for inputs
    beside inner tensors.
    """
    inner = [name for name in attributed if name not in inputs]
    if not inner:
        found, notes = _inputs(method, attributed, floats, by_user)
        return Moves(found, found, notes=notes)
    if method.of_trees or method.of_tables:
        raise UnsupportedModel(
            f"method {method.name} is about the columns of the inputs, and {inner[0]} is no input: attribute to inputs."
        )
    if method.layer in ("read", "followed") or method.references:
        return Moves(_inputs(method, inputs, floats, False)[0], list(attributed))
    if len(inner) < len(attributed):
        other = next(name for name in attributed if name in inputs)
        raise UsageError(
            f"method {method.name} moves what it attributes to, and {inner[0]} is computed of the input {other}, which "
            "it would move too: attribute to one of the two (--attribute-to)."
        )
    return Moves(inner, inner, inner=True)


def _inputs(
    method: Looped, attributed: Sequence[str], floats: Collection[str], by_user: bool
) -> tuple[list[str], list[str]]:
    rest = [name for name in attributed if name not in floats]
    if rest and (by_user or len(rest) == len(attributed)):
        instead = ", or to an inner tensor, such as what is looked up of it" if method.layer == "" else ""
        raise UnsupportedModel(
            f"method {method.name} moves what it attributes to, and {rest[0]} is no float input of the model: "
            f"attribute to float inputs{instead} (--attribute-to)."
        )
    notes = [f"{name} gets no relevance: {method.name} moves float inputs, and it is none" for name in rest]
    return [name for name in attributed if name in floats], notes
