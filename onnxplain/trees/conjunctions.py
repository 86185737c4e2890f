"""Leaves as conjunctions: a row reaches a leaf if, for every player on the way to it, all branches let it by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from onnxplain.trees.ensemble import CELLS, Array, Trees


@dataclass(frozen=True, eq=False)
class Leaves:
    """Leaves with the same number k of players on the way to them.

    players (k, leaves). weight (leaves, scores). passed (k, leaves): share of the training rows that the branches of
    a player let by on the way, NaN where covers are not known. turns: (slots, rows of `packed` to take there), each
    slot the position in (k, leaves) made flat; the first has all slots, the others those with more branches.
    """

    players: Array
    weight: Array
    passed: Array
    turns: tuple[tuple[Array, Array], ...]

    def lets(self, turns: Array) -> Array:
        """Whether the branches of each player let each row by, eight rows to a byte (k, leaves, bytes).

        turns: see `packed`.
        """
        (_, first), *more = self.turns
        found = turns[first]
        for slots, indices in more:
            found[slots] &= turns[indices]
        return found.reshape(*self.players.shape, -1)

    def of(self, kept: Array) -> Leaves:
        """Some of the leaves. kept: their indices, rising."""
        count = self.players.shape[1]
        place = np.full(count, -1)
        place[kept] = np.arange(len(kept))
        turns = []
        for slots, indices in self.turns:
            moved = place[slots % count]
            stays = moved >= 0
            turns.append(((slots // count * len(kept) + moved)[stays], indices[stays]))
        return Leaves(self.players[:, kept], self.weight[kept], self.passed[:, kept], tuple(turns))

    def parts(self, cells: int, rows: int) -> Iterator[Leaves]:
        """The same in pieces of about `cells` numbers for so many rows."""
        k, count = self.players.shape
        step = max(1, cells // max(1, k * rows))
        if step >= count:
            yield self
            return
        for start in range(0, count, step):
            yield self.of(np.arange(start, min(start + step, count)))


def packed(trees: Trees, x: Array) -> Array:
    """Decisions of all nodes, then their opposites, eight rows to a byte: uint8 (2 nodes, bytes). x (rows, columns)."""
    step = max(8, CELLS // max(1, len(trees.feature)) // 8 * 8)
    parts = [np.packbits(trees.decisions(x[begun : begun + step]), axis=1) for begun in range(0, len(x), step)]
    bits = np.concatenate(parts, axis=1)
    return np.concatenate([bits, ~bits])


def conjunctions(trees: Trees, player: Array) -> list[Leaves]:
    """All leaves below at least one branch, by their number of players. player (columns,): whose each feature is.

    Every leaf below roots alone is worth the same to every row, and no player's. Raises UnsupportedModel.
    """
    node, parent, side = trees.unfolded()
    (leaves,) = np.nonzero((trees.true[node] < 0) & (parent >= 0))
    parts, at = [], leaves
    owner = np.arange(len(leaves))
    while len(at):  # up from all leaves at once
        above = parent[at]
        inner = above >= 0
        owner, at, above = owner[inner], at[inner], above[inner]
        parts.append((owner, node[above], side[at], at, above))
        at = above
    owner, branch, true, below, above = (np.concatenate(column) for column in zip(*parts, strict=True))
    players = int(player.max(initial=0)) + 1
    keys, slot = np.unique(owner * players + player[trees.feature[branch]], return_inverse=True)
    leaf_of, player_of = keys // players, keys % players
    turn = branch + np.where(true, 0, len(trees.feature))
    passed = np.full(len(keys), np.nan)
    if trees.cover is not None:
        passed = np.ones(len(keys))
        np.multiply.at(passed, slot, trees.cover[node[below]] / np.maximum(trees.cover[node[above]], 1e-300))
    order = np.argsort(slot, kind="stable")
    slot, turn = slot[order], turn[order]
    begin = np.searchsorted(slot, np.arange(len(keys)))
    nth = np.arange(len(slot)) - begin[slot]  # which branch of its slot
    counts = np.bincount(leaf_of, minlength=len(leaves))
    first = np.cumsum(counts) - counts
    found = []
    for k in np.unique(counts):
        (group,) = np.nonzero(counts == k)
        slots = first[group] + np.arange(k)[:, None]  # (k, leaves)
        place = np.full(len(keys), -1)
        place[slots.reshape(-1)] = np.arange(slots.size)
        turns = []
        for n in range(int(nth.max()) + 1):
            (chosen,) = np.nonzero((nth == n) & (place[slot] >= 0))
            chosen = chosen[np.argsort(place[slot[chosen]], kind="stable")]
            if len(chosen):
                turns.append((place[slot[chosen]], turn[chosen]))
        weight = trees.weight[node[leaves[group]]]
        found.append(Leaves(player_of[slots], weight, passed[slots], tuple(turns)))
    return found
