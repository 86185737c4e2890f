"""D-RISE: which parts were kept where a detector still found what it had found."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

import numpy as np

from onnxplain.errors import UsageError
from onnxplain.methods.detections import Detections, Layout, reader_of
from onnxplain.methods.estimate import Estimate
from onnxplain.methods.masked_scores import masked_means
from onnxplain.methods.options import Range
from onnxplain.methods.registry import method
from onnxplain.methods.replacements import Replacement, replacement_of
from onnxplain.methods.run import Run
from onnxplain.methods.tensors import Array, Tensors


@method(
    "d_rise",
    base="",
    switches=True,
    channels="mean",
    cite="Petsiuk, Jain, Manjunatha, Morariu, Mehra, Ordonez and Saenko 2021, Black-box Explanation of Object "
    "Detectors via Saliency Maps, eq. 3 to 7",
)
def d_rise(
    run: Run,
    x: Tensors,
    seed: Array,
    *,
    masks: Annotated[int, Range(2, 10_000_000)] = 1000,
    probability: Annotated[float, Range(0.001, 0.999)] = 0.5,
    cells: Annotated[int, Range(1)] = 16,
    offset: Literal["mean", "none"] = "mean",
    baseline: Replacement = 0.0,
    layout: Layout = "auto",
    boxes: str = "",
    labels: str = "",
    box: Literal["corners", "centre"] = "corners",
    objectness: Literal["auto", "none"] = "auto",
    until: Annotated[float | None, Range(0)] = None,
    random_seed: Annotated[int, Range(0)] = 0,
) -> Estimate:
    """Mean similarity of a detection to the best one in randomly masked inputs, weighted by what the mask keeps.

    R_i = 1/(p N) sum_k (S_k - c) M_ki, S_k = max over the detections d in x_k of IoU(d, t) cos(P_d, P_t) O_d, t what
    was detected in x: box, classes P, objectness O. Masks and c are those of rise. The explained tensor has the scores
    of the detections, (N, D, C) or (N, D), or all of their numbers; the target says which one: "12,3" the class 3 of
    detection 12; of several, as by default, the one of the highest score. Where a detector has no objectness the
    highest score of a class stands in for it (the paper leaves it out, which objectness=none does).

    x (1, …) in model units; result the same shape, in the unit of similarity, 0 to 1.
    masks: how many; the paper has 5000.
    probability: that a cell is kept.
    cells: of the grid along each side of a picture.
    offset: what is subtracted from the similarities: mean (of the masked inputs), or none, as the paper.
    layout: separate outputs of scores and boxes; rows of one output, each centre, size and scores of classes;
        rows_with_objectness between these two; columns of the same without. auto: by the shapes.
    boxes: name of the output of boxes, four numbers for each score. None: the one there is.
    labels: name of the output of class numbers, where scores have one number for each detection.
    box: separate boxes are left, top, right and bottom, or centre and size.
    objectness: auto, or none.
    until: end as soon as the largest standard error is below this share of the largest relevance.
    random_seed: of the masks, which are the same for every row and target.
    """
    own = next(run.outputs(x))
    reader = reader_of(own, run.explained, layout, boxes, labels, box == "centre", run.head)
    detected = reader.read(own)
    if not len(detected.boxes):
        raise UsageError("the model detects nothing in this input, so there is nothing to explain.")
    target = chosen(detected, reader.scores(np.asarray(seed, np.float64), len(detected.boxes)))

    def similarity(points: Tensors) -> Array:
        best = []
        for outputs in run.outputs(points):
            found = reader.read(outputs)
            found = replace(found, objectness=np.ones(len(found.boxes))) if objectness == "none" else found
            best.append(found.similarity(target).max(initial=0.0))
        return np.array(best)

    return masked_means(
        run, x, replacement_of(run, x, baseline), similarity, masks=masks, probability=probability, cells=cells,
        offset=offset, until=until, random_seed=random_seed,
    )  # fmt: skip


def chosen(detected: Detections, seed: Array) -> Detections:
    """The one detection that a seed says. seed (D, C), of the scores.

    Of several the one of the highest score. A seed of one class alone asks for that class, whatever others are scored.
    """
    asked = seed > 0
    if not asked.any():
        asked = np.ones_like(asked)
    found = detected.one(int(np.argmax(np.where(asked, detected.scores, -np.inf).max(1))))
    own = np.flatnonzero(asked.any(0))
    return replace(found, scores=np.eye(asked.shape[1])[own]) if len(own) == 1 else found
