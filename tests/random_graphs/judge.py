"""Is the gradient of a drawn graph right? By differences of the untouched model, in a default onnxruntime session."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

from onnxplain import Explainer
from onnxplain.errors import OnnxplainError
from random_graphs.draw import Drawn, gradient_graph
from random_graphs.kernels import Array, evaluator, rounds, wide
from random_graphs.truth import Kink, Truth, differences, values

TIGHT = 1e-6  # of the slopes' size: what float64 and differences leave
ANSWER = 1e-5  # of an output, in float64: constants that were folded are float32
SINGLE = 2e-3  # of the largest gradient: float32 through 25 nodes, some of them steep
HALF = 3e-2  # where values pass through float16
NOTHING = ("a derivative of zero", "nothing to attribute to", "does not depend on")  # claims about the derivative


@dataclass
class Outcome:
    """What came of a graph. word: right, wrong, crashed, refused, kink or unrunnable."""

    word: str
    detail: str = ""

    @property
    def reason(self) -> str:
        """The detail without names and numbers, for counting."""
        text = re.sub(r"'[^']*'", "…", self.detail.split("\n")[0])
        return re.sub(r"\b[a-z_/]*\d+\b|\d+(\.\d+)?(e-?\d+)?", "#", text)[:110]


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """A default session: every optimisation on."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def runs(model: onnx.ModelProto, feeds: dict[str, Array]) -> dict[str, Array]:
    opened = session(model)
    names = [o.name for o in opened.get_outputs()]
    return dict(zip(names, opened.run(None, {k: v for k, v in feeds.items()}), strict=True))


def typed(model: onnx.ModelProto) -> type:
    return np.float64 if model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.DOUBLE else np.float32


def runnable(drawn: Drawn) -> str:
    """Empty where onnxruntime runs the model and agrees with onnx's evaluator; else why not."""
    dtype = typed(drawn.model)
    try:
        found = runs(drawn.model, {k: v.astype(dtype) for k, v in drawn.feeds.items()})
    except Exception as error:  # onnxruntime's own classes, and several of them
        return str(error).split("\n")[0]
    expected = values(drawn.model, list(found), drawn.feeds)
    loose = 5e-2 if rounds(drawn.model) else 5e-4
    for name, y in found.items():
        z = expected[name]
        if y.shape != z.shape or not np.allclose(y, z, rtol=loose, atol=loose):
            return f"onnxruntime and onnx's evaluator differ at {name}"
    return ""


def judged(seed: int, tries: int = 4) -> tuple[Drawn, Outcome]:
    """The first runnable graph from this random seed on, and what came of it; kinks get other inputs a few times."""
    for attempt in range(20):
        drawn = gradient_graph(seed + 1_000_000 * attempt)
        if not runnable(drawn):
            break
    outcome = judge(drawn)
    rng = np.random.default_rng(seed)
    for _ in range(tries):
        if outcome.word != "kink":
            break
        drawn.feeds = {k: rng.standard_normal(v.shape).astype(np.float32).astype(float) for k, v in drawn.feeds.items()}
        if not runnable(drawn):
            outcome = judge(drawn)
    return drawn, outcome


def judge(drawn: Drawn) -> Outcome:
    """What comes of one graph."""
    rng = np.random.default_rng(drawn.seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "drawn.onnx"
        onnx.save(drawn.model, path)
        try:
            explainer = Explainer(path, "gradient", explain=drawn.explain, attribute_to=drawn.attribute)
        except OnnxplainError as error:
            return _refused(drawn, str(error), rng)
        except Exception as error:
            return Outcome("crashed", f"{type(error).__name__}: {error}")
    compiled = ir.to_proto(explainer.compiled.model)
    ys = values(drawn.model, list(explainer.explained), drawn.feeds)
    seeds = {name: rng.standard_normal(y.shape).astype(np.float32).astype(float) for name, y in ys.items()}
    try:
        truths = differences(drawn, seeds, rng)
    except Kink as error:
        return Outcome("kink", str(error))
    feeds = {**drawn.feeds, **{name: seeds[source] for name, source in explainer.compiled.seeds.items()}}
    named = {source: output for output, source in explainer.compiled.relevances.items()}
    outcome = _compared(drawn, compiled, feeds, named, truths)
    if outcome.word == "right" and explainer.compiled.streams and len(seeds) == 1:
        (seed_name,), (y,) = explainer.compiled.seeds, ys.values()
        problem = streams(drawn, compiled, seed_name, y, explainer.compiled.provenance["stream_axis"])
        return Outcome("wrong", problem) if problem else outcome
    return outcome


def streams(drawn: Drawn, compiled: onnx.ModelProto, seed_name: str, y: Array, axes: dict[str, int]) -> str:
    """Empty where three seeds for one row give what each gives alone; else which output differs."""
    lengths = {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim][:1] for v in drawn.model.graph.input
    }
    if any(length not in (["N"], [1]) for length in lengths.values()):  # of more rows there is a seed for each
        return ""
    dtype, rng = typed(drawn.model), np.random.default_rng(drawn.seed)
    row = {k: (v[:1] if lengths[k] == ["N"] else v).astype(dtype) for k, v in drawn.feeds.items()}
    seeds = rng.standard_normal((3, *y.shape[1:])).astype(dtype)
    try:
        runs(drawn.model, row)
    except Exception:  # the model itself wants more rows than one
        return ""
    opened = session(compiled)
    names = list(axes)
    together = opened.run(names, {**row, seed_name: seeds})
    apart = [opened.run(names, {**row, seed_name: seeds[i : i + 1]}) for i in range(3)]
    for i, name in enumerate(names):
        expected = np.concatenate([one[i] for one in apart], axes[name])
        size = max(float(np.abs(expected).max(initial=0)), 1e-3)
        if together[i].shape != expected.shape or not np.abs(together[i] - expected).max(initial=0) <= 1e-4 * size:
            return f"{name}: three seeds at once give something else than one by one"
    return ""


def _compared(
    drawn: Drawn, compiled: onnx.ModelProto, feeds: dict[str, Array], named: dict[str, str], truths: dict[str, Truth]
) -> Outcome:
    dtype = typed(drawn.model)
    try:
        single = runs(compiled, {k: v.astype(dtype) for k, v in feeds.items()})
    except Exception as error:
        return Outcome("crashed", f"the compiled file does not run: {str(error).splitlines()[0]}")
    double: dict[str, Array] | None = None
    why = ""
    try:
        with np.errstate(all="ignore"):
            found = evaluator(wide(compiled)).run(None, feeds)
        double = dict(zip([o.name for o in compiled.graph.output], found, strict=True))
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
    answers = [o.name for o in drawn.model.graph.output]
    for name, y in values(drawn.model, answers, drawn.feeds).items():
        if double is not None and not np.abs(double[name] - y).max() <= ANSWER * max(1.0, float(np.abs(y).max())):
            return Outcome("wrong", f"the compiled graph answers {name} otherwise than the model")
    for source, truth in truths.items():
        if source not in named:
            if any(abs(s) > 1e-7 for s in truth.slopes):
                return Outcome("wrong", f"no relevance for {source}, whose slope is {truth.slopes[0]:.6g}")
            continue
        output = named[source]
        one = single[output].astype(float)
        if one.shape != truth.directions[0].shape:
            return Outcome("wrong", f"{output} has shape {one.shape}, {source} {truth.directions[0].shape}")
        if not np.isfinite(one).all():
            return Outcome("wrong", f"{output} is not finite")
        size = max(float(np.abs(one).max()), 1e-3)
        loose = HALF if rounds(drawn.model) else SINGLE
        if double is not None:
            two = double[output]
            for direction, slope in zip(truth.directions, truth.slopes, strict=True):
                got, scale = float((two * direction).sum()), max(1.0, abs(slope), float(np.abs(two * direction).sum()))
                if not abs(got - slope) <= TIGHT * scale:
                    return Outcome("wrong", f"{output}: the slope is {got:.8g}, differences say {slope:.8g}")
            if not np.abs(one - two).max() <= loose * size:
                worst = float(np.abs(one - two).max())
                return Outcome("wrong", f"{output}: float32 differs from float64 by {worst:.3g} of {size:.3g}")
            continue
        for direction, slope in zip(truth.directions, truth.slopes, strict=True):
            got, scale = float((one * direction).sum()), max(1e-3, float(np.abs(one * direction).sum()))
            if not abs(got - slope) <= loose * scale:
                return Outcome(
                    "wrong", f"{output}: the slope is {got:.6g}, differences say {slope:.6g} (float32; {why})"
                )
    return Outcome("right", why)


def _refused(drawn: Drawn, message: str, rng: np.random.Generator) -> Outcome:
    if "\n" in message:
        return Outcome("crashed", f"a message of several lines: {message}")
    if any(claim in message for claim in NOTHING):  # that is a statement about the derivative: true or wrong
        ys = values(drawn.model, list(drawn.explain) or [drawn.model.graph.output[0].name], drawn.feeds)
        try:
            truths = differences(drawn, {name: rng.standard_normal(y.shape) for name, y in ys.items()}, rng)
        except Kink as error:
            return Outcome("kink", str(error))
        blamed = [n for n in truths if re.search(rf"(depend on|path from) {re.escape(n)}\b", message)] or list(truths)
        if "nothing to attribute" in message:
            blamed = list(truths)
        for name in blamed:
            if any(abs(s) > 1e-7 for s in truths[name].slopes):
                return Outcome("wrong", f"refused: {message} But the slope at {name} is {truths[name].slopes[0]:.6g}")
        return Outcome("right", message)
    return Outcome("refused", message if named_node(drawn, message) else f"(names no node) {message}")


def named_node(drawn: Drawn, message: str) -> bool:
    """Whether a message names a node of the model, or its output, and an op; one without a name is node_<number>."""
    nodes = _nodes(drawn.model.graph)
    words = set(re.findall(r"[\w/.]+", message))
    places = {x for n in nodes for x in (n.name, *n.output)} | (
        {w for w in words if w == "node" or w.startswith("node_")} if any(not n.name for n in nodes) else set()
    )
    return bool(words & {n.op_type for n in nodes} and words & places)


def _nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    inner = [n for node in graph.node for a in node.attribute if a.HasField("g") for n in _nodes(a.g)]
    return [*graph.node, *inner]


def text(model: onnx.ModelProto) -> str:
    """The model in onnx's text form, long weights left out."""
    return re.sub(r"= +\{[^}]{200,}\}", "= {…}", onnx.printer.to_text(model))
