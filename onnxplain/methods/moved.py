"""Which of the attributed tensors a looped method moves: floats, whole numbers that it can switch, inner tensors."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from onnxplain.errors import UnsupportedModel, UsageError
from onnxplain.methods.registry import Looped

BESIDE = ("mask", "token_type", "segment", "position")  # in the name of an input that says how tokens are to be read


def movable(
    types: Mapping[str, str], method: Looped, by_user: bool, looked_up: Callable[[], Collection[str]]
) -> list[str]:
    """The inputs of a model that a method can move, in the model's order.

    types: numpy's name of each input's type. by_user: whether the user named what to attribute to. looked_up: the
    inputs that are numbers of tokens or categories. Of whole numbers, which only a method that switches can move, the
    tokens are by default: not what stands beside them (masks, segments, positions). A model without tokens and floats
    has its whole numbers moved, as those of a table.
    """
    floats = [name for name, dtype in types.items() if "float" in dtype]
    whole = [name for name, dtype in types.items() if "int" in dtype] if method.switches else []
    if not by_user and whole:
        own = [name for name in whole if not any(word in name.lower() for word in BESIDE)]
        tokens = set(looked_up()).intersection(own)
        whole = [name for name in own if name in tokens or not (tokens or floats)]
    return [name for name in types if name in floats or name in whole]


def moved(
    attributed: Sequence[str], types: Mapping[str, str], by_user: bool, method: Looped, options: Mapping[str, Any],
    looked_up: Callable[[], Collection[str]],
) -> tuple[list[str], list[str]]:  # fmt: skip
    """The attributed tensors that a method moves, and notes on the others and on what becomes of tokens.

    types: of the model's inputs, looked_up: see `movable`. by_user: whether the user named what to attribute to.
    options: of the method. Raises UnsupportedModel where there is none to move, and for any other input that the user
    named; UsageError for inputs beside inner tensors.
    """
    inner = [name for name in attributed if name not in types]
    if inner and len(inner) < len(attributed):
        other = next(name for name in attributed if name in types)
        raise UsageError(
            f"method {method.name} moves what it attributes to, and {inner[0]} is computed of the input {other}, which "
            "it would move too: attribute to one of the two (--attribute-to)."
        )
    if inner:
        return inner, []
    names = movable(types, method, by_user, looked_up)
    rest = [name for name in attributed if name not in names]
    if rest and (by_user or len(rest) == len(attributed)):
        kinds = "an input of numbers" if method.switches else "float input"
        raise UnsupportedModel(
            f"method {method.name} moves what it attributes to, and {rest[0]} is no {kinds.removeprefix('an ')} of the "
            "model: attribute to others, or to an inner tensor, such as what is looked up of it (--attribute-to)."
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
