"""A torch model written once as ONNX, with what torch says about it in float64: a folder that is judged without torch.

`model.onnx`, and `oracle.npz` with, for every try, inputs, a seed, the outputs, the gradient, how far torch's own
float32 gradient is from it, and directional derivatives by central differences. The differences decide where float32
and float64 take different branches at a kink, and where torch's own gradient is wrong.
"""

from __future__ import annotations

import contextlib
import copy
import os
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

TRIES = 3  # inputs; a float32 activation on the wrong side of 0 shows on one of them, a wrong formula on all
DIRECTIONS = 2
STEP = 1e-6  # of the attributed tensor; float64 leaves 1e-9 of the derivative
CACHE = Path(os.environ.get("ONNXPLAIN_ZOO_CACHE") or Path(tempfile.gettempdir()) / "onnxplain-zoo")


@dataclass(frozen=True)
class Subject:
    """A torch model and how it is asked.

    example: (batch, random seed) -> inputs by name. attributed: the input that is explained. embedding: for token ids,
    the module whose output is explained; None: the input itself.
    """

    model: nn.Module
    example: Callable[[int, int], dict[str, Tensor]]
    attributed: str
    embedding: nn.Module | None = None


def randomised(model: nn.Module, random_seed: int = 0) -> nn.Module:
    """The model in eval mode with every weight that starts as a constant drawn, and batch norms far from identity.

    Layer scales of 1e-6, zero gains of last norms and zero positions would hide whole branches from a comparison.
    Weights of 0.02 make every softmax flat and hide its derivative: they are widened to keep the size of what passes.
    """
    rng = torch.Generator().manual_seed(random_seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.is_floating_point():
                continue
            spread = float(parameter.std()) if parameter.numel() > 1 else 0.0
            unit = (parameter[0].numel() if parameter.ndim > 1 else 1) ** -0.5
            if 1e-3 <= spread < unit and parameter.ndim > 1:
                parameter.mul_(unit / spread)
            elif parameter.ndim <= 1 or spread < 1e-3:
                centre = 1.0 if float(parameter.abs().mean()) > 0.5 else 0.0
                drawn = torch.rand(parameter.shape, generator=rng) - 0.5
                parameter.copy_(drawn * 0.4 + centre if centre else drawn * 0.4 + 0.05)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                module.running_mean.normal_(0, 0.1, generator=rng)
                module.running_var.uniform_(0.7, 1.3, generator=rng)
    return model.eval()


def calibrated(model: nn.Module, x: Tensor) -> nn.Module:
    """The model with the means and variances of `x` in its batch norms.

    For networks that drawn ones make chaotic: mixnet's outputs move by 1e-3 where its input moves by 1e-6, and no
    float32 answer means anything.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = None  # the plain average
        norm.reset_running_stats()
        norm.train()
    with torch.no_grad():
        model(x)
    return model.eval()


def written(
    name: str, build: Callable[[], Subject], *, dynamo: bool = False, opset: int = 17, cache: Path = CACHE
) -> Path:
    """The folder of a specimen, made if it is not there. Raises what the exporter raises."""
    torch.manual_seed(0)
    subject = build()
    content = f"{name}.{_digest(subject)}"
    folder = cache / f"{content}.{'dynamo' if dynamo else 'torchscript'}.{opset}"
    if (folder / "oracle.npz").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    # torch.nn.MultiheadAttention and others leave their ordinary path in eval mode for one no exporter knows
    torch.backends.mha.set_fastpath_enabled(False)
    _export(subject, folder / "model.onnx", dynamo, opset)
    shared = cache / f"{content}.oracle.npz"
    if not shared.exists():
        np.savez(shared, **_oracle(subject))
    (folder / "oracle.npz").symlink_to(os.path.relpath(shared, folder))
    return folder


def _digest(subject: Subject) -> str:
    """Of weights, inputs and torch: nothing stale is ever taken from the cache."""
    digest = zlib.crc32(torch.__version__.encode())
    for tensor in (*subject.model.state_dict().values(), *subject.example(2, 0).values()):
        digest = zlib.crc32(tensor.detach().contiguous().numpy().tobytes(), digest)
    return f"{digest:08x}"


def _export(subject: Subject, path: Path, dynamo: bool, opset: int) -> None:
    """By the newer exporter with the example's batch of 2 where it cannot leave the batch open."""
    example = subject.example(2, 0)
    if not dynamo:
        _write(subject, example, path, opset, dynamo=False, dynamic_axes={n: {0: "N"} for n in (*example, "logits")})
        return
    options = {"dynamo": True, "external_data": False, "verbose": False}
    batch = {0: torch.export.Dim("N", min=1, max=64)}
    try:
        _write(subject, example, path, max(opset, 18), dynamic_shapes=(batch,) * len(example), **options)
    except Exception:
        _write(subject, example, path, max(opset, 18), **options)


def _write(subject: Subject, example: Mapping[str, Tensor], path: Path, opset: int, **options: Any) -> None:
    with warnings.catch_warnings(), _silence(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            subject.model,
            tuple(example.values()),
            str(path),
            input_names=list(example),
            output_names=["logits"],
            opset_version=opset,
            **options,
        )


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """The exporters print whole graphs where they fail, some of it below Python."""
    kept, nothing = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nothing)


def _oracle(subject: Subject) -> dict[str, np.ndarray]:
    """Everything torch is asked for, in float64. Keys: `<try>.<batch>.<what>`."""
    model = copy.deepcopy(subject)
    model.model.double()
    # deepcopy takes the two fields together, so that the embedding is still the model's own
    found: dict[str, np.ndarray] = {"attributed": np.array(subject.attributed)}
    for attempt in range(TRIES):
        example = subject.example(2, attempt + 1)
        for batch in (2, 1):
            rows = {name: x[:batch] for name, x in example.items()}
            key = f"{attempt}.{batch}"
            for name, x in rows.items():
                found[f"{key}.input.{name}"] = x.numpy()
            rng = np.random.default_rng(attempt)
            classes = _logits(model, rows, torch.zeros(_shape(model, rows), dtype=torch.float64)).shape[1:]
            seed = rng.standard_normal((2, *classes)).astype(np.float32)[:batch]
            logits, gradient = _gradient(model, rows, seed, torch.float64)
            _, rounded = _gradient(subject, rows, seed, torch.float32)
            found[f"{key}.seed"] = seed
            found[f"{key}.logits"] = logits
            found[f"{key}.gradient"] = gradient
            found[f"{key}.rounding"] = np.array(np.abs(rounded - gradient).max() / max(np.abs(gradient).max(), 1e-30))
            if batch == 2:
                directions = rng.standard_normal((DIRECTIONS, *gradient.shape))
                found[f"{key}.directions"] = directions.astype(np.float32)
                found[f"{key}.slopes"] = np.array([_slope(model, rows, seed, d) for d in directions])
    return found


def _gradient(
    subject: Subject, rows: Mapping[str, Tensor], seed: np.ndarray, dtype: torch.dtype
) -> tuple[np.ndarray, np.ndarray]:
    """Outputs and gradient of the seeded outputs in a precision."""
    shift = torch.zeros(_shape(subject, rows), dtype=dtype, requires_grad=True)
    logits = _logits(subject, rows, shift)
    (gradient,) = torch.autograd.grad((logits * torch.from_numpy(seed)).sum(), shift)
    return logits.detach().numpy(), gradient.numpy()


def _slope(subject: Subject, rows: Mapping[str, Tensor], seed: np.ndarray, direction: np.ndarray) -> float:
    """Central difference of the seeded outputs along a direction."""
    step = STEP * torch.from_numpy(direction.astype(np.float32)).double()
    with torch.no_grad():
        change = _logits(subject, rows, step) - _logits(subject, rows, -step)
    return float((change * torch.from_numpy(seed)).sum()) / (2 * STEP)


def _shape(subject: Subject, rows: Mapping[str, Tensor]) -> tuple[int, ...]:
    return tuple(rows[subject.attributed].shape)


def _logits(subject: Subject, rows: Mapping[str, Tensor], shift: Tensor) -> Tensor:
    """Outputs with the input moved by `shift`, or the embedding of each token scaled by 1 + shift.

    The derivative by the second, at 0, is gradient x embedding summed over the features.
    """
    rows = {name: x.to(shift.dtype) if x.is_floating_point() else x for name, x in rows.items()}
    if subject.embedding is None:
        rows[subject.attributed] = rows[subject.attributed] + shift
        return subject.model(*rows.values())

    def scaled(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
        words, *rest = output if isinstance(output, tuple) else (output,)
        by = shift if words.shape[:2] == shift.shape else shift.T
        words = words * (1 + by[..., None])
        return (words, *rest) if isinstance(output, tuple) else words

    handle = subject.embedding.register_forward_hook(scaled)
    try:
        return subject.model(*rows.values())
    finally:
        handle.remove()
