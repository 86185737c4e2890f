"""Random tree ensembles as ONNX models of one node, of every version of the op."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

MODES = ("LEQ", "LT", "GTE", "GT", "EQ", "NEQ")
POSTS = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO")
THRESHOLDS = np.array([-1.0, -0.5, 0.0, 0.25, 0.5, 1.0], np.float32)  # few, so that features meet them


def tree(rng: np.random.Generator, features: int, depth: int, modes=("LEQ",)) -> list[dict]:
    """Nodes of one tree: branches have feature, mode, value, true, false, missing; leaves have `rows` only.

    rows: of the training, the root's are split at random.
    """
    nodes: list[dict] = []

    def grow(left: int, rows: int) -> int:
        index = len(nodes)
        nodes.append({"rows": rows})
        if left and rows >= 2 and (left == depth or rng.random() < 0.85):
            to_true = int(rng.integers(1, rows))
            mode = str(rng.choice(modes))
            found = {"feature": int(rng.integers(features)), "mode": mode, "value": float(rng.choice(THRESHOLDS))}
            found |= {"missing": int(rng.integers(2)), "members": rng.choice(4, 2, replace=False).astype(np.float32)}
            found |= {"true": grow(left - 1, to_true), "false": grow(left - 1, rows - to_true)}
            nodes[index] |= found
        return index

    grow(depth, 1000)
    return nodes


def table(rng: np.random.Generator, rows: int, features: int, missing: float = 0.1) -> np.ndarray:
    """Rows on, between and beyond the thresholds, some of them NaN; float32 (rows, features)."""
    x = rng.choice(THRESHOLDS, (rows, features)) + rng.choice([-0.1, 0.0, 0.1], (rows, features))
    x[rng.random(x.shape) < missing] = np.nan
    return x.astype(np.float32)


def by_ids(
    op_type: str, trees: list[list[dict]], weights: list[dict], features: int, scores: int, opset: int = 3,
    double: bool = False, covers: bool = False, base: np.ndarray | None = None, **attributes,
) -> onnx.ModelProto:  # fmt: skip
    """TreeEnsembleRegressor or -Classifier. weights: of each tree, leaf -> {score: weight}."""
    flat = [(t, n, node) for t, nodes in enumerate(trees) for n, node in enumerate(nodes)]
    leaf = "class" if "Classifier" in op_type else "target"
    at = [(t, n, s, w) for t, by_leaf in enumerate(weights) for n, of in by_leaf.items() for s, w in of.items()]
    given = {
        "nodes_treeids": [t for t, _, _ in flat],
        "nodes_nodeids": [n for _, n, _ in flat],
        "nodes_featureids": [node.get("feature", 0) for *_, node in flat],
        "nodes_modes": [f"BRANCH_{node['mode']}" if "mode" in node else "LEAF" for *_, node in flat],
        "nodes_truenodeids": [node.get("true", 0) for *_, node in flat],
        "nodes_falsenodeids": [node.get("false", 0) for *_, node in flat],
        "nodes_missing_value_tracks_true": [node.get("missing", 0) for *_, node in flat],
        f"{leaf}_treeids": [t for t, *_ in at],
        f"{leaf}_nodeids": [n for _, n, _, _ in at],
        f"{leaf}_ids": [s for _, _, s, _ in at],
    }
    numbers = {"nodes_values": [node.get("value", 0.0) for *_, node in flat], f"{leaf}_weights": [w for *_, w in at]}
    numbers |= {"nodes_hitrates": [float(node["rows"]) for *_, node in flat]} if covers else {}
    numbers |= {} if base is None else {"base_values": list(map(float, base))}
    for name, values in numbers.items():
        if double:
            given[f"{name}_as_tensor"] = numpy_helper.from_array(np.array(values), name)
        else:
            given[name] = values
    if leaf == "target":
        given["n_targets"] = scores
    else:
        given["classlabels_int64s"] = list(range(scores))
    node = helper.make_node(
        op_type, ["x"], ["y"] if leaf == "target" else ["label", "y"], name="trees", domain="ai.onnx.ml",
        **given, **attributes,
    )  # fmt: skip
    return model(node, features, scores, opset, double)


def ensemble(
    trees: list[list[dict]], weights: list[dict], features: int, scores: int, double: bool = False, **attributes
) -> onnx.ModelProto:
    """TreeEnsemble of opset 5, where branches and leaves are counted apart. Each leaf has a weight for one score."""
    kind = np.float64 if double else np.float32
    branches = [(t, n) for t, nodes in enumerate(trees) for n, node in enumerate(nodes) if "mode" in node]
    leaves = [(t, n) for t, nodes in enumerate(trees) for n, node in enumerate(nodes) if "mode" not in node]
    of = [trees[t][n] for t, n in branches]

    def child(side: str) -> tuple[list[int], list[int]]:
        to = [(t, trees[t][n][side]) for t, n in branches]
        return [branches.index(a) if a in branches else leaves.index(a) for a in to], [int(a in leaves) for a in to]

    (true, true_leaf), (false, false_leaf) = child("true"), child("false")
    modes = [(*MODES, "MEMBER").index(node["mode"]) for node in of]
    members = [[*node["members"], np.nan] for node in of if node["mode"] == "MEMBER"]
    found = [next(iter(weights[t][n].items())) for t, n in leaves]
    tensors = {"nodes_splits": np.array([node["value"] for node in of], kind)}
    tensors |= {"nodes_modes": np.array(modes, np.uint8), "leaf_weights": np.array([w for _, w in found], kind)}
    tensors |= {"membership_values": np.concatenate(members).astype(kind)} if members else {}
    node = helper.make_node(
        "TreeEnsemble", ["x"], ["y"], name="trees", domain="ai.onnx.ml", n_targets=scores,
        tree_roots=[branches.index((t, 0)) for t in range(len(trees))],
        nodes_featureids=[node["feature"] for node in of], nodes_truenodeids=true, nodes_trueleafs=true_leaf,
        nodes_falsenodeids=false, nodes_falseleafs=false_leaf, leaf_targetids=[s for s, _ in found],
        nodes_missing_value_tracks_true=[node["missing"] for node in of],
        **{name: numpy_helper.from_array(array, name) for name, array in tensors.items()}, **attributes,
    )  # fmt: skip
    return model(node, features, scores, 5, double)


def model(node: onnx.NodeProto, features: int, scores: int, opset: int, double: bool = False) -> onnx.ModelProto:
    """A model of one node from x to y."""
    kind = onnx.TensorProto.DOUBLE if double else onnx.TensorProto.FLOAT
    info = helper.make_tensor_value_info
    outputs = [info("y", kind if opset == 5 else onnx.TensorProto.FLOAT, ["N", scores])]
    outputs = [info("label", onnx.TensorProto.INT64, ["N"])] * (len(node.output) - 1) + outputs
    graph = helper.make_graph([node], "g", [info("x", kind, ["N", features])], outputs)
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", opset)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def random_weights(rng: np.random.Generator, trees: list[list[dict]], scores: list[int], each: bool = True) -> list:
    """Of each tree, leaf -> {score: weight}; each: for every score, else for one of them."""
    found = []
    for nodes in trees:
        leaves = [n for n, node in enumerate(nodes) if "mode" not in node]
        of = {n: scores if each else [int(rng.choice(scores))] for n in leaves}
        found.append({n: {s: float(np.float32(rng.normal())) for s in chosen} for n, chosen in of.items()})
    return found


def regressor(
    rng: np.random.Generator,
    features: int = 4,
    count: int = 5,
    depth: int = 4,
    scores: int = 1,
    modes=("LEQ",),
    **given,
) -> onnx.ModelProto:
    """A random TreeEnsembleRegressor."""
    trees = [tree(rng, features, depth, modes) for _ in range(count)]
    weights = random_weights(rng, trees, list(range(scores)))
    return by_ids("TreeEnsembleRegressor", trees, weights, features, scores, **given)
