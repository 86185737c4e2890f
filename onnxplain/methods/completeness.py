"""Whether relevances sum to the change of the score, as an integral of the gradient does."""

from __future__ import annotations

import numpy as np

from onnxplain.methods.run import Run
from onnxplain.methods.tensors import Array, Tensors

TOLERANCE = 0.05  # of the change: what Sundararajan et al. 2017, section 5, take as enough steps
ROUNDING = 1e-5  # of what is added up: two float32 runs differ by that, whatever the steps


def note_residual(run: Run, start: Tensors, x: Tensors, seed: Array, result: Tensors, remedy: str) -> None:
    """Note how far the sum of the result is from F(x) - F(start), where that is above 5 % of it.

    start: (1, …), or (B, …) where the result is the mean over B paths; x: (1, …). result: relevance by elements,
    float64. Costs a forward pass for each row, in one run where rows are samples. Only an integral of the score's
    derivative promises this sum: nothing is noted of another base.
    """
    if not run.derivative:
        return
    scores = run.score(start.beside(x), seed)
    before, after = scores[:-1].mean(), scores[-1]
    change, total = float(after - before), float(sum(array.sum() for array in result.values()))
    size = max(abs(float(before)), abs(float(after)), float(sum(np.abs(array).sum() for array in result.values())))
    residual = abs(total - change)
    if residual > max(TOLERANCE * abs(change), ROUNDING * size):
        run.note(
            "relevance does not sum to F(x) - F(x'): it is off by up to {figure:.3g} % of that; " + remedy,
            100 * residual / abs(change) if change else np.inf,
        )
