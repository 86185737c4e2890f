"""Prediction difference analysis: how far the evidence for a class falls when a window is not known."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Annotated, Literal

import numpy as np

from onnxplain.errors import UsageError
from onnxplain.methods.conditional_sampler import LARGEST, Conditional, Marginal
from onnxplain.methods.estimate import Estimate
from onnxplain.methods.feature_groups import Lengths
from onnxplain.methods.options import Range
from onnxplain.methods.registry import method
from onnxplain.methods.run import Run
from onnxplain.methods.sliding_windows import Place, WindowMeans, all_windows, with_windows
from onnxplain.methods.tensors import Array, Tensors, is_whole

CELLS = 14  # windows beside each other along the longer side of a picture: 16 pixels of 224; the paper has 10
Evidence = Literal["odds", "information", "difference"]


@method(
    "prediction_difference",
    base="",
    channels="mean",
    background="required",
    switches=True,
    cite="Zintgraf, Cohen, Adel and Welling 2017, Visualizing Deep Neural Network Decisions: Prediction Difference "
    "Analysis; Robnik-Sikonja and Kononenko 2008, Explaining Classifications For Individual Instances",
)
def prediction_difference(
    run: Run,
    x: Tensors,
    seed: Array,
    *,
    samples: Annotated[int, Range(2, 1_000_000)] = 10,
    sampling: Literal["conditional", "marginal"] = "conditional",
    evidence: Evidence = "odds",
    probabilities: Literal["auto", "softmax", "sigmoid", "score"] = "auto",
    examples: Annotated[int, Range(1)] = 1_000_000,
    patch: Lengths = None,
    stride: Lengths = None,
    surround: Annotated[int, Range(0)] = 2,
    random_seed: Annotated[int, Range(0)] = 0,
) -> Estimate:
    """How far the log odds of a class fall when a window is not known, mean over the windows that cover an element.

    WE = log2 odds(c | x) - log2 odds(c | x without W), odds = p / (1 - p), p(c | x without W) = mean of p(c | x with W
    drawn), drawn from the background: as a row has it there (marginal, Robnik-Sikonja and Kononenko), or by a Gaussian
    given its surroundings (conditional, Zintgraf et al.). Laplace's correction keeps odds finite: p becomes (p N + 1) /
    (N + K), N examples, K classes.

    x (1, …) in model units; result the same shape, in bits, the same for all channels of a place.
    samples: contents drawn for each window; as the paper.
    sampling: conditional, on what stands around the window, or marginal; tokens are drawn marginally.
    evidence: odds (weight of evidence), information (log2 p of both), or difference (of the probabilities themselves).
    probabilities: how they come of the explained tensor: softmax, sigmoid, or score, which is one already. auto: as
        the model does behind it; else score where it is one, and softmax.
    examples: on which the model was trained, N of the correction.
    patch: None: 14 windows along the longer side of a picture, 196 along time, single columns.
    stride: How far the window moves, said in the same way. None: half of its length.
    surround: elements on each side of a window that condition what is drawn.
    random_seed: of the contents, which are the same for every row and target.
    """
    places = list(all_windows(x, patch, stride, CELLS))
    drawn = _contents(run, x, places, samples, sampling, surround, random_seed)
    values = run.forward(x)
    kind = _kind(run, values) if probabilities == "auto" else probabilities
    whole = _probabilities(values, kind)
    weights = np.asarray(seed, np.float64).reshape(1, -1)
    reference, _ = _evidence(whole, evidence, examples, weights)
    means, left = WindowMeans(x), np.zeros((0, weights.shape[1]))
    queue = iter(places)
    for part in run.batches(len(places) * samples):
        chosen = list(islice(drawn, part.stop - part.start))
        points = with_windows(x, [place for place, _ in chosen], [content for _, content in chosen])
        left = np.concatenate([left, _probabilities(run.forward(points), kind)])
        while len(left) >= samples:
            own, left = left[:samples], left[samples:]
            without, slopes = _evidence(own.mean(0, keepdims=True), evidence, examples, weights)
            error = float((own @ slopes).std(ddof=1)) / np.sqrt(samples)
            means.add(next(queue), reference - without, error)
    return Estimate.of(means.means(), means.errors(), x)


def _contents(
    run: Run, x: Tensors, places: list[Place], samples: int, sampling: str, surround: int, random_seed: int
) -> Iterator[tuple[Place, Array]]:
    """What is drawn for each window, one after the other. Raises UsageError for what no Gaussian can be of."""
    samplers: dict[str, Conditional | Marginal] = {}
    background = run.background
    assert background is not None  # a recipe that requires one is refused without
    for n, (name, rows) in enumerate(background.items()):
        if sampling == "marginal":
            samplers[name] = Marginal(rows)
            continue
        if is_whole(rows):
            raise UsageError(f"{name} has whole numbers, which no Gaussian draws: take sampling=marginal.")
        samplers[name] = sampler = Conditional(rows, surround, np.random.default_rng([random_seed, n + 1]))
        size = sampler.patch_size(x[name], next(window for own, window in places if own == name))
        if size > LARGEST:
            raise UsageError(
                f"a window of {name} and its surroundings have {size} numbers, at most {LARGEST} for sampling="
                "conditional: take smaller ones (patch=…, surround=…), or sampling=marginal."
            )
    generator = np.random.default_rng([random_seed, 0])
    for name, window in places:
        for content in samplers[name].draw(x[name], window, samples, generator):
            yield (name, window), content


def _kind(run: Run, values: Array) -> str:
    """Softmax or sigmoid as the model has it behind the explained tensor; else what the numbers themselves say."""
    if run.head in ("Softmax", "Sigmoid"):
        return run.head.lower()
    flat = values.reshape(len(values), -1)
    if flat.min() >= 0 and flat.max() <= 1:
        return "score"
    if flat.shape[1] < 2 or values.ndim != 2:
        raise UsageError(
            f"how the explained tensor {list(values.shape)} becomes probabilities is not known: say probabilities="
            "softmax, sigmoid, or score with evidence=difference for one that is none."
        )
    return "softmax"


def _probabilities(values: Array, kind: str) -> Array:
    """Float64 (S, classes)."""
    flat = values.astype(np.float64).reshape(len(values), -1)
    if kind == "softmax":
        powers = np.exp(flat - flat.max(1, keepdims=True))
        return np.asarray(powers / powers.sum(1, keepdims=True))
    return 1 / (1 + np.exp(-flat)) if kind == "sigmoid" else flat


def _evidence(p: Array, evidence: Evidence, examples: int, weights: Array) -> tuple[float, Array]:
    """(evidence for what is explained, its derivative by each probability). p (1, classes); weights: of the seed."""
    if evidence == "difference":
        return float((weights * p).sum()), weights[0]
    if ((p < 0) | (p > 1)).any():
        raise UsageError("the explained scores are no probabilities: say probabilities=softmax or sigmoid.")
    classes = max(2, p.shape[1])
    slope = examples / (examples + classes)
    p = (p * examples + 1) / (examples + classes)
    if evidence == "information":
        return float((weights * np.log2(p)).sum()), (weights * slope / (p * np.log(2)))[0]
    return float((weights * np.log2(p / (1 - p))).sum()), (weights * slope / (p * (1 - p) * np.log(2)))[0]
