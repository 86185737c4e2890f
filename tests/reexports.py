"""Nine small architectures, each written the ways that exporters write it: the same weights, the same function.

`Forms` names the ways; `written(architecture, forms)` gives the ONNX model. Weights come from their names, so that two
forms of one architecture hold the same.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

MEAN, STD = np.array([0.45, 0.4, 0.5], np.float32), np.array([0.25, 0.2, 0.3], np.float32)
VARIANCE_EPSILON = 1e-5  # of every normalisation, ONNX's default
CLASSES, SIDE, TOKENS, WORDS, FEATURES, HEADS = 4, 12, 6, 20, 16, 4


@dataclass(frozen=True)
class Forms:
    """How a model is written.

    normalisation: of the input, outside or inside the graph. batchnorm: kept, mul_add or folded. groupnorm: fused
    (opset 21) or instance (Reshape, InstanceNormalization, Mul, Add). layernorm: fused (opset 17) or decomposed. dense:
    gemm or matmul_add. mask: of attention, where, where_inf, add or add_inf. hidden: of hidden states, mul or where.
    inside: float32 or float16, between Casts.
    """

    normalisation: str = "outside"
    batchnorm: str = "kept"
    groupnorm: str = "instance"
    layernorm: str = "fused"
    dense: str = "gemm"
    mask: str = "where"
    hidden: str = "mul"
    inside: str = "float32"
    opset: int = 18


class Writer:
    """Nodes and weights of one graph. A method takes names of tensors and returns the name of its result."""

    def __init__(self, forms: Forms):
        self.forms = forms
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}

    def add(self, op_type: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        """One node; the name of its first output."""
        name = f"{op_type.lower()}_{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(op_type, inputs, [name, *(f"{name}.{i}" for i in range(1, outputs))], name, **attributes)
        )
        return name

    def constant(self, name: str, value: Any, dtype: type = np.float32) -> str:
        """An initializer."""
        self.weights[name] = np.asarray(value, dtype)
        return name

    def weight(self, name: str, *shape: int, scale: float = 1.0, centre: float = 0.0) -> str:
        """Normal draws, the same for the same name."""
        return self.constant(name, centre + scale * drawn(name, *shape))

    # --- layers

    def dense(self, x: str, name: str, features: int, out: int) -> str:
        """(N, features) to (N, out)."""
        b = self.weight(f"{name}.b", out, scale=0.2)
        if self.forms.dense == "gemm":
            w = self.constant(f"{name}.w", dense_weight(name, features, out).T)
            return self.add("Gemm", x, w, b, transB=1)
        return self.add("Add", self.add("MatMul", x, self.constant(f"{name}.w", dense_weight(name, features, out))), b)

    def tokenwise(self, x: str, name: str, features: int, out: int) -> str:
        """(N, T, features) to (N, T, out)."""
        w, b = self.constant(f"{name}.w", dense_weight(name, features, out)), self.weight(f"{name}.b", out, scale=0.2)
        return self.add("Add", self.add("MatMul", x, w), b)

    def conv(self, x: str, name: str, channels: int, out: int, kernel: int = 3, **options: Any) -> str:
        """A convolution with bias; pads keep the size."""
        w, b = conv_weights(name, channels // options.get("group", 1), out, kernel)
        return self._conv(x, name, w, b, **options)

    def _conv(self, x: str, name: str, w: np.ndarray, b: np.ndarray, **options: Any) -> str:
        side = w.shape[-1] // 2
        options = {"pads": [side] * 4, "kernel_shape": list(w.shape[2:]), **options}
        return self.add("Conv", x, self.constant(f"{name}.w", w), self.constant(f"{name}.b", b), **options)

    def conv_norm(self, x: str, name: str, channels: int, out: int, kernel: int = 3, **options: Any) -> str:
        """A convolution and a batch norm."""
        if self.forms.batchnorm != "folded":
            return self.batch_norm(self.conv(x, name, channels, out, kernel, **options), name, out)
        w, b = conv_weights(name, channels // options.get("group", 1), out, kernel)
        scale, shift = affine(name, out)
        return self._conv(x, name, w * scale[:, None, None, None], b * scale + shift, **options)

    def batch_norm(self, x: str, name: str, channels: int) -> str:
        """A batch norm in inference, or its scale and shift."""
        if self.forms.batchnorm == "kept":
            names = [self.constant(f"{name}.{key}", value) for key, value in statistics(name, channels).items()]
            return self.add("BatchNormalization", x, *names, epsilon=VARIANCE_EPSILON)
        scale, shift = (value.reshape(-1, 1, 1) for value in affine(name, channels))
        scaled = self.add("Mul", x, self.constant(f"{name}.scale", scale))
        return self.add("Add", scaled, self.constant(f"{name}.shift", shift))

    def group_norm(self, x: str, name: str, channels: int, groups: int) -> str:
        """GroupNormalization, or what torch's exporter makes of it."""
        scale, shift = 1 + 0.3 * drawn(f"{name}.scale", channels), 0.3 * drawn(f"{name}.shift", channels)
        if self.forms.groupnorm == "fused":
            parts = self.constant(f"{name}.scale", scale), self.constant(f"{name}.shift", shift)
            return self.add("GroupNormalization", x, *parts, num_groups=groups, epsilon=VARIANCE_EPSILON)
        ones, zeros = self.constant(f"{name}.ones", np.ones(groups)), self.constant(f"{name}.zeros", np.zeros(groups))
        split = self.add("Reshape", x, self.constant(f"{name}.split", [0, groups, -1], np.int64))
        normal = self.add("InstanceNormalization", split, ones, zeros, epsilon=VARIANCE_EPSILON)
        joined = self.add("Reshape", normal, self.add("Shape", x))
        scaled = self.add("Mul", joined, self.constant(f"{name}.scale", scale.reshape(-1, 1, 1)))
        return self.add("Add", scaled, self.constant(f"{name}.shift", shift.reshape(-1, 1, 1)))

    def layer_norm(self, x: str, name: str) -> str:
        """LayerNormalization over the features, or what exporters wrote before opset 17."""
        scale = self.weight(f"{name}.scale", FEATURES, scale=0.3, centre=1)
        shift = self.weight(f"{name}.shift", FEATURES, scale=0.3)
        if self.forms.layernorm == "fused":
            return self.add("LayerNormalization", x, scale, shift, axis=-1, epsilon=VARIANCE_EPSILON)
        centred = self.add("Sub", x, self.mean(x, -1))
        variance = self.mean(self.add("Pow", centred, self.constant("two", 2)), -1)
        deviation = self.add("Sqrt", self.add("Add", variance, self.constant("variance_epsilon", VARIANCE_EPSILON)))
        scaled = self.add("Mul", self.add("Div", centred, deviation), scale)
        return self.add("Add", scaled, shift)

    def mean(self, x: str, axis: int, keepdims: int = 1) -> str:
        """ReduceMean, whose axes became an input with opset 18."""
        if self.forms.opset < 18:
            return self.add("ReduceMean", x, axes=[axis], keepdims=keepdims)
        return self.add("ReduceMean", x, self.constant(f"axis{axis}", [axis], np.int64), keepdims=keepdims)

    def gelu(self, x: str) -> str:
        """x / 2 (1 + erf(x / √2))."""
        erf = self.add("Erf", self.add("Div", x, self.constant("root", np.sqrt(2))))
        product = self.add("Mul", x, self.add("Add", erf, self.constant("one", 1)))
        return self.add("Mul", product, self.constant("half", 0.5))

    def attention(self, x: str, name: str, visible: str | None = None) -> str:
        """Self-attention of HEADS heads. visible: bool (N, 1, 1, T)."""
        width = FEATURES // HEADS

        def heads(part: str, perm: list[int]) -> str:
            y = self.tokenwise(x, f"{name}.{part}", FEATURES, FEATURES)
            shape = self.constant("heads", [0, 0, HEADS, width], np.int64)
            return self.add("Transpose", self.add("Reshape", y, shape), perm=perm)

        scores = self.add("MatMul", heads("q", [0, 2, 1, 3]), heads("k", [0, 2, 3, 1]))
        scores = self.add("Div", scores, self.constant("temperature", np.sqrt(width)))
        if visible is not None:
            scores = self.masked(scores, visible)
        mixed = self.add("MatMul", self.add("Softmax", scores, axis=-1), heads("v", [0, 2, 1, 3]))
        mixed = self.add("Transpose", mixed, perm=[0, 2, 1, 3])
        mixed = self.add("Reshape", mixed, self.constant("joined", [0, 0, FEATURES], np.int64))
        return self.tokenwise(mixed, f"{name}.o", FEATURES, FEATURES)

    def masked(self, scores: str, visible: str) -> str:
        """Scores that no softmax sees where `visible` is false."""
        low = -np.inf if self.forms.mask.endswith("_inf") else -1e4
        if self.forms.mask.startswith("where"):
            return self.add("Where", visible, scores, self.constant("low", low))
        chosen = self.add("Where", visible, self.constant("zero", 0), self.constant("low", low))
        return self.add("Add", scores, chosen)

    def encoder(self, x: str, name: str, norm_first: bool, visible: str | None = None) -> str:
        """A transformer layer."""
        if norm_first:
            x = self.add("Add", x, self.attention(self.layer_norm(x, f"{name}.n1"), f"{name}.a", visible))
            return self.add("Add", x, self._mlp(self.layer_norm(x, f"{name}.n2"), name))
        x = self.layer_norm(self.add("Add", x, self.attention(x, f"{name}.a", visible)), f"{name}.n1")
        return self.layer_norm(self.add("Add", x, self._mlp(x, name)), f"{name}.n2")

    def _mlp(self, x: str, name: str) -> str:
        up = self.gelu(self.tokenwise(x, f"{name}.up", FEATURES, 2 * FEATURES))
        return self.tokenwise(up, f"{name}.down", 2 * FEATURES, FEATURES)

    def pooled(self, x: str, channels: int) -> str:
        """Mean over the pixels and the last dense layer."""
        flat = self.add("Flatten", self.add("GlobalAveragePool", x))
        return self.dense(flat, "head", channels, CLASSES)


def drawn(name: str, *shape: int) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)


def dense_weight(name: str, features: int, out: int) -> np.ndarray:
    return drawn(f"{name}.w", features, out) * np.float32(features**-0.5)


def conv_weights(name: str, channels: int, out: int, kernel: int) -> tuple[np.ndarray, np.ndarray]:
    fan_in = channels * kernel * kernel
    w = drawn(f"{name}.w", out, channels, kernel, kernel) * np.float32((2 / fan_in) ** 0.5)
    return w, 0.1 * drawn(f"{name}.b", out)


def statistics(name: str, channels: int) -> dict[str, np.ndarray]:
    """Inputs of BatchNormalization behind x."""
    return {
        "scale": 1 + 0.2 * drawn(f"{name}.scale", channels),
        "shift": 0.2 * drawn(f"{name}.shift", channels),
        "mean": 0.2 * drawn(f"{name}.mean", channels),
        "variance": 0.5 + np.abs(drawn(f"{name}.variance", channels)),
    }


def affine(name: str, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """The same as one scale and one shift."""
    s = statistics(name, channels)
    scale = s["scale"] / np.sqrt(s["variance"] + VARIANCE_EPSILON)
    return scale, s["shift"] - s["mean"] * scale


# --- architectures: (writer, input) -> logits ---------------------------------------------------------------------


def vgg(w: Writer, x: str) -> str:
    x = w.add("Relu", w.conv_norm(x, "c1", 3, 6))
    x = w.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = w.add("Relu", w.conv_norm(x, "c2", 6, 8))
    x = w.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = w.add("Relu", w.dense(w.add("Flatten", x), "d1", 8 * (SIDE // 4) ** 2, 10))
    return w.dense(x, "d2", 10, CLASSES)


def resnet(w: Writer, x: str) -> str:
    x = w.add("Relu", w.conv_norm(x, "stem", 3, 6))
    for name in ("a", "b"):
        y = w.add("Relu", w.conv_norm(x, f"{name}1", 6, 6))
        x = w.add("Relu", w.add("Add", w.conv_norm(y, f"{name}2", 6, 6), x))
    return w.pooled(x, 6)


def resnet_preactivation(w: Writer, x: str) -> str:
    x = w.conv(x, "stem", 3, 6)
    for name in ("a", "b"):
        y = w.conv(w.add("Relu", w.batch_norm(x, f"{name}n1", 6)), f"{name}1", 6, 6)
        y = w.conv(w.add("Relu", w.batch_norm(y, f"{name}n2", 6)), f"{name}2", 6, 6)
        x = w.add("Add", y, x)
    return w.pooled(w.add("Relu", w.batch_norm(x, "last", 6)), 6)


def mobilenet(w: Writer, x: str) -> str:
    def relu6(y: str) -> str:
        return w.add("Clip", y, w.constant("zero", 0), w.constant("six", 6))

    x = relu6(w.conv_norm(x, "stem", 3, 6, strides=[2, 2]))
    y = relu6(w.conv_norm(x, "expand", 6, 12, kernel=1))
    y = relu6(w.conv_norm(y, "depthwise", 12, 12, group=12))
    x = w.add("Add", x, w.conv_norm(y, "project", 12, 6, kernel=1))
    return w.pooled(relu6(w.conv_norm(x, "top", 6, 10, kernel=1)), 10)


def groupnorm(w: Writer, x: str) -> str:
    x = w.add("Relu", w.group_norm(w.conv(x, "c1", 3, 6), "g1", 6, 3))
    y = w.add("Relu", w.group_norm(w.conv(x, "c2", 6, 6), "g2", 6, 2))
    return w.pooled(w.add("Add", x, y), 6)


def vit(w: Writer, x: str) -> str:
    x = w.conv(x, "patch", 3, FEATURES, kernel=4, strides=[4, 4], pads=[0] * 4)
    x = w.add("Reshape", x, w.constant("tokens", [0, FEATURES, -1], np.int64))
    x = w.add("Transpose", x, perm=[0, 2, 1])
    x = w.add("Add", x, w.weight("positions", (SIDE // 4) ** 2, FEATURES, scale=0.3))
    x = w.layer_norm(w.encoder(x, "e", norm_first=True), "last")
    return w.dense(w.mean(x, 1, keepdims=0), "head", FEATURES, CLASSES)


def bert(w: Writer, tokens: str) -> str:
    x = w.add("Gather", w.weight("words", WORDS, FEATURES), tokens)
    x = w.layer_norm(w.add("Add", x, w.weight("positions", TOKENS, FEATURES, scale=0.3)), "embedding")
    seen = w.add("Cast", "mask", to=TensorProto.BOOL)
    column = w.add("Unsqueeze", seen, w.constant("last", [-1], np.int64))
    if w.forms.hidden == "mul":
        dtype = TensorProto.FLOAT16 if w.forms.inside == "float16" else TensorProto.FLOAT
        x = w.add("Mul", x, w.add("Cast", column, to=dtype))
    else:
        x = w.add("Where", column, x, w.constant("zero", 0))
    visible = w.add("Unsqueeze", seen, w.constant("middle", [1, 2], np.int64))
    x = w.encoder(x, "e", norm_first=False, visible=visible)
    first = w.add("Gather", x, w.constant("first", 0, np.int64), axis=1)
    return w.dense(w.add("Tanh", w.dense(first, "pooler", FEATURES, FEATURES)), "head", FEATURES, CLASSES)


def mlp(w: Writer, x: str) -> str:
    x = w.add("Relu", w.dense(x, "d1", FEATURES, 20))
    x = w.add("Relu", w.dense(x, "d2", 20, 12))
    return w.dense(x, "d3", 12, CLASSES)


def lstm(w: Writer, x: str) -> str:
    hidden = 8
    x = w.add("Transpose", x, perm=[1, 0, 2])
    weights = [
        w.weight("lstm.w", 1, 4 * hidden, FEATURES, scale=0.3),
        w.weight("lstm.r", 1, 4 * hidden, hidden, scale=0.3),
    ]
    y = w.add("LSTM", x, *weights, w.weight("lstm.b", 1, 8 * hidden, scale=0.2), hidden_size=hidden)
    y = w.add("Squeeze", y, w.constant("direction", [1], np.int64))
    return w.dense(w.mean(y, 0, keepdims=0), "head", hidden, CLASSES)


@dataclass(frozen=True)
class Architecture:
    """A function that writes it, the shape of its input after the batch, its forms; relevance: LRP has rules for it."""

    write: Callable[[Writer, str], str]
    shape: tuple[int, ...]
    forms: dict[str, Forms]
    relevance: bool = True


_ANY = {"opset 13": Forms(opset=13), "opset 21": Forms(opset=21), "float16": Forms(inside="float16")}
_DENSE = {**_ANY, "MatMul + Add": Forms(dense="matmul_add")}
_PICTURE = {**_DENSE, "normalised inside": Forms(normalisation="inside")}
_BATCHNORM = {**_PICTURE, "BatchNorm as Mul + Add": Forms(batchnorm="mul_add")}
_FOLDED = {**_BATCHNORM, "BatchNorm folded": Forms(batchnorm="folded")}
_DECOMPOSED = {
    "opset 13": Forms(opset=13, layernorm="decomposed"),
    "LayerNorm decomposed": Forms(layernorm="decomposed"),
}
_MASKS = {
    "mask by Where -inf": Forms(mask="where_inf"),
    "mask by Add": Forms(mask="add"),
    "mask by Add -inf": Forms(mask="add_inf"),
    "hidden mask by Where": Forms(hidden="where"),
}
ARCHITECTURES = {
    "vgg": Architecture(vgg, (3, SIDE, SIDE), _FOLDED),
    "resnet": Architecture(resnet, (3, SIDE, SIDE), _FOLDED),
    "resnet_preactivation": Architecture(resnet_preactivation, (3, SIDE, SIDE), _BATCHNORM),
    "mobilenet": Architecture(mobilenet, (3, SIDE, SIDE), _FOLDED),
    "groupnorm": Architecture(
        groupnorm, (3, SIDE, SIDE), {**_PICTURE, "GroupNorm fused": Forms(groupnorm="fused", opset=21)}
    ),
    "vit": Architecture(vit, (3, SIDE, SIDE), {**_PICTURE, **_DECOMPOSED}),
    "bert": Architecture(bert, (TOKENS,), {**_DENSE, **_DECOMPOSED, **_MASKS}),
    "mlp": Architecture(mlp, (FEATURES,), _DENSE),
    "lstm": Architecture(lstm, (TOKENS, FEATURES), _DENSE, relevance=False),
}


def written(name: str, forms: Forms) -> onnx.ModelProto:
    """The ONNX model: input x (and mask), output logits, both open in the batch."""
    architecture = ARCHITECTURES[name]
    w = Writer(forms)
    half = forms.inside == "float16"
    tokens = name == "bert"
    x = w.add("Cast", "x", to=TensorProto.FLOAT16) if half and not tokens else "x"
    if forms.normalisation == "inside":
        x = w.add("Sub", x, w.constant("input.mean", MEAN.reshape(1, 3, 1, 1)))
        x = w.add("Div", x, w.constant("input.std", STD.reshape(1, 3, 1, 1)))
    logits = architecture.write(w, x)
    w.nodes.append(
        helper.make_node("Cast" if half else "Identity", [logits], ["logits"], "logits", **({"to": 1} if half else {}))
    )
    kind = TensorProto.INT64 if tokens else TensorProto.FLOAT
    inputs = [helper.make_tensor_value_info("x", kind, ["N", *architecture.shape])]
    if tokens:
        inputs.append(helper.make_tensor_value_info("mask", TensorProto.INT64, ["N", TOKENS]))
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", CLASSES])]
    initializers = [
        numpy_helper.from_array(value.astype(np.float16) if half and value.dtype == np.float32 else value, key)
        for key, value in w.weights.items()
    ]
    model = helper.make_model(
        helper.make_graph(w.nodes, name, inputs, outputs, initializers),
        opset_imports=[helper.make_opsetid("", forms.opset)],
        ir_version=10 if forms.opset > 18 else 8,
    )
    onnx.checker.check_model(model)
    return model


def feeds(name: str, forms: Forms, batch: int = 2) -> dict[str, np.ndarray]:
    """Inputs of one meaning: pixels in [0, 1] where the model normalises them, normalised ones where it does not."""
    rng = np.random.default_rng(5)
    if name == "bert":
        mask = np.ones((batch, TOKENS), np.int64)
        mask[0, -2:] = 0
        return {"x": rng.integers(0, WORDS, (batch, TOKENS)), "mask": mask}
    shape = ARCHITECTURES[name].shape
    if len(shape) != 3:
        return {"x": rng.standard_normal((batch, *shape)).astype(np.float32)}
    pixels = rng.random((batch, *shape)).astype(np.float32)
    return {"x": pixels if forms.normalisation == "inside" else normalised(pixels)}


def normalised(pixels: np.ndarray) -> np.ndarray:
    """(N, 3, …) in [0, 1] to what the network was trained on."""
    return (pixels - MEAN.reshape(1, 3, 1, 1)) / STD.reshape(1, 3, 1, 1)
