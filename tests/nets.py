"""Small networks in ONNX's own text form, and compiled files run by plain onnxruntime: the contract from outside."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from onnxplain import Explainer
from onnxplain.methods import METHODS
from onnxplain.recipes import Recipe
from onnxplain.runtime.batch_size import BatchSize
from onnxplain.subject import Subject

MODELS = Path(__file__).parents[1] / "models"
NAMES = ("mobilenet_v2", "digits_cnn", "digits_vit", "digits_gru", "iris_mlp", "bc_logreg")


def net(text: str, opset: int = 18, ir: int = 8, **weights: np.ndarray) -> onnx.ModelProto:
    """A model from a graph in text form; `weights` become initializers."""
    model = onnx.parser.parse_model(f'<ir_version: {ir}, opset_import: ["" : {opset}]> {text}')
    model.graph.initializer.extend(onnx.numpy_helper.from_array(w, name) for name, w in weights.items())
    for i, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{i}"
    onnx.checker.check_model(model)
    return model


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def normal(*shape: int, seed: int = 0, dtype: type = np.float32) -> np.ndarray:
    return np.asarray(rng(seed).standard_normal(shape), dtype)


def relu_net(bias: bool = True, dtype: type = np.float32, batch: str = "N") -> onnx.ModelProto:
    """Conv - Relu - MaxPool - Conv - Relu - Flatten - Gemm: (N, 2, 6, 6) to 4 logits."""
    kind = "double" if dtype == np.float64 else "float"
    draw = functools.partial(normal, dtype=dtype)
    amount = 0.3 if bias else 0.0
    return net(
        f"""g ({kind}[{batch}, 2, 6, 6] x) => ({kind}[{batch}, 4] logits) {{
            c1 = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
            r1 = Relu (c1)
            p1 = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r1)
            c2 = Conv <pads = [1, 1, 1, 1]> (p1, w2, b2)
            r2 = Relu (c2)
            f = Flatten (r2)
            logits = Gemm <transB = 1> (f, w3, b3)
        }}""",
        w1=draw(3, 2, 3, 3, seed=1),
        b1=draw(3, seed=2) * dtype(amount),
        w2=draw(5, 3, 3, 3, seed=3),
        b2=draw(5, seed=4) * dtype(amount),
        w3=draw(4, 45, seed=5),
        b3=draw(4, seed=6) * dtype(amount),
    )


def headed(nodes: str) -> onnx.ModelProto:
    return net(
        f"g (float[N, 3] x) => (float[N, 4] y) {{ z = MatMul (x, w) {nodes} }}",
        w=normal(3, 4),
        zero=np.array([0]),
        shape=np.array([-1, 4]),
    )


def folded_heads() -> onnx.ModelProto:
    """(N, L, heads * D) folded to (N * heads, L, D) and back: the batch is no axis of its own in between."""
    return net(
        """g (float[N, 3, 4] x) => (float[N, 3, 4] y) {
            a = Reshape (x, split)
            b = Transpose <perm = [0, 2, 1, 3]> (a)
            h = Reshape (b, fold)
            t = Tanh (h)
            d = Reshape (t, unfold)
            e = Transpose <perm = [0, 2, 1, 3]> (d)
            y = Reshape (e, join)
        }""",
        split=np.array([-1, 3, 2, 2]),
        fold=np.array([-1, 3, 2]),
        unfold=np.array([-1, 2, 3, 2]),
        join=np.array([-1, 3, 4]),
    )


@dataclass
class Compiled:
    """A compiled file: its protobuf, its metadata, and plain onnxruntime."""

    path: Path
    explainer: Explainer
    proto: onnx.ModelProto
    about: dict[str, Any]

    @functools.cached_property
    def session(self) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        return onnxruntime.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])

    @property
    def inputs(self) -> list[str]:
        return [v.name for v in self.proto.graph.input]

    @property
    def outputs(self) -> list[str]:
        return [v.name for v in self.proto.graph.output]

    def run(self, **feeds: np.ndarray) -> dict[str, np.ndarray]:
        """Outputs by name; a feed named `seed` or `target` goes to the one input of that ending."""
        for short in ("seed", "target"):
            if short in feeds:
                feeds[next(n for n in self.inputs if n.endswith(f".{short}"))] = feeds.pop(short)
        return dict(zip(self.outputs, self.session.run(self.outputs, feeds), strict=True))

    @property
    def added(self) -> list[onnx.NodeProto]:
        return [node for node in self.proto.graph.node if node.name.startswith("backward/")]


def compiled(model: onnx.ModelProto | Path, folder: Path, method: str = "gradient", **options: Any) -> Compiled:
    """Compile, write, and read back as a stranger would."""
    if isinstance(model, onnx.ModelProto):
        path = folder / "source.onnx"
        onnx.save(model, path)
    else:
        path = model
    explainer = Explainer(path, method, **options)
    written = folder / f"{path.stem}.{method}.onnx"
    explainer.save(written)
    proto = onnx.load(written)
    about = json.loads(next(p.value for p in proto.metadata_props if p.key == "onnxplain"))
    return Compiled(written, explainer, proto, about)


def plain(model: onnx.ModelProto | Path, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The source model in plain onnxruntime."""
    content = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))


def repository(name: str) -> Path:
    return MODELS / name / "1" / "model.onnx"


@functools.cache
def sample(name: str) -> np.ndarray:
    """Real inputs of a repository model: a batch of at least three (one photograph-sized draw for mobilenet_v2)."""
    if name == "mobilenet_v2":
        return normal(1, 3, 224, 224)
    archive = np.load(next((MODELS / name / "samples").glob("*.npz")))
    return np.asarray(archive[archive.files[0]], np.float32)[:3]


def looks_of(name: str) -> list[str]:
    """Options of a looped method that say how often it looks: those that are whole numbers of at least 1."""
    options = METHODS[name].options.values()
    return [o.name for o in options if "int" in o.types and o.range is not None and o.range.low == 1]


def counted(name: str, count: int) -> dict[str, float]:
    """Options with which a looped method looks `count` times, at what needs no background."""
    alone = {"baseline": 0.0} if Recipe(name).background == "required" and "baseline" in METHODS[name].options else {}
    return {**alone, **dict.fromkeys(looks_of(name), count)}


def takes_base(name: str, base: str) -> bool:
    """Whether a looped method runs over a one-pass method: one that compares, where it says with what."""
    return METHODS[base].reference or not METHODS[name].references


def other_base(name: str) -> str:
    """A base that is not the method's own."""
    return "deep_lift_reveal_cancel" if METHODS[name].references else "lrp-epsilon"


def one_hot(shape: tuple[int, ...], *classes: int, dtype: type = np.float32) -> np.ndarray:
    seed = np.zeros(shape, dtype)
    for row, index in enumerate(classes):
        seed[(row, index)] = 1
    return seed


def widened(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph in float64, for onnx's evaluator: onnxruntime's CPU has no float64 Conv to verify one with."""
    single, double = onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE
    model = onnx.ModelProto.FromString(model.SerializeToString())

    def wide(tensor: onnx.TensorProto) -> None:
        if tensor.data_type == single:
            array = onnx.numpy_helper.to_array(tensor).astype(np.float64)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))

    def graph(g: onnx.GraphProto) -> None:
        del g.value_info[:]
        for tensor in g.initializer:
            wide(tensor)
        for value in (*g.input, *g.output):
            if value.type.tensor_type.elem_type == single:
                value.type.tensor_type.elem_type = double
        for node in g.node:
            for attribute in node.attribute:
                wide(attribute.t)
                if attribute.HasField("g"):
                    graph(attribute.g)
                if node.op_type == "Cast" and attribute.name == "to" and attribute.i == single:
                    attribute.i = double

    graph(model.graph)
    return model


def in_batches_of(rows: int, monkeypatch) -> None:
    """From here on every run of a looped method has so many points."""
    monkeypatch.setattr(Subject, "batch_size", lambda self, recipe: BatchSize(rows))
