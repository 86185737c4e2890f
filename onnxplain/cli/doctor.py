"""`onnxplain doctor`: what this machine can do."""

from __future__ import annotations

import json
import os
import platform
import sys
from importlib import metadata
from typing import Any

import click
import onnx

from onnxplain import __version__
from onnxplain.cli.command import Command
from onnxplain.machine import cpus, free_memory_bytes, memory_bytes
from onnxplain.runtime.session import Session, describe_providers

PACKAGES = (
    "onnx",
    "onnx-ir",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "numpy",
    "pillow",
    "matplotlib",
    "grpcio",
    "protobuf",
)


@click.command("doctor", cls=Command)
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def doctor(as_json: bool) -> None:
    """Versions, providers, threads, memory; runs a small model to see that they work."""
    found = facts()
    failed = "ok" not in str(found["self-test"])
    if as_json:
        click.echo(json.dumps(found, indent=2))
        sys.exit(1 if failed else 0)
    for name, value in found.items():
        text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        click.echo(f"{name:<12} {text}")
    sys.exit(1 if failed else 0)


def facts() -> dict[str, Any]:
    """What `doctor` prints."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "onnxplain": __version__,
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "packages": versions,
        "providers": describe_providers(),
        "cpus": _of_machine(str(cpus()), str(os.cpu_count() or 1)),
        "memory": f"{_gigabytes(free_memory_bytes())} free of {_gigabytes(memory_bytes())}",
        "self-test": _self_test(),
    }


def _of_machine(usable: str, all_of_them: str) -> str:
    """What may be used, and what the machine has where that is more: a container, or an affinity, allows less."""
    return usable if usable == all_of_them else f"{usable} of the machine's {all_of_them}"


def _gigabytes(size: int) -> str:
    return f"{size / 2**30:.1f} GB"


def _self_test() -> str:
    """Run one Relu on whatever `auto` chooses."""
    import numpy as np

    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> g (float[2] x) => (float[2] y) { y = Relu(x) }'
    )
    session = Session(model.SerializeToString())
    (y,) = session.run({"x": np.array([-1, 1], np.float32)}).values()
    return f"{'ok' if y.tolist() == [0, 1] else 'WRONG RESULT'} on {session.providers[0]}"
