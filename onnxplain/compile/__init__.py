"""Forward + backward → one model: names, seeds, relevances, ledger, provenance."""

from onnxplain.compile.analysis import batch_axes
from onnxplain.compile.assemble import Compiled, Propagation, compile_graph
from onnxplain.compile.contract import Request, Resolved, require_reached, resolve
from onnxplain.compile.looked_up import looked_up

__all__ = [
    "Compiled",
    "Propagation",
    "Request",
    "Resolved",
    "batch_axes",
    "compile_graph",
    "looked_up",
    "require_reached",
    "resolve",
]
