"""Eigen-CAM and EigenGrad-CAM: what the channels of a feature map have most in common."""

from __future__ import annotations

import numpy as np

from onnxplain.methods.registry import method
from onnxplain.methods.run import Run
from onnxplain.methods.tensors import Array, Tensors


@method(
    "eigen_cam",
    base="",
    layer="read",
    signed=False,
    cite="Muhammad and Yeasin 2020, Eigen-CAM: Class Activation Map using Principal Components, section III",
)
def eigen_cam(run: Run, x: Tensors, seed: Array, *, centred: bool = False) -> Tensors:
    """A feature map's channels projected on their first principal component; the same for every class.

    With the map as a matrix A of positions × channels, A = U S V^T: ReLU(A v), v the first column of V, which is the
    direction along which most of A lies. An eigenvector has no sign of its own: v has the one with which A v agrees
    with the sum over channels, sum_p (A v)_p (sum_c A_pc) >= 0. Above a Relu A v has one sign (Perron and Frobenius),
    so nothing is cut off. No class is asked for, and no derivative: the model runs up to the layer, once.

    centred: each channel less its mean over the positions, as pytorch-grad-cam has it; the paper does not say so.
    """
    return _components(run.layer(x), run, centred)


@method(
    "eigen_grad_cam",
    base="layer_gradient",
    layer="read",
    signed=False,
    cite="Gildenblat 2021, PyTorch library for CAM methods (pytorch-grad-cam), EigenGradCAM",
)
def eigen_grad_cam(run: Run, x: Tensors, seed: Array, *, centred: bool = False) -> Tensors:
    """Eigen-CAM of gradient times activation, which tells classes apart.

    The same with A = g a, channel by channel and position by position: ReLU(A v). The sum over channels, which v has
    its sign by, is HiResCAM: what is positive speaks for the class.

    centred: each channel less its mean over the positions, as pytorch-grad-cam has it.
    """
    return _components(run.relevance(x, seed) * run.layer(x), run, centred)


def _components(maps: Tensors, run: Run, centred: bool) -> Tensors:
    return Tensors({name: _first(array, run.channels[name], centred) for name, array in maps.items()})


def _first(maps: Array, channels: int, centred: bool) -> Array:
    """ReLU(A v) in place of the channels. maps (1, …)."""
    moved = np.moveaxis(maps.astype(np.float64), channels, -1)
    matrix = moved.reshape(-1, moved.shape[-1])
    whole = matrix.sum(1)
    if centred:
        matrix = matrix - matrix.mean(0)
    projected = _projected(matrix)
    if projected @ whole < 0:
        projected = -projected
    return np.expand_dims(projected.clip(0).reshape(moved.shape[:-1]), channels).astype(maps.dtype)


def _projected(matrix: Array) -> Array:
    """A v, with v the first right singular vector of A (P, C), by the eigenvectors of the smaller of A A^T and A^T A.

    Of A A^T the first one is A v itself but for its length. LAPACK's SVD takes ten times as long beside the waiting
    threads of onnxruntime; squaring costs half of float64's digits in small components, of which none is asked for.
    """
    positions, channels = matrix.shape
    if positions <= channels:
        values, vectors = np.linalg.eigh(matrix @ matrix.T)
        return np.asarray(np.sqrt(max(values[-1], 0.0)) * vectors[:, -1])
    return np.asarray(matrix @ np.linalg.eigh(matrix.T @ matrix)[1][:, -1])
