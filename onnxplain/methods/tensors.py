"""The attributed inputs of a model as one vector: arithmetic goes through all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Tensors(Mapping[str, Array]):
    """One array for each attributed input, all with the same axis 0; `+ - * / **`, `mean` and `sum` act on each.

    The other operand is a number, an array, or Tensors of the same names.
    """

    __array_ufunc__ = None  # so that numpy leaves array * tensors to us

    def __init__(self, arrays: Mapping[str, Array]):
        self._arrays = dict(arrays)

    def __getitem__(self, name: str) -> Array:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    @property
    def rows(self) -> int:
        """The length of axis 0."""
        return len(next(iter(self._arrays.values())))

    def row(self, index: int | Array) -> Tensors:
        """One row, which stays an axis of length one, or those of an array of indices."""
        return self.map(lambda array: array[np.atleast_1d(index)])

    def map(self, function: Callable[[Array], Array]) -> Tensors:
        """The function of each array."""
        return Tensors({name: function(array) for name, array in self._arrays.items()})

    def with_(self, other: Any, function: Callable[[Array, Any], Array]) -> Tensors:
        """The function of each array and its partner."""
        partner = other if isinstance(other, Tensors) else dict.fromkeys(self, other)
        return Tensors({name: function(array, partner[name]) for name, array in self.items()})

    def beside(self, other: Tensors) -> Tensors:
        """The rows of both, the other's behind."""
        return self.with_(other, lambda a, b: np.concatenate([a, b]))

    def mean(self) -> Tensors:
        """Over axis 0, which stays with length one."""
        return self.map(lambda array: array.mean(0, keepdims=True))

    def sum(self) -> Tensors:
        """Over axis 0, which stays with length one."""
        return self.map(lambda array: array.sum(0, keepdims=True))

    def scaled(self, factors: Array) -> Tensors:
        """Row i times factors[i]. factors (S,); the arrays have one row or S."""
        return self.map(lambda array: factors.reshape(-1, *(1,) * (array.ndim - 1)).astype(array.dtype) * array)

    def wide(self) -> Tensors:
        """In float64, for sums."""
        return self.map(lambda array: array.astype(np.float64))

    def typed(self, like: Tensors) -> Tensors:
        """In the types of another."""
        return self.with_(like, lambda array, other: array.astype(other.dtype))

    def __add__(self, other: Any) -> Tensors:
        return self.with_(other, lambda a, b: a + b)

    def __sub__(self, other: Any) -> Tensors:
        return self.with_(other, lambda a, b: a - b)

    def __mul__(self, other: Any) -> Tensors:
        return self.with_(other, lambda a, b: a * b)

    def __truediv__(self, other: Any) -> Tensors:
        return self.with_(other, lambda a, b: a / b)

    def __pow__(self, other: Any) -> Tensors:
        return self.with_(other, lambda a, b: a**b)

    __radd__, __rmul__ = __add__, __mul__

    def __rsub__(self, other: Any) -> Tensors:
        return self.with_(other, lambda a, b: b - a)

    def __repr__(self) -> str:
        return f"Tensors({ {name: np.shape(array) for name, array in self.items()} })"
