"""An MLflow tracking server: the model logged with its recipe and its compiled graph, and registered."""

from __future__ import annotations

import importlib.util
import os

from onnxplain.errors import Unavailable, UsageError
from onnxplain.exports.registry import Exported, ExportJob, ExportOption, export_target


def _check() -> None:
    if importlib.util.find_spec("mlflow") is None:
        raise UsageError("--mlflow needs MLflow, which is not installed: pip install 'onnxplain[mlflow]'.")


@export_target(
    ExportOption("mlflow", "Log and register MODEL at an MLflow tracking server.", metavar="URI"),
    takes=["recipe"],
    check=_check,
)
def to_mlflow(job: ExportJob, uri: str) -> Exported:
    """Where it is now, and its version. Raises UsageError, Unavailable."""
    name, files = job.resolved.name, job.resolved.settings.files
    if len(files) > 1:
        raise UsageError(
            f"--mlflow stores one model.toml, and {name} has {len(files)}: {', '.join(map(str, files))}. Put "
            "all keys into one of them."
        )
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # MLflow's own 7 keep a user waiting for minutes
    import mlflow  # type: ignore[import-not-found, unused-ignore]

    from onnxplain.mlflow import log_model  # imports MLflow, which takes seconds and may not be there

    mlflow.set_tracking_uri(uri)
    try:
        info = log_model(
            job.explainer,
            name,
            recipe=job.explainer.recipe,
            settings=files[0] if files else None,
            registered_model_name=name,
        )
    except mlflow.exceptions.MlflowException as error:
        reason = " ".join(str(error).split())
        raise Unavailable(f"MLflow at {uri} did not take {name}: {reason[:300]}") from error
    return Exported(f"{info.model_uri}  registered as {name}, version {info.registered_model_version}")
