"""Expected gradients, also known as GradientSHAP."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np

from onnxplain.errors import UsageError
from onnxplain.methods.background import BackgroundWord
from onnxplain.methods.baselines import BaselineAt, baseline_of, ends
from onnxplain.methods.estimate import Estimate
from onnxplain.methods.noise import Noise
from onnxplain.methods.options import Range
from onnxplain.methods.registry import method
from onnxplain.methods.run import Run
from onnxplain.methods.sample_moments import ENOUGH, SampleMoments
from onnxplain.methods.tensors import Array, Tensors


@method(
    "expected_gradients",
    cite="Erion et al. 2021, Improving Performance of Deep Learning Models with Axiomatic Attribution Priors and "
    "Expected Gradients, eq. 3; GradientSHAP: Lundberg and Lee 2017, shap's GradientExplainer",
)
def expected_gradients(
    run: Run,
    x: Tensors,
    seed: Array,
    *,
    baseline: float | list[float] | Literal["blur", "maximum_distance", "uniform"] | BackgroundWord = 0.0,
    sigma: Annotated[float | None, Range(0)] = None,
    axes: list[int] | None = None,
    baseline_at: BaselineAt = "moved",
    noise: Annotated[float, Range(0)] = 0.15,
    samples: Annotated[int, Range(1, 1_000_000)] = 50,
    random_seed: Annotated[int, Range(0)] = 0,
    multiply_by_inputs: bool | None = None,
    until: Annotated[float | None, Range(0)] = None,
) -> Estimate | Tensors:
    """Mean of gradient times difference at random points between random baselines and noisy copies of the input.

    R = 1/n sum_k (x + e_k - x'_k) dF(x'_k + a_k (x + e_k - x'_k)) / dx, a_k uniform in [0, 1), e_k normal, x'_k a
    baseline. With the gradient as base it sums, in the mean of many samples, to the mean of F(x + e) - F(x').
    Over a base that answers in shares of the score its answers are averaged.

    x (1, …) in model units; result the same shape, in the unit of the score.
    baseline: where paths begin, in model units: one number, one for each channel (axis 1), blur, maximum_distance (see
        integrated_gradients), uniform (drawn for each sample and element within the input's range), background (a row
        of it, drawn for each sample) or background_mean.
    sigma: of baseline=blur, in elements; None: a tenth of the longest blurred axis.
    axes: of baseline=blur, counted from that of the samples; None: the two of a picture.
    noise: standard deviation of e as a share of the range of the input; 0 is expected gradients without smoothing.
    samples: random points; each is one backward pass. Where `until` is given, at most.
    random_seed: of all draws, which are the same for every row and target.
    multiply_by_inputs: whether each answer is multiplied by x + e - x'; None: where the base answers per unit of input.
    until: end as soon as the largest standard error is below this share of the largest relevance.
    """
    if baseline == "uniform" and baseline_at == "input":
        raise UsageError("baseline=uniform is drawn within the range of what moves: it has no baseline_at=input.")
    multiply = run.per_unit if multiply_by_inputs is None else multiply_by_inputs
    drawn, places = Noise(x, noise, random_seed), np.random.default_rng([random_seed, len(x)])
    draws = {name: np.random.default_rng([random_seed, len(x) + 1, n]) for n, name in enumerate(x)}
    starts = baseline_of(run, x, 0.0 if baseline == "uniform" else baseline, sigma, axes, baseline_at)
    low, high = ends(run, x, run.bounds) if baseline == "uniform" else (starts, starts)
    rows = np.random.default_rng([random_seed, len(x) + 2])
    moments = SampleMoments(until=until)
    for part in run.batches(samples, ENOUGH, "samples"):
        count = part.stop - part.start
        if baseline == "uniform":
            shares = {name: draws[name].random((count, *a.shape[1:])).astype(a.dtype) for name, a in x.items()}
            start = low + (high - low) * Tensors(shares)
        else:
            start = starts.row(rows.integers(starts.rows, size=count) if starts.rows > 1 else 0)
        difference = (x + drawn.rows(count)) - start
        found = run.relevance(start + difference.scaled(places.random(count)), seed).wide()
        if moments.add(found * difference if multiply else found, part):
            break
    return moments.estimate(x)
