"""A model's declared inputs, and random values for them when the user gives none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxplain.errors import InputError

Array = NDArray[Any]

BATCH, LENGTH, SIDE = 1, 8, 64  # what a symbolic axis gets: the first; one of a sequence; height and width
CHOICES = 2  # random integers are below this: safe as a token, a segment, a mask, a flag


@dataclass(frozen=True)
class InputSpec:
    """One input of a model. dtype: numpy's name ("float32", "int64", "bool"). shape: None where the rank is unknown."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None

    def __str__(self) -> str:
        """As shown in messages: 'input' (N, 3, 224, 224) float32."""
        shape = "of any shape" if self.shape is None else f"({', '.join(map(_axis, self.shape))})"
        return f"{self.name!r} {shape} {self.dtype}"


def _axis(side: int | str | None) -> str:
    return "?" if side is None else str(side)


def random_inputs(
    specs: Iterable[InputSpec],
    rng: np.random.Generator,
    *,
    sizes: Mapping[str, int] | None = None,
    batch: int = BATCH,
    length: int = LENGTH,
    side: int = SIDE,
    choices: int = CHOICES,
) -> dict[str, Array]:
    """Values for every input: floats standard normal, integers below `choices`, masks all true.

    sizes: symbolic axis -> size, for a model that needs a certain one; the others get `batch` on axis 0,
    `side` on the height and width of four-axis inputs and `length` elsewhere.
    """
    values: dict[str, Array] = {}
    for spec in specs:
        if spec.shape is None:
            raise InputError(f"input {spec} declares no shape, so no random value can be made. Give it with --input.")
        shape = _concrete(spec.shape, sizes or {}, batch, length, side)
        values[spec.name] = _draw(spec, shape, rng, choices)
    return values


def _concrete(
    shape: Sequence[int | str | None], sizes: Mapping[str, int], batch: int, length: int, side: int
) -> tuple[int, ...]:
    picture = range(1, 3) if len(shape) == 4 and shape[-1] in (1, 3, 4) else range(2, 4)
    concrete = []
    for axis, declared in enumerate(shape):
        if isinstance(declared, int) and declared > 0:
            concrete.append(declared)
        elif isinstance(declared, str) and declared in sizes:
            concrete.append(sizes[declared])
        elif axis == 0:
            concrete.append(batch)
        else:
            concrete.append(side if len(shape) == 4 and axis in picture else length)
    return tuple(concrete)


def _draw(spec: InputSpec, shape: tuple[int, ...], rng: np.random.Generator, choices: int) -> Array:
    if "float" in spec.dtype:
        return rng.standard_normal(shape).astype(np.dtype(spec.dtype))
    if "mask" in spec.name.lower() and ("int" in spec.dtype or spec.dtype == "bool"):
        return np.ones(shape, spec.dtype)
    if spec.dtype == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    if spec.dtype == "uint8" and len(shape) == 4:
        return rng.integers(0, 256, shape, np.uint8)  # a picture
    if "int" in spec.dtype:
        return rng.integers(0, choices, shape).astype(spec.dtype)
    raise InputError(f"input {spec}: no random value of this type. Give it with --input.")
