"""Normal noise, the same for every row and target."""

from __future__ import annotations

import numpy as np

from onnxplain.methods.tensors import Tensors


class Noise:
    """Rows of noise for a point x (1, …), drawn one after the other however many are asked for at once.

    share: standard deviation as a share of max x - min x, each input tensor its own. random_seed: of numpy's default
    generator, which gets [random_seed, number of the input].
    """

    def __init__(self, x: Tensors, share: float, random_seed: int):
        self._x = x
        self._generators = {name: np.random.default_rng([random_seed, n]) for n, name in enumerate(x)}
        self._deviation = {name: share * float(a.max() - a.min()) if a.size else 0.0 for name, a in x.items()}

    def rows(self, count: int) -> Tensors:
        """The next rows, (count, …) in the types of x."""
        found = {}
        for name, array in self._x.items():
            drawn = self._generators[name].standard_normal((count, *array.shape[1:]))
            found[name] = (self._deviation[name] * drawn).astype(array.dtype)
        return Tensors(found)
