"""TreeSHAP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

import numpy as np

from onnxplain.errors import UnsupportedModel, UsageError
from onnxplain.methods.background import BackgroundWord, background_rows
from onnxplain.methods.registry import method
from onnxplain.methods.run import Run
from onnxplain.methods.tensors import Array, Tensors
from onnxplain.trees import TreeScore, interventional, path_dependent

ROUNDING = 1e-3  # of the largest answer: onnxruntime adds up float32; a tree that is read wrongly is far off
SPLIT = 1e-3  # of a branch's rows: what both its children may lack or have over, where covers were rounded


class TreeRun(Run, Protocol):
    """What a method over trees asks of the model beside."""

    trees: TreeScore
    """The explained tensor as a sum of trees. Raises UnsupportedModel where it is none."""

    answers: Array
    """The explained tensor at x, (rows, …)."""


@method(
    "tree_shap",
    cite="Lundberg et al. 2020, From local explanations to global understanding with explainable AI for trees",
    base="",
    of_trees=True,
)
def tree_shap(
    run: TreeRun,
    x: Tensors,
    seed: Array,
    *,
    baseline: float | list[float] | BackgroundWord = 0.0,
    perturbation: Literal["interventional", "path_dependent"] = "interventional",
) -> Tensors:
    """Exact Shapley values of the inputs of a tree ensemble, read from its trees.

    R_i = sum over S without i of |S|! (M-|S|-1)! / M! (v(S + i) - v(S)). Interventional: v(S) is the score where the
    inputs in S have their values and the others those of the baseline, and R sums to F(x) - F(baseline).
    Path-dependent: branches on others are taken both ways, by the share of the training rows that went there. Where
    the node makes probabilities of its sum (LOGISTIC, SOFTMAX) F is the sum: probabilities are not additive.

    x (rows, …) in model units, seed (1 or rows, scores); result like x, in the unit of the score.
    baseline: in model units, one number, one for each column, background (the values are the mean over its rows) or
        background_mean (the mean of its rows). 0 is seldom a typical row: a background is better.
    perturbation: interventional needs the baseline; path_dependent needs none, and a file that says how many training
        rows reached each node, which most exporters leave out.
    """
    score = run.trees
    counts = {name: int(np.prod(array.shape[1:])) for name, array in x.items()}
    players = sum(counts.values())
    features = score.features(x)
    _agree(score, features, run.answers)
    if score.transform != "NONE":
        run.note(
            f"{score.trees.name} answers {score.transform} of the sum of its trees: the sum is explained, in whose "
            "unit (log-odds) relevance is"
        )
    seeds, kind = np.unique(seed.reshape(len(seed), -1), axis=0, return_inverse=True)
    result = np.zeros((len(features), players))
    if perturbation == "interventional":
        background = score.features(_background(run, baseline, counts, x))
    elif baseline != 0.0:
        raise UsageError("baseline is of perturbation=interventional; path_dependent has none.")
    else:
        _require_covers(score)
    for n, of_all in enumerate(seeds):
        rows = np.flatnonzero(np.broadcast_to(kind.reshape(-1) == n, len(features)))
        if perturbation == "interventional":
            found = interventional(score.trees, score.leaves, features[rows], background, of_all, players)
        else:
            found = path_dependent(score.trees, score.leaves, features[rows], of_all, players)
        result[rows] = found
    parts = np.split(result, np.cumsum(list(counts.values()))[:-1], axis=1)
    return Tensors({n: part.reshape(x[n].shape).astype(x[n].dtype) for n, part in zip(x, parts, strict=True)})


def _agree(score: TreeScore, features: Array, answers: Array) -> None:
    """Raise UnsupportedModel where the trees as they are read do not answer what the model answers."""
    if features.shape[1] < score.trees.columns:
        raise UnsupportedModel(
            f"{score.trees.name}: its branches ask for column {score.trees.columns - 1} of {features.shape[1]}."
        )
    expected, found = score.answer(score.trees.scores(features)), answers.reshape(len(features), -1)
    if expected.shape != found.shape:
        raise UnsupportedModel(
            f"{score.trees.name}: the model answers {list(found.shape)}, and its trees {list(expected.shape)}."
        )
    size = max(1e-30, float(np.abs(found).max(initial=0)))
    gap = np.abs(expected - found).max(1, initial=0)
    if gap.max(initial=0) > ROUNDING * size:
        row = int(gap.argmax())
        raise UnsupportedModel(
            f"{score.trees.name}: for row {row} the model answers {found[row][:4].tolist()} and its trees, added up, "
            f"{expected[row][:4].tolist()}: they are not read as the runtime computes them, so no Shapley values of "
            "them are given. Use a method that only runs the model."
        )


def _background(
    run: Run, baseline: float | list[float] | BackgroundWord, counts: dict[str, int], x: Tensors
) -> Mapping[str, Array]:
    """The baseline rows by input, (B, …)."""
    if isinstance(baseline, str):
        return background_rows(run, baseline)
    width = sum(counts.values())
    flat = np.asarray(baseline, np.float64).reshape(-1)
    if flat.size not in (1, width):
        raise UsageError(
            f"baseline has {flat.size} numbers, and the model's inputs {width}: give one or {width}; several rows "
            "are a background (baseline=background)."
        )
    parts = np.split(np.broadcast_to(flat, (1, width)), np.cumsum(list(counts.values()))[:-1], axis=1)
    return {n: part.reshape(1, *x[n].shape[1:]).astype(x[n].dtype) for n, part in zip(counts, parts, strict=True)}


def _require_covers(score: TreeScore) -> None:
    """Raise UnsupportedModel where the file does not say how many rows reached each node."""
    trees = score.trees
    branch = trees.true >= 0
    cover = trees.cover
    if cover is not None and len(cover) == len(trees.true) and (cover > 0).all():
        below = cover[trees.true[branch]] + cover[trees.false[branch]]
        if (np.abs(below - cover[branch]) <= SPLIT * cover[branch]).all():
            return
    what = "it has none" if cover is None else "those it has do not add up from children to parents"
    raise UnsupportedModel(
        f"{trees.name}: perturbation=path_dependent needs nodes_hitrates, the number of training rows at each node, "
        f"and {what} (exporters write 1, or nothing). Use perturbation=interventional with a baseline."
    )
