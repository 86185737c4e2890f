"""tree_shap against shap's TreeExplainer, on the exports of scikit-learn, XGBoost and LightGBM."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from onnxplain import Explainer

pytestmark = pytest.mark.oracle
NEEDED = ("shap", "sklearn", "skl2onnx", "onnxmltools", "xgboost", "lightgbm")
if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
    pytest.skip(f"not installed: {', '.join(missing)}", allow_module_level=True)

import lightgbm  # noqa: E402
import onnxmltools  # noqa: E402
import shap  # noqa: E402
import skl2onnx  # noqa: E402
import sklearn.datasets  # noqa: E402
import xgboost  # noqa: E402
from onnxmltools.convert.common.data_types import FloatTensorType  # noqa: E402
from sklearn import ensemble, tree  # noqa: E402

CLOSE = 1e-6  # of the largest value: our result is float32, and files hold float32 leaves where peers hold float64
ROWS, BACKGROUND = 40, 10


def data(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Ranks of the features: thresholds are halves then, which float32 holds, so file and library branch alike.

    A threshold between two neighbours of float32 is rounded to one of them in the file, and a row that lies there goes
    the other way.
    """
    loaders = {"two": "load_breast_cancer", "three": "load_wine", "number": "load_diabetes"}
    x, y = getattr(sklearn.datasets, loaders[kind])(return_X_y=True)
    ranks = [np.unique(column, return_inverse=True)[1] for column in x.T]
    return np.stack(ranks, 1).astype(np.float32), y


def sklearn_file(model: Any, x: np.ndarray) -> onnx.ModelProto:
    """Exported by skl2onnx, whose lists hold numpy's whole numbers and truth values, which newer onnx refuses."""
    make = onnx.helper.make_attribute

    def plain(key: str, value: Any, *rest: Any, **named: Any) -> onnx.AttributeProto:
        listed = isinstance(value, (list, tuple)) and value and isinstance(value[0], (bool, np.bool_, np.integer))
        return make(key, [int(v) for v in value] if listed else value, *rest, **named)

    onnx.helper.make_attribute = plain
    try:
        zipmap = {"zipmap": False} if hasattr(model, "classes_") else {}
        return skl2onnx.to_onnx(model, x[:1], options=zipmap)
    finally:
        onnx.helper.make_attribute = make


def xgboost_file(model: Any, x: np.ndarray) -> onnx.ModelProto:
    return onnxmltools.convert_xgboost(model, initial_types=[("X", FloatTensorType([None, x.shape[1]]))])


def lightgbm_file(model: Any, x: np.ndarray) -> onnx.ModelProto:
    kinds = [("X", FloatTensorType([None, x.shape[1]]))]
    return onnxmltools.convert_lightgbm(model, initial_types=kinds, zipmap=False)


MODELS: dict[str, tuple[str, Callable[[], Any], Callable[..., onnx.ModelProto]]] = {
    "forest, two classes": ("two", lambda: ensemble.RandomForestClassifier(30, random_state=0), sklearn_file),
    "forest, three classes": ("three", lambda: ensemble.RandomForestClassifier(30, random_state=0), sklearn_file),
    "forest, a number": ("number", lambda: ensemble.RandomForestRegressor(30, random_state=0), sklearn_file),
    "extra trees": ("number", lambda: ensemble.ExtraTreesRegressor(20, max_depth=8, random_state=0), sklearn_file),
    "decision tree": ("three", lambda: tree.DecisionTreeClassifier(random_state=0), sklearn_file),
    "boosting, two classes": ("two", lambda: ensemble.GradientBoostingClassifier(random_state=0), sklearn_file),
    "boosting, a number": ("number", lambda: ensemble.GradientBoostingRegressor(random_state=0), sklearn_file),
    "histogram boosting": ("number", lambda: ensemble.HistGradientBoostingRegressor(max_iter=30), sklearn_file),
    "xgboost, two classes": ("two", lambda: xgboost.XGBClassifier(n_estimators=30), xgboost_file),
    "xgboost, three classes": ("three", lambda: xgboost.XGBClassifier(n_estimators=30), xgboost_file),
    "xgboost, a number": ("number", lambda: xgboost.XGBRegressor(n_estimators=30), xgboost_file),
    "lightgbm, two classes": ("two", lambda: lightgbm.LGBMClassifier(n_estimators=30, verbose=-1), lightgbm_file),
    "lightgbm, three classes": ("three", lambda: lightgbm.LGBMClassifier(n_estimators=30, verbose=-1), lightgbm_file),
    "lightgbm, a number": ("number", lambda: lightgbm.LGBMRegressor(n_estimators=30, verbose=-1), lightgbm_file),
}


def by_class(values: Any) -> np.ndarray:
    """shap's answer as (classes, rows, features): one entry for a number and for the margin of two classes."""
    found = np.asarray(values)
    return found[None] if found.ndim == 2 else np.moveaxis(found, -1, 0)


@pytest.mark.parametrize("name", MODELS)
def test_interventional_values_equal_those_of_shap(name, tmp_path):
    kind, make, export = MODELS[name]
    x, y = data(kind)
    model = make().fit(x, y)
    path = tmp_path / "m.onnx"
    onnx.save(export(model, x), path)
    rows, background = x[:: len(x) // ROWS][:ROWS], x[5 :: len(x) // BACKGROUND][:BACKGROUND]
    explainer = shap.TreeExplainer(model, background.astype(np.float64), feature_perturbation="interventional")
    expected = by_class(explainer.shap_values(rows.astype(np.float64), check_additivity=False))
    first = 1 if kind == "two" and len(expected) == 1 else 0
    targets = list(range(first, first + len(expected)))
    found = Explainer(path, "tree_shap", baseline="background", background=background).explain(rows, targets).relevance
    found = found.reshape(expected.shape)
    assert np.abs(found - expected).max() <= CLOSE * np.abs(expected).max()


@pytest.mark.parametrize("name", ["forest, a number", "boosting, a number", "extra trees"])
def test_path_dependent_values_equal_those_of_shap_where_the_file_has_covers(name, tmp_path):
    """No exporter writes them: the trees' own counts are put into the file here, as nodes_hitrates."""
    kind, make, export = MODELS[name]
    x, y = data(kind)
    model = make().fit(x, y)
    file = export(model, x)
    trees = [getattr(estimator, "tree_", estimator) for estimator in np.ravel(model.estimators_)]
    trees = [estimator if hasattr(estimator, "children_left") else estimator.tree_ for estimator in trees]
    covers = matched(file.graph.node[0], trees)
    kept = [a for a in file.graph.node[0].attribute if a.name != "nodes_hitrates"]
    del file.graph.node[0].attribute[:]
    file.graph.node[0].attribute.extend([*kept, onnx.helper.make_attribute("nodes_hitrates", covers)])
    onnx.save(file, tmp_path / "m.onnx")
    rows = x[:: len(x) // ROWS][:ROWS]
    explainer = shap.TreeExplainer(model, feature_perturbation="tree_path_dependent")
    expected = explainer.shap_values(rows.astype(np.float64), check_additivity=False)
    ours = Explainer(tmp_path / "m.onnx", "tree_shap", perturbation="path_dependent").explain(rows, 0).relevance
    assert np.abs(ours - expected).max() <= CLOSE * np.abs(expected).max()


def matched(node: onnx.NodeProto, trees: list[Any]) -> list[float]:
    """Counts of training rows in the order of the node's nodes, walking both from the roots."""
    given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    place = {key: n for n, key in enumerate(zip(given["nodes_treeids"], given["nodes_nodeids"], strict=True))}
    covers = [0.0] * len(place)
    for t, estimator in enumerate(trees):
        pending = [(0, 0)]
        while pending:
            theirs, ours = pending.pop()
            index = place[t, ours]
            covers[index] = float(estimator.weighted_n_node_samples[theirs])
            if estimator.children_left[theirs] >= 0:
                pending.append((estimator.children_left[theirs], given["nodes_truenodeids"][index]))
                pending.append((estimator.children_right[theirs], given["nodes_falsenodeids"][index]))
    return covers
