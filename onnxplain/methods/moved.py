"""Which tensors a looped method moves, and for which it answers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from onnxplain.errors import UnsupportedModel, UsageError
from onnxplain.methods.registry import Looped

BESIDE = ("mask", "token_type", "segment", "position")  # in the name of an input that says how tokens are to be read
LookedUp = Callable[[], Collection[str]]
"""The inputs of a model that are numbers of tokens or categories, which it looks up."""


class Moves(NamedTuple):
    """moved: inputs of the model; or inner tensors, where it is cut (`inner`). answered: of those the relevance.

    notes: on what is left out, and on what becomes of tokens.
    """

    moved: list[str]
    answered: list[str]
    inner: bool = False
    notes: Sequence[str] = ()


def moves(
    method: Looped, options: Mapping[str, Any], attributed: Sequence[str], types: Mapping[str, str], by_user: bool,
    looked_up: LookedUp,
) -> Moves:  # fmt: skip
    """What a method with these options moves that attributes to these.

    types: numpy's name of the type of each input of the model. by_user: whether the user named what to attribute to.
    Raises UnsupportedModel where there is nothing to move, and for what it cannot and the user named; UsageError for
    inputs beside inner tensors.
    """
    inner = [name for name in attributed if name not in types]
    if not inner:
        found, notes = _inputs(method, options, attributed, types, by_user, looked_up)
        return Moves(found, found, notes=notes)
    if method.of_trees or method.of_tables:
        raise UnsupportedModel(
            f"method {method.name} is about the columns of the inputs, and {inner[0]} is no input: attribute to inputs."
        )
    if method.layer in ("read", "followed") or method.references:
        return Moves(_inputs(method, options, tuple(types), types, False, looked_up)[0], list(attributed))
    if len(inner) < len(attributed):
        other = next(name for name in attributed if name in types)
        raise UsageError(
            f"method {method.name} moves what it attributes to, and {inner[0]} is computed of the input {other}, which "
            "it would move too: attribute to one of the two (--attribute-to)."
        )
    return Moves(inner, inner, inner=True)


def movable(types: Mapping[str, str], method: Looped, by_user: bool, looked_up: LookedUp) -> list[str]:
    """The inputs of a model that a method can move, in the model's order; types and by_user: see `moves`.

    Of whole numbers, which only a method that switches can move, the tokens are by default: not what stands beside them
    (masks, segments, positions). A model without tokens and floats has its whole numbers moved, as those of a table.
    """
    floats = [name for name, dtype in types.items() if "float" in dtype]
    whole = [name for name, dtype in types.items() if "int" in dtype] if method.switches else []
    if not by_user and whole:
        own = [name for name in whole if not any(word in name.lower() for word in BESIDE)]
        tokens = set(looked_up()).intersection(own)
        whole = [name for name in own if name in tokens or not (tokens or floats)]
    return [name for name in types if name in floats or name in whole]


def _inputs(
    method: Looped, options: Mapping[str, Any], attributed: Sequence[str], types: Mapping[str, str], by_user: bool,
    looked_up: LookedUp,
) -> tuple[list[str], list[str]]:  # fmt: skip
    """The inputs among the attributed that move, and notes."""
    names = movable(types, method, by_user, looked_up)
    rest = [name for name in attributed if name not in names]
    if rest and (by_user or len(rest) == len(attributed)):
        kind = "input of numbers" if method.switches else "float input"
        instead = ", or to an inner tensor, such as what is looked up of it" if method.layer == "" else ""
        raise UnsupportedModel(
            f"method {method.name} moves what it attributes to, and {rest[0]} is no {kind} of the model: attribute to "
            f"others{instead} (--attribute-to)."
        )
    why = "it stays as it is; name it by --attribute-to to switch it too"
    if not method.switches:
        why = f"{method.name} moves float inputs, and it is none"
    notes = [f"{name} gets no relevance: {why}" for name in rest]
    found = [name for name in attributed if name in names]
    tokens = [name for name in found if "float" not in types[name]]
    if tokens and options.get("baseline") == 0:
        said = "what is taken away of it becomes 0; tokens better become that of the mask or padding (baseline=ID)"
        notes += [f"{name}: {said}" for name in tokens]
    return found, notes
