"""The evaluator `onnxplain` of `mlflow.models.evaluate(model, data, evaluators=["onnxplain"])`."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mlflow import MlflowClient  # type: ignore[import-not-found, unused-ignore]
from mlflow.models.evaluation import (  # type: ignore[import-not-found, unused-ignore]
    EvaluationArtifact,
    EvaluationResult,
    ModelEvaluator,
)

from onnxplain.errors import InputError, UnknownName, UnsupportedModel, UsageError
from onnxplain.evaluate.measure import Measured, measure
from onnxplain.inputs import InputSpec
from onnxplain.inputs.tables import Columns, from_table, is_table, shaped
from onnxplain.mlflow.flavor import load_explainer
from onnxplain.runtime.session import Array

log = logging.getLogger(__name__)
PREFIX = "onnxplain/"
FILE = "onnxplain_evaluation.json"
DEFAULTS: dict[str, Any] = {"model": "", "rows": 100, "baseline": 0.0, "random_seed": 0, "provider": "auto"}


class JsonArtifact(EvaluationArtifact):  # type: ignore[misc, unused-ignore]
    """The numbers of every row."""

    def _save(self, output_artifact_path: str) -> None:
        Path(output_artifact_path).write_text(json.dumps(self._content), encoding="utf-8")

    def _load_content_from_file(self, local_artifact_path: str) -> Any:
        self._content = json.loads(Path(local_artifact_path).read_text("utf-8"))
        return self._content


class OnnxplainEvaluator(ModelEvaluator):  # type: ignore[misc, unused-ignore]
    """Judges the explanations of an ONNX model by its logged recipe: metrics `onnxplain/…` and one JSON artifact.

    evaluator_config: model (address, where the evaluated model was not loaded from one that MLflow knows), rows (at
    most so many are explained), baseline (of deleted features, in model units), random_seed, provider.
    """

    @classmethod
    def can_evaluate(cls, *, model_type: Any, evaluator_config: Any, **kwargs: Any) -> bool:
        """Any type of model: whether it is an ONNX one shows when it is there."""
        return True

    def evaluate(
        self,
        *,
        model_type: Any,
        dataset: Any,
        run_id: str,
        evaluator_config: Mapping[str, Any] | None,
        model: Any = None,
        model_id: str | None = None,
        **kwargs: Any,
    ) -> EvaluationResult | None:
        """Log and return the metrics; None for a model that is not ONNX, as MLflow asks every evaluator by default."""
        config = _checked(evaluator_config or {})
        flavors = getattr(getattr(model, "metadata", None), "flavors", {})
        if not config["model"] and "onnx" not in flavors:
            return None
        model_id = model_id or getattr(model, "model_id", None)
        uri = str(config["model"]) or (f"models:/{model_id}" if model_id else "")
        if not uri:
            raise UsageError(
                "MLflow does not say where this model came from: "
                "give evaluator_config={'onnxplain': {'model': 'models:/NAME/VERSION'}}."
            )
        try:
            explainer = load_explainer(uri, provider=config["provider"], ledger=True)
        except UnsupportedModel as error:
            log.warning("onnxplain cannot explain %s: %s", uri, error)
            return None
        feeds = arrays(dataset.features_data, explainer.subject.inputs, int(config["rows"]), explainer.columns)
        found = measure(explainer, feeds, float(config["baseline"]), int(config["random_seed"]))
        content = _content(found, uri, explainer.recipe.toml(), config)
        return _logged(found, content, run_id, model_id)


def arrays(features: Any, specs: Sequence[InputSpec], rows: int, columns: Columns) -> dict[str, Array]:
    """Feeds from MLflow's data: a table by the names of its columns, an array for the one input. Raises InputError.

    Each row is put into the input's shape, because MLflow's tables are two-dimensional.
    """
    table = features[:rows]
    if is_table(table):
        return from_table(table, specs, columns, "the data")
    if len(specs) != 1:
        names = ", ".join(spec.name for spec in specs)
        raise InputError(f"the data is one array; a model with several inputs takes a column of each: {names}.")
    return {specs[0].name: shaped(np.asarray(table), specs[0])}


def _checked(config: Mapping[str, Any]) -> dict[str, Any]:
    for key in config:
        if key not in DEFAULTS:
            raise UnknownName("key of evaluator_config", str(key), DEFAULTS)
    checked = {**DEFAULTS, **config}
    if int(checked["rows"]) < 1:
        raise UsageError(f"evaluator_config: rows = {checked['rows']}; explain at least one.")
    return checked


def _content(found: Measured, uri: str, recipe: str, config: Mapping[str, Any]) -> dict[str, Any]:
    return {"model": uri, "recipe": recipe, "config": dict(config), "metrics": found.metrics, "rows": found.rows}


def _logged(found: Measured, content: dict[str, Any], run_id: str, model_id: str | None) -> EvaluationResult:
    client = MlflowClient()
    metrics = {PREFIX + name: value for name, value in found.metrics.items() if np.isfinite(value)}
    for name, value in metrics.items():
        client.log_metric(run_id, name, value, model_id=model_id)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / FILE
        file.write_text(json.dumps(content, indent=2), encoding="utf-8")
        client.log_artifact(run_id, str(file))
    uri = f"{client.get_run(run_id).info.artifact_uri}/{FILE}"
    return EvaluationResult(metrics, {FILE.removesuffix(".json"): JsonArtifact(uri, content)})
