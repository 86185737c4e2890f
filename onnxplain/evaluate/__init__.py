"""How good an explanation is, in numbers. Arrays only. Importing this package registers the metrics of its modules."""

from onnxplain.evaluate.registry import METRICS, Judged, Metric, data_metric, metric
from onnxplain.registry import import_modules

import_modules(__name__)

__all__ = ["METRICS", "Judged", "Metric", "data_metric", "metric"]
