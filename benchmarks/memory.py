"""Peak memory above idle of every method within a budget: each explanation in a process of its own.

    python benchmarks/memory.py [--out results/memory.md] [--budgets 256MB,1GB] [--methods a,b]

Idle is after model, graph and sessions are open; the peak is that of the process while it explains one sample of the
model, as Linux counts it (VmHWM, set back before). A method that does not take pictures of three channels is measured
on the model that it takes. Every answer has many looks, so that batches grow as they may.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

MODELS = Path(__file__).parents[1] / "models"
LOOKS = {"samples": 300, "masks": 300, "permutations": 8, "steps": 60}
ELSEWHERE = ("digits_vit", "digits_gru", "iris_mlp")
ONE_PASS_ROWS = 64  # pictures at once: they do not fit into a budget, so runs are cut


def measure(model: str, name: str, budget: str) -> dict[str, object]:
    """In this process: bytes above idle, and what was run."""
    from onnxplain import Explainer
    from onnxplain.errors import OnnxplainError
    from onnxplain.machine import resident_bytes
    from onnxplain.methods import METHODS

    options = {option: count for option, count in LOOKS.items() if option in METHODS[name].options}
    if name in ("lime", "kernel_shap"):
        options["samples"] = 600
    try:
        explainer = Explainer(MODELS / model / "1" / "model.onnx", name, memory=budget, **options)
    except OnnxplainError as error:
        return {"refused": str(error)}
    subject = explainer.subject
    (spec,) = subject.inputs
    shape = subject.normalised.reference.feeds[spec.name].shape
    rows = 1 if METHODS[name].family != "one-pass" else ONE_PASS_ROWS
    x = np.random.default_rng(0).random((rows, *shape[1:])).astype(np.float32)
    assert subject.session and (explainer._graph is None or explainer._graph.session)  # which opens them
    gc.collect()
    before = resident_bytes() or 0
    Path("/proc/self/clear_refs").write_text("5")
    try:
        explainer.explain(x)
    except OnnxplainError as error:
        return {"refused": str(error)}
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return {"bytes": int(peak.split()[1]) * 1024 - before, "idle": before}


def main() -> None:
    """Measure and write a table."""
    from onnxplain.methods import METHODS
    from onnxplain.runtime.memory_budget import nbytes_of

    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    parser.add_argument("--budgets", default="256MB,1GB")
    parser.add_argument("--methods", default="")
    parser.add_argument("--one", nargs=3)
    words = parser.parse_args()
    if words.one:
        print(json.dumps(measure(*words.one)))
        return
    budgets = words.budgets.split(",")
    lines = ["| method | model | " + " | ".join(f"{b}, above idle" for b in budgets) + " |"]
    lines.append("| --- | --- |" + " ---: |" * len(budgets))
    for name in words.methods.split(",") if words.methods else METHODS:
        for model in ("mobilenet_v2", *ELSEWHERE):
            cells = []
            for budget in budgets:
                command = [sys.executable, __file__, "--one", model, name, budget]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    cells.append("failed: " + done.stderr.strip().splitlines()[-1][:120])
                    continue
                found = json.loads(done.stdout.strip().splitlines()[-1])
                if "refused" in found:
                    cells.append(found["refused"][:160])
                else:
                    share = found["bytes"] / nbytes_of(budget)
                    cells.append(f"{found['bytes'] / 1e6:.0f} MB ({share:.0%}){' OVER' if share > 1.2 else ''}")
            lines.append(f"| {name} | {model} | " + " | ".join(cells) + " |")
            print(lines[-1], flush=True)
            if " MB (" in lines[-1] and "give at least" not in lines[-1]:
                break  # else a model that it takes
    if words.out:
        words.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
