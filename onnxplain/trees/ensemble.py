"""Decision trees whose answers are added up, as arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxplain.errors import UnsupportedModel

Array = NDArray[Any]
MODES = ("LEQ", "LT", "GTE", "GT", "EQ", "NEQ", "MEMBER")
"""What a branch asks of its feature, in the order of the modes of ONNX's TreeEnsemble; true goes to the true child."""
COMPARED = {
    "LEQ": np.less_equal, "LT": np.less, "GTE": np.greater_equal, "GT": np.greater, "EQ": np.equal, "NEQ": np.not_equal,
}  # fmt: skip
UNFOLDED = 16  # times the nodes: branches may share what is below them; more than that is a circle or a bomb
CELLS = 1 << 22  # numbers held at once while rows go through the trees


@dataclass(frozen=True, eq=False)
class Trees:
    """Nodes of all trees side by side; a row's score is `offset` plus the weights of the leaf it reaches in each tree.

    feature, mode, threshold, true, false, missing_true: (nodes,), of branches; mode is an index in MODES, the children
    are indices of nodes, and -1 at a leaf. members: of a branch of mode MEMBER, the values that go to the true child.
    missing_true: where NaN goes there too. weight: (nodes, scores), zero at branches. roots: (trees,). offset:
    (scores,). cover: (nodes,) how many training rows reached each; None where the file does not say.
    """

    name: str
    feature: Array
    mode: Array
    threshold: Array
    true: Array
    false: Array
    missing_true: Array
    roots: Array
    weight: Array
    offset: Array
    members: Mapping[int, Array] = field(default_factory=dict)
    cover: Array | None = None

    @property
    def columns(self) -> int:
        """How many features a row needs at least."""
        return int(self.feature[self.true >= 0].max(initial=-1)) + 1

    def decisions(self, x: Array) -> Array:
        """Whether each row goes to the true child of each node, bool (nodes, rows); at leaves false. x (rows, columns).

        Compared in float64: a threshold and a feature of float32 compare there as they do in float32.
        """
        columns = np.ascontiguousarray(np.asarray(x, np.float64).T)
        found = np.zeros((len(self.feature), len(x)), bool)
        for nodes in self._alike:
            name, values = MODES[self.mode[nodes[0]]], columns[self.feature[nodes[0]]]
            if name == "MEMBER":
                found[nodes] = [np.isin(values, self.members[node]) for node in nodes]
            else:
                found[nodes] = COMPARED[name](values, self.threshold[nodes, None])
            if (missing := np.isnan(values)).any():
                found[nodes] |= missing & self.missing_true[nodes, None]
        return found

    @cached_property
    def _alike(self) -> list[Array]:
        """Branches of the same mode on the same feature."""
        (branches,) = np.nonzero(self.true >= 0)
        key = self.mode[branches] * (self.columns + 1) + self.feature[branches]
        order = np.argsort(key, kind="stable")
        return np.split(branches[order], np.nonzero(np.diff(key[order]))[0] + 1) if len(branches) else []

    def scores(self, x: Array) -> Array:
        """What the trees add up to, float64 (rows, scores). x (rows, columns)."""
        step = max(1, CELLS // (8 * max(1, len(self.roots) * len(self.offset))))
        parts = [self._scores(x[start : start + step]) for start in range(0, len(x), step)]
        return np.concatenate(parts) if parts else np.zeros((0, len(self.offset)))

    def _scores(self, x: Array) -> Array:
        columns = np.ascontiguousarray(np.asarray(x, np.float64).T)
        row, at = np.tile(np.arange(len(x)), len(self.roots)), np.repeat(self.roots, len(x))
        (on_way,) = np.nonzero(self.true[at] >= 0)
        while len(on_way):  # all rows through all trees, a branch at a time
            nodes = at[on_way]
            went = self._true(nodes, columns[self.feature[nodes], row[on_way]])
            at[on_way] = moved = np.where(went, self.true[nodes], self.false[nodes])
            on_way = on_way[self.true[moved] >= 0]
        total: Array = self.weight[at].reshape(len(self.roots), len(x), len(self.offset)).sum(0)
        return total + self.offset

    def _true(self, nodes: Array, values: Array) -> Array:
        """Whether each value goes to the true child of its node, bool like both."""
        found, modes = np.isnan(values) & self.missing_true[nodes], self.mode[nodes]
        for index in np.flatnonzero(np.bincount(modes)):
            of_mode = modes == index
            if MODES[index] == "MEMBER":
                for node in np.unique(nodes[of_mode]):
                    here = nodes == node
                    found[here] |= np.isin(values[here], self.members[int(node)])
            elif of_mode.all():
                found |= COMPARED[MODES[index]](values, self.threshold[nodes])
            else:
                found[of_mode] |= COMPARED[MODES[index]](values[of_mode], self.threshold[nodes[of_mode]])
        return found

    def unfolded(self) -> tuple[Array, Array, Array]:
        """Every way from a root to a node: (node, index of the way to its parent or -1, whether by the true child).

        Of a tree these are its nodes; a child of two branches comes twice. Raises UnsupportedModel for a circle.
        """
        nodes, parents, sides = [self.roots], [np.full(len(self.roots), -1)], [np.zeros(len(self.roots), bool)]
        begun, total = 0, len(self.roots)
        while len(nodes[-1]):
            (open_,) = np.nonzero(self.true[nodes[-1]] >= 0)
            at = nodes[-1][open_]
            parent = begun + open_
            begun = total
            nodes.append(np.concatenate([self.true[at], self.false[at]]))
            parents.append(np.concatenate([parent, parent]))
            sides.append(np.repeat([True, False], len(at)))
            total += 2 * len(at)
            if total > UNFOLDED * len(self.feature) + 1024:
                raise UnsupportedModel(
                    f"{self.name}: its branches run in a circle, or share so many nodes that {len(self.feature)} of "
                    f"them make more than {total} ways: no trees that can be explained."
                )
        return np.concatenate(nodes), np.concatenate(parents), np.concatenate(sides)


def side_by_side(parts: Sequence[Trees]) -> Trees:
    """All trees of several ensembles with as many scores, as one."""
    if len(parts) == 1:
        return parts[0]
    begins = np.cumsum([0, *(len(part.feature) for part in parts)])[:-1]
    joined: dict[str, Array] = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("feature", "mode", "threshold", "missing_true", "weight")
    }
    for name in ("true", "false", "roots"):
        moved = [
            np.where(ids >= 0, ids + n, ids) for n, ids in zip(begins, (getattr(p, name) for p in parts), strict=True)
        ]
        joined[name] = np.concatenate(moved)
    covers = [part.cover for part in parts if part.cover is not None]
    return Trees(
        name=", ".join(part.name for part in parts),
        offset=np.sum([part.offset for part in parts], 0),
        members={
            node + int(n): ids for n, part in zip(begins, parts, strict=True) for node, ids in part.members.items()
        },
        cover=np.concatenate(covers) if len(covers) == len(parts) else None,
        **joined,
    )


def scaled(trees: Trees, factor: float | Array, shift: Array) -> Trees:
    """Scores times a factor, plus a shift; each one number or one for each score."""
    return replace(trees, weight=trees.weight * factor, offset=trees.offset * factor + shift)
