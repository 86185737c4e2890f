"""SmoothGrad, and its square and variance."""

from __future__ import annotations

from typing import Annotated, Literal

from onnxplain.methods.estimate import Estimate
from onnxplain.methods.noise import Noise
from onnxplain.methods.options import Range
from onnxplain.methods.registry import method
from onnxplain.methods.run import Run
from onnxplain.methods.sample_moments import ENOUGH, SampleMoments
from onnxplain.methods.tensors import Array, Tensors


@method(
    "smooth_grad",
    cite="Smilkov et al. 2017, SmoothGrad: removing noise by adding noise; "
    "square: Hooker et al. 2019; variance: Adebayo et al. 2018",
)
def smooth_grad(
    run: Run,
    x: Tensors,
    seed: Array,
    *,
    samples: Annotated[int, Range(1, 1_000_000)] = 50,
    noise: Annotated[float, Range(0)] = 0.15,
    average: Literal["mean", "square", "variance"] = "mean",
    until: Annotated[float | None, Range(0)] = None,
    random_seed: Annotated[int, Range(0)] = 0,
) -> Estimate | Tensors:
    """Mean explanation of noisy copies of the input.

    R = 1/n sum_k M(x + e_k), e_k normal with the standard deviation `noise` (max x - min x), each input tensor its own;
    M is what the base answers, by default the gradient.

    x (1, …) in model units; result the same shape, in the unit of the base (its square for square and variance).
    samples: noisy copies; each is one backward pass. Where `until` is given, at most.
    noise: standard deviation as a share of the range of the input; the paper advises 0.1 to 0.2.
    average: of the answers, of their squares (SmoothGrad squared), or their variance (VarGrad).
    until: end as soon as the largest standard error is below this share of the largest value.
    random_seed: of the noise, which is the same for every row and target.
    """
    drawn, moments = Noise(x, noise, random_seed), SampleMoments("variance" if average == "variance" else "mean", until)
    for part in run.batches(samples, ENOUGH, "samples"):
        found = run.relevance(x + drawn.rows(part.stop - part.start), seed).wide()
        if moments.add(found**2 if average == "square" else found, part):
            break
    return moments.estimate(x)
