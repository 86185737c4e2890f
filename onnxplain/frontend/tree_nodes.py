"""The tree ensembles of ai.onnx.ml, read from their nodes as onnxruntime computes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxplain.errors import UnsupportedModel
from onnxplain.graph.node import Node
from onnxplain.trees import MODES, Trees
from onnxplain.trees.ensemble import Array
from onnxplain.trees.score import TRANSFORMS

ADDED = ("SUM", "AVERAGE")
AGGREGATES = ("AVERAGE", "SUM", "MIN", "MAX")  # as TreeEnsemble counts them
# As onnxruntime counts those of TreeEnsemble (1.31). ONNX's text has SOFTMAX 1 and LOGISTIC 2.
POST_TRANSFORMS = ("NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO", "PROBIT")


def read_trees(node: Node) -> tuple[Trees, str]:
    """The trees of a node, and what it makes of their sum (its post_transform). Raises UnsupportedModel."""
    try:
        found, transform = READERS[node.op_type](node)
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise UnsupportedModel(f"{node}: its attributes do not fit together ({error}), so it is no trees.") from error
    if transform not in TRANSFORMS:
        raise UnsupportedModel(f"{node}: post_transform {transform} is not known here; known: {', '.join(TRANSFORMS)}.")
    return found, transform


def is_trees(node: ir.Node | Node) -> bool:
    """Whether a node is an ensemble of trees."""
    return node.domain == "ai.onnx.ml" and node.op_type in READERS


def _regressor(node: Node) -> tuple[Trees, str]:
    """TreeEnsembleRegressor, opsets 1 and 3."""
    outputs = int(node.attr("n_targets", 1))
    trees = _by_ids(node, "target", outputs)
    base = _numbers(node, "base_values")
    offset = np.zeros(outputs) if base is None else base
    if len(offset) != outputs:
        raise UnsupportedModel(f"{node}: {len(offset)} base_values for {outputs} targets.")
    return replace(trees, offset=offset), _text(node.attr("post_transform", "NONE"))


def _classifier(node: Node) -> tuple[Trees, str]:
    """TreeEnsembleClassifier, opsets 1 and 3. onnxruntime makes two scores of the one that binary models have."""
    labels = len(node.attr("classlabels_strings") or node.attr("classlabels_int64s") or ())
    trees = _by_ids(node, "class", labels)
    base, transform = _numbers(node, "base_values"), _text(node.attr("post_transform", "NONE"))
    base = np.zeros(0) if base is None else base
    seen = {int(c) for c in node.attr("class_ids")}
    if labels == 2 and len(base) < 2 and seen == {0}:
        weights = _numbers(node, "class_weights")
        assert weights is not None
        score = trees.weight[:, 0]
        shift = base[0] if len(base) else 0.0
        weight = np.stack([-score, score], 1)
        logistic = transform == "LOGISTIC"  # of one score onnxruntime knows no other transform
        probability = not logistic and (weights >= 0).all()  # it is taken for a probability p; 1 - p is the other's
        offset = np.array([1 - shift if probability else -shift, shift])
        return replace(trees, weight=weight, offset=offset), "LOGISTIC" if logistic else "NONE"
    if len(base) not in (0, labels) or (labels == 2 and len(base) == 2 and seen != {0}):
        raise UnsupportedModel(
            f"{node}: {len(base)} base_values and weights for {len(seen)} of {labels} classes: ONNX does not say what "
            "that means, and runtimes differ."
        )
    return replace(trees, offset=base if len(base) else np.zeros(labels)), transform


def _ensemble(node: Node) -> tuple[Trees, str]:
    """TreeEnsemble, opset 5: branches and leaves have indices of their own."""
    _added(node, AGGREGATES[int(node.attr("aggregate_function", 1))])
    feature = _integers(node, "nodes_featureids")
    count, leaves = len(feature), len(_integers(node, "leaf_targetids"))
    modes = np.asarray(_tensor(node.attr("nodes_modes")), np.int64).reshape(-1)
    splits = np.asarray(_tensor(node.attr("nodes_splits")), np.float64).reshape(-1)
    outputs = int(node.attr("n_targets"))
    weight = np.zeros((count + leaves, outputs))
    leaf_weights = np.asarray(_tensor(node.attr("leaf_weights")), np.float64).reshape(-1)
    weight[np.arange(count, count + leaves), _integers(node, "leaf_targetids")] = leaf_weights

    def child(side: str) -> Array:
        ids, is_leaf = _integers(node, f"nodes_{side}nodeids"), _integers(node, f"nodes_{side}leafs") != 0
        if (ids < 0).any() or (ids >= np.where(is_leaf, leaves, count)).any():
            raise UnsupportedModel(f"{node}: nodes_{side}nodeids has an index outside of its nodes or leaves.")
        return np.where(is_leaf, ids + count, ids)

    true, false, roots = child("true"), child("false"), _integers(node, "tree_roots")
    alone = (true == false)[roots] & (true >= count)[roots]  # a tree of one leaf is written as a branch with it twice
    roots = np.where(alone, true[roots], roots)
    none = np.full(leaves, -1)
    trees = Trees(
        name=str(node),
        feature=np.concatenate([feature, none]),
        mode=np.concatenate([modes, none]),
        threshold=np.concatenate([splits, np.zeros(leaves)]),
        true=np.concatenate([true, none]),
        false=np.concatenate([false, none]),
        missing_true=np.concatenate([_tracks(node, count), np.zeros(leaves, bool)]),
        roots=roots,
        weight=weight / (len(roots) if AGGREGATES[int(node.attr("aggregate_function", 1))] == "AVERAGE" else 1),
        offset=np.zeros(outputs),
        members=_members(node, modes),
    )
    return trees, POST_TRANSFORMS[int(node.attr("post_transform", 0))]


READERS: Mapping[str, Callable[[Node], tuple[Trees, str]]] = {
    "TreeEnsembleRegressor": _regressor,
    "TreeEnsembleClassifier": _classifier,
    "TreeEnsemble": _ensemble,
}


def _by_ids(node: Node, leaf: str, outputs: int) -> Trees:
    """Opsets 1 and 3: nodes by (tree, node), weights by those. leaf: how the attributes of weights begin."""
    aggregate = _text(node.attr("aggregate_function", "SUM"))
    _added(node, aggregate)
    tree, number = _integers(node, "nodes_treeids"), _integers(node, "nodes_nodeids")
    place = {key: index for index, key in enumerate(zip(tree.tolist(), number.tolist(), strict=True))}
    modes = [_text(mode) for mode in node.attr("nodes_modes")]
    branch = np.array([mode != "LEAF" for mode in modes])
    if unknown := sorted(set(modes) - {"LEAF", *(f"BRANCH_{mode}" for mode in MODES[:-1])}):
        raise UnsupportedModel(f"{node}: nodes_modes has {unknown[0]}, which is not known here.")

    def child(side: str) -> Array:
        ids = _integers(node, f"nodes_{side}nodeids").tolist()
        pairs = zip(tree.tolist(), ids, branch.tolist(), strict=True)
        return np.array([place[key, index] if inner else -1 for key, index, inner in pairs], np.int64)

    at = zip(_integers(node, f"{leaf}_treeids").tolist(), _integers(node, f"{leaf}_nodeids").tolist(), strict=True)
    leaves, ids, weights = [place[key] for key in at], _integers(node, f"{leaf}_ids"), _numbers(node, f"{leaf}_weights")
    values = _numbers(node, "nodes_values")
    if weights is None or values is None or not len(leaves) == len(ids) == len(weights):
        raise ValueError(f"{leaf}_weights, {leaf}_ids and {leaf}_nodeids are not as long as each other")
    weight = np.zeros((len(tree), outputs))
    np.add.at(weight, (np.asarray(leaves, np.int64), ids), weights)
    weight[branch] = 0.0
    roots = np.nonzero(np.diff(tree, prepend=tree[:1] - 1))[0]
    return Trees(
        name=str(node),
        feature=np.where(branch, _integers(node, "nodes_featureids"), -1),
        mode=np.array([MODES.index(mode[7:]) if mode != "LEAF" else -1 for mode in modes]),
        threshold=values,
        true=child("true"),
        false=child("false"),
        missing_true=_tracks(node, len(tree)),
        roots=roots,
        weight=weight / (len(roots) if aggregate == "AVERAGE" else 1),
        offset=np.zeros(outputs),
        cover=_numbers(node, "nodes_hitrates"),
    )


def _added(node: Node, aggregate: str) -> None:
    if aggregate not in ADDED:
        raise UnsupportedModel(
            f"{node}: aggregate_function {aggregate} takes one tree's answer for all. Shapley values of such a score "
            "are no sum over its trees; explain it by a method that only runs the model (`onnxplain methods`)."
        )


def _members(node: Node, modes: Array) -> dict[int, Array]:
    """Of each branch of mode MEMBER its values, which stand in a row, with NaN between two branches'."""
    if node.attr("membership_values") is None:
        return {}
    values = np.asarray(_tensor(node.attr("membership_values")), np.float64).reshape(-1)
    sets = np.split(values, np.nonzero(np.isnan(values))[0])
    sets = [part[~np.isnan(part)] for part in sets]
    return dict(zip(np.nonzero(modes == MODES.index("MEMBER"))[0].tolist(), sets, strict=False))


def _tracks(node: Node, count: int) -> Array:
    given = node.attr("nodes_missing_value_tracks_true")
    return np.zeros(count, bool) if given is None or not len(given) else np.asarray(given, np.int64) == 1


def _integers(node: Node, name: str) -> Array:
    given = node.attr(name)
    if given is None:
        raise UnsupportedModel(f"{node}: it has no {name}.")
    return np.asarray(given, np.int64)


def _numbers(node: Node, name: str) -> Array | None:
    """Numbers of an attribute, or of the tensor that stands for it since opset 3."""
    given = node.attr(name)
    if given is None or not len(given):
        tensor = node.attr(f"{name}_as_tensor")
        return None if tensor is None else np.asarray(_tensor(tensor), np.float64).reshape(-1)
    return np.asarray(given, np.float32).astype(np.float64)


def _tensor(tensor: Any) -> Array:
    return np.asarray(tensor.numpy())


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
