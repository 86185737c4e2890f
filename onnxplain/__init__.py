"""Give it any ONNX model; it writes a second ONNX model that returns the first one's answer and the reasons for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from onnxplain.explainer import Explainer
    from onnxplain.explanation import Explanation

__all__ = ["Explainer", "Explanation", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Explainer":
        from onnxplain.explainer import Explainer

        return Explainer
    if name == "Explanation":
        from onnxplain.explanation import Explanation

        return Explanation
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
