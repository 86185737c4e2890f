"""Models for a server under test: work of any length, answers that tell their version, corners of the type system."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
from nets import net  # tests/nets.py
from running import MODELS

SIDE = 256  # of the matrices in `work`: a product of two takes a quarter of a millisecond, and may be stopped after it


def work() -> onnx.ModelProto:
    """x (N, 1, SIDE), steps () -> y (N, SIDE) after `steps` products with an orthogonal matrix, one kernel each."""
    q = np.linalg.qr(np.random.default_rng(0).standard_normal((SIDE, SIDE)))[0].astype(np.float32)
    return net(
        f"""g (float[N, 1, {SIDE}] x, int64 steps) => (float[N, {SIDE}] y) {{
            start = Expand (x, shape)
            more = Constant <value = bool {{1}}> ()
            z = Loop (steps, more, start) <body = body (int64 i, bool c, float[N, {SIDE}, {SIDE}] s)
                    => (bool c2, float[N, {SIDE}, {SIDE}] t) {{
                t = MatMul (s, w)
                c2 = Identity (c)
            }}>
            y = ReduceMean <keepdims = 0> (z, axes)
        }}""",
        w=q,
        shape=np.array([1, SIDE, SIDE]),
        axes=np.array([1]),
    )


def times(factor: float) -> onnx.ModelProto:
    """x (N, 4) -> factor x (N, 4): the answer tells which version gave it."""
    weight = np.eye(4, dtype=np.float32) * np.float32(factor)
    return net("g (float[N, 4] x) => (float[N, 4] y) { y = MatMul (x, w) }", w=weight)


def deep(width: int = 256, depth: int = 48) -> onnx.ModelProto:
    """x (N, 1, width) -> (N, 10): a row is 1 KB to send and 1.6 GFLOP to answer, some 20 ms of one processor."""
    rng = np.random.default_rng(0)
    weights = {
        f"w{n}": (rng.standard_normal((width, width)) * np.sqrt(2 / width)).astype(np.float32) for n in range(depth)
    }
    last = "m"
    lines = []
    for n in range(depth):
        lines += [f"m{n} = MatMul ({last}, w{n})", f"r{n} = Relu (m{n})"]
        last = f"r{n}"
    return net(
        f"g (float[N, 1, {width}] x) => (float[N, 10] y) {{ m = Expand (x, shape) {' '.join(lines)} "
        f"p = ReduceMean <keepdims = 0> ({last}, axes) y = MatMul (p, head) }}",
        axes=np.array([1]),
        shape=np.array([1, width, 1]),
        head=rng.standard_normal((width, 10)).astype(np.float32),
        **weights,
    )


def slow(nodes: int) -> onnx.ModelProto:
    """x (N, 4) -> y (N, 4) by a chain of so many nodes: small, and slow to load, 1.5 s for a thousand of them."""
    lines, last = [], "x"
    for n in range(nodes // 2):
        lines.append(f"a{n} = Add ({last}, w) r{n} = Relu (a{n})")
        last = f"r{n}"
    weight = np.ones(4, np.float32)
    return net(f"g (float[N, 4] x) => (float[N, 4] y) {{ {' '.join(lines)} y = Mul ({last}, w) }}", w=weight)


def large(megabytes: int) -> onnx.ModelProto:
    """x (N, 512) -> (N, 10) with about so many megabytes of weights."""
    layers = max(1, megabytes // 4)
    rng = np.random.default_rng(0)
    names = [f"w{n}" for n in range(layers)]
    shapes = [(512 if n == 0 else 1024, 1024) for n in range(layers)]
    weights = {
        name: (rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)
        for name, shape in zip(names, shapes, strict=True)
    }
    last = "x"
    lines = []
    for name in names:
        lines += [f"m{name} = MatMul ({last}, {name})", f"r{name} = Relu (m{name})"]
        last = f"r{name}"
    return net(
        f"g (float[N, 512] x) => (float[N, 10] y) {{ {' '.join(lines)} y = MatMul ({last}, head) }}",
        head=rng.standard_normal((1024, 10)).astype(np.float32),
        **weights,
    )


def scalar() -> onnx.ModelProto:
    """x () of integers -> y (): no axis at all."""
    return net("g (int64 x) => (float y) { a = Cast <to = 1> (x) y = Mul (a, two) }", two=np.float32(2))


def any_length() -> onnx.ModelProto:
    """x (N, L) -> y (N, L): either length may be zero."""
    return net("g (float[N, L] x) => (float[N, L] y) { a = Tanh (x) y = Mul (a, two) }", two=np.float32(2))


def sizes() -> onnx.ModelProto:
    """x (N, 3) of doubles -> y (N, 3)."""
    return net("g (double[N, 3] x) => (double[N, 3] y) { y = Sqrt (x) }")


SMALL = {"work": work, "scalar": scalar, "any_length": any_length, "doubles": sizes, "times": lambda: times(1)}
COPIED = ("iris_mlp", "digits_cnn")


def store(model: onnx.ModelProto, folder: Path, name: str, version: int = 1) -> Path:
    """Put a model into a repository in one step, as a careful writer does; the path of its file."""
    place = folder / name / str(version)
    hidden = folder / name / f".{version}.new"
    hidden.mkdir(parents=True)
    onnx.save(model, hidden / "model.onnx")
    hidden.rename(place)
    return place / "model.onnx"


def repository(folder: Path) -> Path:
    """Everything of SMALL and COPIED in one folder."""
    for name, make in SMALL.items():
        store(make(), folder, name)
    for name in COPIED:
        shutil.copytree(MODELS / name, folder / name, ignore=shutil.ignore_patterns("samples"))
    return folder
