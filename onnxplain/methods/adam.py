"""Adam: steps along a gradient, each element by its own past."""

from __future__ import annotations

import numpy as np

from onnxplain.methods.tensors import Tensors

FIRST, SECOND = 0.9, 0.999  # how much of the past is kept of the mean and of the mean square; the paper's
TINY = 1e-8  # added to the root of the mean square; the paper's


class Adam:
    """Kingma and Ba 2015, Adam: A Method for Stochastic Optimization, algorithm 1.

    rate: how far an element goes in the first step, in its own unit.
    """

    def __init__(self, rate: float):
        self._rate, self._count = rate, 0
        self._mean = self._square = Tensors({})

    def step(self, gradient: Tensors) -> Tensors:
        """What is added to go down the gradient, in its shapes, float64."""
        if not self._count:
            self._mean = self._square = gradient.map(lambda array: np.zeros(array.shape))
        self._count += 1
        self._mean = self._mean * FIRST + gradient * (1 - FIRST)
        self._square = self._square * SECOND + gradient * gradient * (1 - SECOND)
        mean, square = self._mean / (1 - FIRST**self._count), self._square / (1 - SECOND**self._count)
        return mean.with_(square, lambda m, s: -self._rate * m / (np.sqrt(s) + TINY))
