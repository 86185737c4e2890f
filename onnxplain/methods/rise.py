"""RISE: which parts were kept where the score was high."""

from __future__ import annotations

from typing import Annotated, Literal

from onnxplain.methods.estimate import Estimate
from onnxplain.methods.masked_scores import masked_means
from onnxplain.methods.options import Range
from onnxplain.methods.registry import method
from onnxplain.methods.replacements import Fixed, Replacement, replacement_of
from onnxplain.methods.run import Run
from onnxplain.methods.tensors import Array, Tensors


@method(
    "rise",
    base="",
    channels="mean",
    switches=True,
    cite="Petsiuk, Das and Saenko 2018, RISE: Randomized Input Sampling for Explanation of Black-box Models, eq. 6",
)
def rise(
    run: Run,
    x: Tensors,
    seed: Array,
    *,
    masks: Annotated[int, Range(2, 10_000_000)] = 1000,
    probability: Annotated[float, Range(0.001, 0.999)] = 0.5,
    cells: Annotated[int, Range(1)] = 7,
    offset: Literal["mean", "none"] = "mean",
    baseline: Replacement = 0.0,
    fixed: Fixed = None,
    until: Annotated[float | None, Range(0)] = None,
    random_seed: Annotated[int, Range(0)] = 0,
) -> Estimate:
    """Mean score of randomly masked inputs, each weighted by how much it keeps of an element.

    R_i = 1/(p N) sum_k (F(x_k) - c) M_ki, x_k = b + M_k (x - b). M_k: a grid of ones with probability p, enlarged
    bilinearly and shifted. With c = 0 (offset none) that is the paper's map, the mean score where i is kept, made for
    probabilities. The scores explained here are mostly logits, far from 0: so c is the mean of F(x_k), and R_i is by
    how much keeping i lifts the score above it. The paper's map is this one plus the mean, but for chance.

    x (1, …) in model units; result the same shape, in the unit of the score, the same for all channels of a place.
    masks: how many; the paper has 4000 to 8000. Where `until` is given, at most.
    probability: that a cell is kept.
    cells: of the grid along each side of a picture or along time; columns of a table and tokens have a cell each.
    offset: what is subtracted from the scores: mean (of the masked inputs), or none.
    until: end as soon as the largest standard error is below this share of the largest relevance.
    random_seed: of the masks, which are the same for every row and target.
    """
    return masked_means(
        run, x, replacement_of(run, x, baseline, fixed), lambda points: run.score(points, seed), masks=masks,
        probability=probability, cells=cells, offset=offset, until=until, random_seed=random_seed,
    )  # fmt: skip
