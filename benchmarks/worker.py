"""One contender in one process: it says "ready", then answers every "go" line with the seconds one run took.

Separate processes, because the thread pools of torch and onnxruntime slow each other down inside one. A worker that
waits blocks on its input and has no run in flight, so it takes no processor time (after the pause compare.py leaves for
threads that still spin). Every network has its batch norms merged, for all contenders alike.

    python benchmarks/worker.py prepare zennit-epsilon_plus_flat alexnet    # export, compile
    echo go | python benchmarks/worker.py serve zennit-epsilon_plus_flat alexnet
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
TESTS = HERE.parent / "tests"
NETWORKS = TESTS / "oracle" / "networks.py"
CACHE = HERE / "cache"
TARGET = 3  # which logit is explained; no matter for the time
WARM_UP = 3  # runs before "ready": memory arenas, packed weights, code paths chosen at first use

Call = Callable[[], Any]


def exported(network: str) -> Path:
    """The network as ONNX with a dynamic batch, written once per version of networks.py."""
    digest = hashlib.sha256(NETWORKS.read_bytes()).hexdigest()[:8]
    return CACHE / f"{network}-{digest}.onnx"


def derived(contender: str, network: str) -> Path:
    """The graph a compiler wrote for this contender."""
    graph = contender.removesuffix("-10targets")  # the same file explains one target or ten
    return exported(network).with_suffix(f".{graph}.onnx")


def example(batch: int, *shape: int) -> np.ndarray:
    """A standard normal batch."""
    return np.random.default_rng(0).standard_normal((batch, *shape)).astype(np.float32)


# --- onnxruntime: the forward pass and compiled graphs ----------------------------------------------------------------


def _session(path: Path, batch: int, threads: int) -> tuple[Any, dict[str, np.ndarray]]:
    """A session with default options, and a feed for the model's one input."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    x = session.get_inputs()[0]
    return session, {x.name: example(batch, *x.shape[1:])}


def ort_forward(contender: str, network: str, batch: int, threads: int) -> Call:
    """The plain model: what every ratio is over."""
    session, feeds = _session(exported(network), batch, threads)
    return lambda: session.run(None, feeds)


def onnxplain(contender: str, network: str, batch: int, threads: int) -> Call:
    """A file onnxplain wrote, run by plain onnxruntime; -10targets: ten seeds for one image in one run."""
    session, feeds = _session(derived(contender, network), batch, threads)
    (seed,) = [x.name for x in session.get_inputs() if x.name.endswith(".seed")]
    classes = session.get_outputs()[0].shape[-1]
    targets = np.arange(10) if contender.endswith("-10targets") else np.full(batch, TARGET)
    feeds[seed] = np.eye(classes, dtype=np.float32)[targets]
    return lambda: session.run(None, feeds)


def onnx_ad(contender: str, network: str, batch: int, threads: int) -> Call:
    """The gradient graph onnx-ad wrote, run by onnxruntime. It is compiled for batch 1 and refuses another."""
    session, feeds = _session(derived(contender, network), batch, threads)
    classes = session.get_outputs()[0].shape[-1]
    feeds["adj_logits"] = np.eye(classes, dtype=np.float32)[[TARGET], :, None]
    return lambda: session.run(None, feeds)


# --- torch ------------------------------------------------------------------------------------------------------------


def _torch_model(network: str, batch: int, threads: int) -> tuple[Any, Any]:
    sys.path.insert(0, str(TESTS))
    import torch
    from oracle import networks

    if threads:
        torch.set_num_threads(threads)
    model = networks.folded(networks.NETWORKS[network]()).requires_grad_(False)
    return model, torch.from_numpy(example(batch, *model.shapes["input"]))


def torch_forward(contender: str, network: str, batch: int, threads: int) -> Call:
    """The forward pass under inference_mode."""
    import torch

    model, x = _torch_model(network, batch, threads)

    def call() -> None:
        with torch.inference_mode():
            model(x)

    return call


def torch_gradient(contender: str, network: str, batch: int, threads: int) -> Call:
    """Autograd's gradient of the input; the weights ask for none."""
    import torch

    model, x = _torch_model(network, batch, threads)
    x.requires_grad_()
    return lambda: torch.autograd.grad(model(x)[:, TARGET].sum(), x)


def captum_saliency(contender: str, network: str, batch: int, threads: int) -> Call:
    """Captum's Saliency."""
    model, x = _torch_model(network, batch, threads)
    from captum.attr import Saliency

    saliency = Saliency(model)
    x.requires_grad_()
    return lambda: saliency.attribute(x, target=TARGET)


def zennit(contender: str, network: str, batch: int, threads: int) -> Call:
    """A zennit composite, its context held open: hooks are registered before the clock starts."""
    import torch

    model, x = _torch_model(network, batch, threads)
    from oracle import peers

    model = peers.for_zennit(model)
    composite = peers.COMPOSITES[contender.removeprefix("zennit-")]()
    composite.register(model)
    x.requires_grad_()
    seed = torch.nn.functional.one_hot(torch.full((batch,), TARGET), 1000).float()

    def call() -> Any:
        logits = model(x)
        return composite, torch.autograd.grad(logits, x, seed * logits.detach())

    return call


# --- who takes part ---------------------------------------------------------------------------------------------------

CONTENDERS: dict[str, Callable[[str, str, int, int], Call]] = {
    "ort-forward": ort_forward,
    "onnxplain-gradient": onnxplain,
    "onnxplain-epsilon": onnxplain,
    "onnxplain-epsilon_plus_flat": onnxplain,
    "onnxplain-epsilon_alpha2_beta1": onnxplain,
    "onnxplain-gradient-10targets": onnxplain,
    "onnxplain-epsilon_plus_flat-10targets": onnxplain,
    "torch-forward": torch_forward,
    "torch-gradient": torch_gradient,
    "captum-saliency": captum_saliency,
    "zennit-epsilon_plus_flat": zennit,
    "zennit-epsilon_alpha2_beta1": zennit,
    "onnx_ad-gradient": onnx_ad,
}


def prepare(contender: str, network: str) -> None:
    """Write the files the contender reads. The network is exported once; compiled graphs are always written anew."""
    CACHE.mkdir(exist_ok=True)
    source, target = exported(network), derived(contender, network)
    if not source.exists():
        partial = source.with_suffix(".partial")
        subprocess.run([sys.executable, NETWORKS, network, partial, "--merged"], check=True)
        partial.replace(source)
    if contender.startswith("onnx_ad"):
        sys.path.insert(0, str(TESTS))
        import onnx
        from oracle import peers

        onnx.save(peers.onnx_ad_model(source, batch=1), target)
    elif contender.startswith("onnxplain"):
        from onnxplain import Explainer

        what = contender.removesuffix("-10targets").removeprefix("onnxplain-")
        options = {"method": "gradient"} if what == "gradient" else {"method": "lrp", "composite": what}
        Explainer(source, provider="cpu", **options).save(target)


def serve(contender: str, network: str, batch: int, threads: int) -> None:
    """Answer "go" lines until the input ends, then say the peak memory. stdout carries answers and nothing else."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    call = CONTENDERS[contender](contender, network, batch, threads)
    for _ in range(WARM_UP):
        call()
    print("ready", file=answers)
    for line in sys.stdin:
        if line.strip() == "go":
            start = time.perf_counter()
            call()
            print(time.perf_counter() - start, file=answers)
    unit = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, KiB elsewhere
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    print(json.dumps({"peak_gib": round(peak, 2)}), file=answers)


def main() -> None:
    """Prepare a contender's files, or serve it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["prepare", "serve"])
    parser.add_argument("contender", choices=CONTENDERS)
    parser.add_argument("network")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0, help="0: what torch and onnxruntime choose themselves")
    arguments = parser.parse_args()
    if arguments.action == "prepare":
        prepare(arguments.contender, arguments.network)
    else:
        serve(arguments.contender, arguments.network, arguments.batch, arguments.threads)


if __name__ == "__main__":
    main()
