"""Fixtures of the comparisons: each network is exported once a session."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

NEEDED = (
    "torch", "zennit", "captum", "onnx_ad", "tqdm", "saliency", "scipy", "shap", "pytorch_grad_cam", "sklearn",
    "skl2onnx", "onnxmltools", "xgboost", "lightgbm", "lime", "dianna", "skimage", "xarray",
)  # fmt: skip
missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
collect_ignore_glob = ["test_*.py"] if missing else []


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if missing:
        terminalreporter.write_line(
            f"oracle tests left out, not installed: {', '.join(missing)} (tests/oracle/install)"
        )


# Small enough for a minute of CI: every layer of the full network is there.
REDUCED = {
    "vgg16": {"width": 0.25, "size": 64},
    "alexnet": {"width": 0.25, "size": 127},
    "resnet50": {"width": 0.25, "size": 64},
    "mobilenet_v2": {"width": 0.5, "size": 64},
}


@pytest.fixture(scope="session")
def network(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Any, Path]]:
    """(name, full=False, merged=False, build={}, **export options) -> (torch model, path of its ONNX file).

    full: the real width and 224 pixels. merged: batch norms merged in torch, so that both sides hold the same weights.
    """
    from . import networks

    folder = tmp_path_factory.mktemp("networks")
    known: dict[str, tuple[Any, Path]] = {}

    def get(name: str, full: bool = False, merged: bool = False, build: dict | None = None, **options: Any):
        key = repr((name, full, merged, build, sorted(options.items())))
        if key not in known:
            model = networks.NETWORKS[name](**({} if full else REDUCED.get(name, {})), **(build or {}))
            model = networks.folded(model) if merged else model
            known[key] = model, networks.export(model, folder / f"{len(known)}.{name}.onnx", **options)
        return known[key]

    return get
