"""Give it any ONNX model; it writes a second ONNX model that returns the first one's answer and the reasons for it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from onnxplain.client import AsyncClient, Client
    from onnxplain.compile.chain import chain
    from onnxplain.compile.cut import cut
    from onnxplain.explainer import Explainer
    from onnxplain.explanation import Explanation

__all__ = ["AsyncClient", "Client", "Explainer", "Explanation", "__version__", "chain", "cut"]

LAZY = {  # name -> its module, imported when it is asked for: each needs something else
    "AsyncClient": "onnxplain.client",
    "Client": "onnxplain.client",
    "Explainer": "onnxplain.explainer",
    "Explanation": "onnxplain.explanation",
    "chain": "onnxplain.compile.chain",
    "cut": "onnxplain.compile.cut",
}


def __getattr__(name: str) -> Any:
    if name in LAZY:
        return getattr(importlib.import_module(LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
