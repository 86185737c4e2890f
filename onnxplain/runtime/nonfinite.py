"""What to say of an answer that is NaN or infinite: which output, how many values, and where it began."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from onnxplain.compile.assemble import Compiled
from onnxplain.errors import Expired, NotFinite, UnsupportedModel
from onnxplain.runtime.finite import Holes, first_not_finite

Arrays = Mapping[str, np.ndarray]
Search = Callable[[], bool]


def _always() -> bool:
    return True


def all_finite(compiled: Compiled, found: Arrays) -> bool:
    """Whether all relevances and explained tensors among a compiled graph's outputs are finite."""
    return all(Holes.of(found[name]) is None for name in _judged(compiled) if name in found)


def answer_error(compiled: Compiled, feeds: Arrays, found: Arrays, search: Search = _always) -> NotFinite | None:
    """The error for the first output of a compiled graph that is not finite; None where all are.

    feeds: seeds among them. search: whether to find where it began, which costs one run of the graph as written, on the
    row at fault where rows go apart.
    """
    for name, said in _judged(compiled).items():
        if name not in found or (holes := Holes.of(found[name])) is None:
            continue
        axis = compiled.provenance["stream_axis"].get(name, 0)
        row = holes.first[axis] if compiled.streams and holes.first else None
        hint = ""
        if any(seed.endswith(".target") for seed in compiled.seeds):
            hint = " An index out of range makes every relevance NaN."
        return NotFinite(
            f"{said} is no answer: {holes}. {_origin(compiled.model, feeds, holes, row, search)}{hint} "
            "A session of the compiled graph returns the values as they are."
        )
    return None


def score_error(
    model: Callable[[], ir.Model], feeds: Arrays, name: str, scores: np.ndarray, search: Search = _always
) -> NotFinite | None:
    """The error for explained scores of which one is not finite; None where all are. model: asked for only then."""
    if (holes := Holes.of(scores)) is None:
        return None
    return NotFinite(f"the score {name} is no answer: {holes}. {_origin(model(), feeds, holes, None, search)}")


def _judged(compiled: Compiled) -> dict[str, str]:
    """What must be finite: output -> what it is."""
    scores = {source: f"the score {source}" for source in compiled.seeds.values()}
    return {**scores, **{name: f"the relevance of {source}" for name, source in compiled.relevances.items()}}


def _origin(model: ir.Model, feeds: Arrays, holes: Holes, row: int | None, search: Search) -> str:
    """A sentence on where it began: in what was given, else at the first tensor of the graph that has it."""
    for name, array in feeds.items():
        if (given := Holes.of(array)) is not None:
            return f"It comes with the input {name}: {given}."
    if not search():
        return "Where it begins was told for earlier ones."
    kind = "NaN" if holes.nans else "Infinity"
    try:
        found = first_not_finite(model, _row(feeds, row), holes.nans > 0)
    except (Expired, UnsupportedModel) as error:
        return f"Where it begins could not be found: {error}."
    if found is None:
        return f"{kind} does not appear when the graph runs as written: optimisation or the provider makes it."
    return f"{kind} appears first in {found[0]}, output of {found[1]}."


def _row(feeds: Arrays, row: int | None) -> dict[str, np.ndarray]:
    """One row of everything that has several."""
    if row is None:
        return dict(feeds)
    return {n: x[row : row + 1] if x.ndim and len(x) > 1 else x for n, x in feeds.items()}
