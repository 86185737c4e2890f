"""Shapley values of a sum of trees, leaf by leaf.

A leaf is worth its weight to a coalition if every player on the way to it lets the row by. So each leaf is a game of
few players whose Shapley values have a closed form, and the values of the sum are the sum of the values.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import lgamma

import numpy as np

from onnxplain.trees.conjunctions import Leaves, packed
from onnxplain.trees.ensemble import CELLS, Array, Trees

DENSE = CELLS // 4  # of float64, where CELLS are of bool
ROWS = 1024  # at once, at most: the ways of all of them through all branches lie in memory, a bit each


def interventional(
    trees: Trees, leaves: Sequence[Leaves], x: Array, background: Array, seed: Array, players: int
) -> Array:
    """Players outside the coalition have their values from a background row; the mean over the background.

    Of a leaf that x and the background row z can reach between them let a be the number of players that let only x by,
    b of those that let only z by. The leaf is in reach of the coalitions that hold the a and none of the b, so each of
    the a gets (a-1)! b! / (a+b)! of its weight and each of the b loses a! (b-1)! / (a+b)!. Algorithm 3 of Lundberg et
    al. 2020, From local explanations to global understanding with explainable AI for trees, gives the same numbers.

    x (rows, columns), background (B, columns), seed (scores,): float64 (rows, players). Sums to the seeded score of x
    less the mean of that of the background.
    """
    result = np.zeros((len(x), players))
    z, flat = packed(trees, background), _weighted(leaves, seed)
    for start in range(0, len(x), ROWS):
        turns, rows = packed(trees, x[start : start + ROWS]), len(x[start : start + ROWS])
        for group, weight in flat:
            begun = 0
            for part in group.parts(CELLS, rows):
                of_part = weight[begun : begun + len(part.weight)]
                begun += len(of_part)
                lets, lets_z = part.lets(turns), np.unpackbits(part.lets(z), axis=2).view(bool)
                for n in range(len(background)):
                    result[start : start + rows] += _of_one(part, of_part, lets, lets_z[:, :, n], rows, players)
    return result / max(1, len(background))


def _of_one(leaves: Leaves, weight: Array, lets: Array, lets_z: Array, rows: int, players: int) -> Array:
    """Of one background row, (rows, players). lets (k, leaves, bytes), lets_z (k, leaves)."""
    k, _, width = lets.shape
    reached = np.bitwise_and.reduce(lets | np.where(lets_z, np.uint8(255), np.uint8(0))[:, :, None])
    leaf, row = np.divmod(np.flatnonzero(np.unpackbits(reached, axis=1, count=rows).view(bool)), rows)
    lost = (~lets.reshape(k, -1)[:, leaf * width + (row >> 3)] >> (7 - (row & 7)).astype(np.uint8)) & 1
    b = lost.sum(0, dtype=np.intp)  # a are the players that z does not let by
    index = (~lets_z).sum(0)[leaf] * (k + 1) + b
    gains, losses = _shares(k)
    worth = weight[leaf]
    gain, loss = gains.reshape(-1)[index] * worth, losses.reshape(-1)[index] * worth
    total = np.zeros(rows * players)
    row *= players
    for slot in range(k):
        part = np.where(lets_z[slot][leaf], -loss * lost[slot], gain)
        total += np.bincount(row + leaves.players[slot][leaf], part, rows * players)
    return total.reshape(rows, players)


def path_dependent(trees: Trees, leaves: Sequence[Leaves], x: Array, seed: Array, players: int) -> Array:
    """Branches on players outside the coalition are taken both ways, by the share of the training rows that went there.

    With o = 1 where x is let by a player and 0 where not, and r the share that is, a leaf gives player j
    weight (o_j - r_j) ∫ prod_{i≠j} ((1-t) r_i + t o_i) dt over t from 0 to 1: the integral is the mean over orders of
    the players, since a player comes before time t with probability t. It is a polynomial of degree k-1, so that
    Gauss-Legendre quadrature is exact. Equal to algorithm 2 of Lundberg et al. 2020. Arguments and result as above.
    """
    result = np.zeros((len(x), players))
    for group, weight in _weighted(leaves, seed):
        k = len(group.players)
        positions, shares = np.polynomial.legendre.leggauss(k // 2 + 1)
        times, shares = (positions + 1) / 2, shares / 2
        for start in range(0, len(x), ROWS):
            turns, rows = packed(trees, x[start : start + ROWS]), len(x[start : start + ROWS])
            begun = 0
            for part in group.parts(DENSE, rows):
                of_part = weight[begun : begun + len(part.weight)]
                begun += len(of_part)
                lets = np.unpackbits(part.lets(turns), axis=2, count=rows).astype(np.float64)
                passed = part.passed[:, :, None]
                total = np.zeros(lets.shape)
                for time, share in zip(times, shares, strict=True):
                    factors = (1 - time) * passed + time * lets
                    total += share * factors.prod(0) / factors
                total *= (lets - passed) * of_part[:, None]
                for slot in range(k):
                    np.add.at(result[start : start + rows].T, part.players[slot], total[slot])
    return result


def _weighted(leaves: Sequence[Leaves], seed: Array) -> list[tuple[Leaves, Array]]:
    """The leaves that the seed sees, and what each is worth to it."""
    found = []
    for group in leaves:
        weight = group.weight @ seed
        (kept,) = np.nonzero(weight)
        if len(kept):
            found.append((group if len(kept) == len(weight) else group.of(kept), weight[kept]))
    return found


@cache
def _shares(k: int) -> tuple[Array, Array]:
    """(a-1)! b! / (a+b)! and a! (b-1)! / (a+b)!, each (k+1, k+1) by a and b; 0 where a or b is 0."""
    gains = np.zeros((k + 1, k + 1))
    for a in range(1, k + 1):
        for b in range(k + 1 - a):
            gains[a, b] = np.exp(lgamma(a) + lgamma(b + 1) - lgamma(a + b + 1))
    return gains, gains.T.copy()
