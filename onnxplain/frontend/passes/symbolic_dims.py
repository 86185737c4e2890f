"""Lengths with symbols, multiplied and divided: 4*N*H over N is 4*H."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import onnx_ir as ir

from onnxplain.graph.shape_rules import Dim


@dataclass(frozen=True)
class Product:
    """A whole number times symbols: 4*N*H."""

    number: int = 1
    symbols: tuple[str, ...] = ()

    @classmethod
    def of(cls, dim: Dim) -> Product | None:
        """A dimension as a product; None where nothing is known."""
        if isinstance(dim, int):
            return cls(dim)
        return None if dim is None else cls.parse(dim)

    @classmethod
    def parse(cls, text: str) -> Product:
        """The reverse of `dim`; any other text is one symbol."""
        head, _, rest = text.partition("*")
        if rest and head.isdigit():
            return cls(int(head), tuple(sorted(rest.split("*"))))
        return cls(1, tuple(sorted(text.split("*"))) if rest else (text,))

    def dim(self) -> Dim:
        """As a dimension: a number or "4*N"."""
        if not self.symbols:
            return self.number
        return "*".join([*([str(self.number)] if self.number != 1 else []), *self.symbols])

    def __mul__(self, other: Product) -> Product:
        return Product(self.number * other.number, tuple(sorted(self.symbols + other.symbols)))

    def over(self, other: Product) -> Product | None:
        """The exact quotient, None where there is none."""
        left = list(self.symbols)
        for symbol in other.symbols:
            if symbol not in left:
                return None
            left.remove(symbol)
        if other.number == 0 or self.number % other.number:
            return None
        return Product(self.number // other.number, tuple(left))


Entry = Product | None


def equal(a: Entry, b: Entry) -> Entry:
    """1 or 0 where it is certain: a length is never negative."""
    if a is None or b is None:
        return None
    if not a.symbols and not b.symbols:
        return Product(int(a.number == b.number))
    numbers = [entry.number for entry in (a, b) if not entry.symbols]
    return Product(0) if numbers and numbers[0] < 0 else None


def product_of(entries: Sequence[Entry]) -> Entry:
    """The product of all, None where one is not known."""
    if any(entry is None for entry in entries):
        return None
    return reduce(Product.__mul__, [entry for entry in entries if entry is not None], Product())


def dims_of(value: ir.Value) -> list[Dim] | None:
    """The shape of a value, None for an unknown rank or length."""
    return None if value.shape is None else [dim if isinstance(dim, int) else dim.value for dim in value.shape]


def is_open(shape: list[Dim] | None) -> bool:
    """Whether a rank or length is not known, or a symbol of onnx's own stands there."""
    return shape is None or any(dim is None or (isinstance(dim, str) and dim.startswith("unk__")) for dim in shape)
