"""MLflow: a model logged with its recipe and its compiled graph, loaded as an Explainer, and judged by an evaluator.

`log_model` writes what `mlflow.onnx.log_model` writes and the flavor `onnxplain` beside it, so that `mlflow models
serve` and `mlflow.pyfunc.load_model` work without onnxplain.
"""

from importlib import import_module

try:
    import_module("mlflow")
except ImportError as error:
    raise ImportError("onnxplain.mlflow needs MLflow: pip install 'onnxplain[mlflow]'.") from error

from onnxplain.mlflow.flavor import load_explainer, log_model, save_model

__all__ = ["load_explainer", "log_model", "save_model"]
