"""Is the relevance of a drawn network what the laws say? Books, gradient x input, inner tensors, re-exported forms."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper

from onnxplain import Explainer
from onnxplain.errors import OnnxplainError, UsageError
from random_graphs import forms
from random_graphs.draw import Drawn
from random_graphs.judge import Outcome, named_node, runnable, runs
from random_graphs.kernels import Array, evaluator, wide
from random_graphs.networks import inner, network
from random_graphs.truth import tensor_values

COMPOSITES = ("default", "epsilon", "epsilon_plus", "epsilon_alpha2_beta1", "deep_taylor", "clrp")
CLOSES = 1e-6  # of what went through a node, in float64
CLOSES_RESIZED = 1e-5  # onnx's evaluator interpolates in float32: 6e-7 of the terms of sums that may cancel
SAME = 1e-5  # of the largest relevance: forms differ in where stabilisers and folded weights round
GRADIENT_RULES = tuple(
    [f"type:{t}=epsilon(epsilon=1e-9)" for t in ("Conv", "Gemm", "MatMul")]
    + [f"type:{t}=norm(epsilon=1e-9)" for t in ("Add", "Sub", "Sum", "Mean", "ReduceSum", "AveragePool")]
)


@dataclass
class Told:
    """A compiled explanation, evaluated in float64."""

    relevances: dict[str, Array]
    books: Array | None
    about: dict[str, Any]
    seed: Array
    scores: Array


def told(model: onnx.ModelProto, feeds: dict[str, Array], **asked: Any) -> Told:
    """Compile and evaluate: class 1 of the first row and class 2 of the others. Raises OnnxplainError."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "drawn.onnx"
        onnx.save(model, path)
        explainer = Explainer(path, **asked)
    compiled = ir.to_proto(explainer.compiled.model)
    about = json.loads(next(p.value for p in compiled.metadata_props if p.key == "onnxplain"))
    (explained,), (seed_name,) = explainer.explained, explainer.compiled.seeds
    seed = np.zeros((len(next(iter(feeds.values()))), 3))
    seed[0, 1], seed[1:, 2] = 1, 1
    given = {**feeds, seed_name: seed}
    ordinary = runs(compiled, {k: v.astype(np.float32) for k, v in given.items()})
    for name in explainer.compiled.relevances:
        if not np.isfinite(ordinary[name]).all():
            raise ArithmeticError(f"{name} is not finite in a default session")
    names = [*explainer.compiled.relevances, explained] + (["onnxplain.ledger"] if asked.get("ledger") else [])
    compiled = wide(compiled)
    if explained not in [o.name for o in compiled.graph.output]:
        compiled.graph.output.append(helper.make_tensor_value_info(explained, onnx.TensorProto.DOUBLE, None))
    with np.errstate(all="ignore"):
        found = dict(zip(names, evaluator(compiled).run(names, given), strict=True))
    relevances = {source: found[name] for name, source in explainer.compiled.relevances.items()}
    return Told(relevances, found.get("onnxplain.ledger"), about, seed, found[explained])


def closed(one: Told) -> str:
    """Empty where every row and the whole close; else what does not."""
    rows, names = one.books, one.about["ledger"]["rows"]
    closes = CLOSES_RESIZED if any(name.startswith("Resize") for name in names) else CLOSES
    columns = one.about["ledger"]["columns"]
    if rows is None or not np.isfinite(rows).all():
        return "the ledger has NaN or Inf"
    at = [columns.index("in"), columns.index("out")]
    absorbed = np.delete(rows, at, -1).sum(-1)
    gap = np.abs(rows[..., at[0]] - rows[..., at[1]] - absorbed)
    scale = np.maximum(np.abs(rows).max(-1), 1e-9)
    if (gap > closes * scale).any():
        row = np.unravel_index((gap / scale).argmax(), gap.shape)
        values = ", ".join(f"{c} {v:.6g}" for c, v in zip(columns, rows[row], strict=True))
        return f"the row of {names[row[1]]} does not close: {values}"
    begun, ended = float((one.seed * one.scores).sum()), sum(float(r.sum()) for r in one.relevances.values())
    lost = float(absorbed.sum())
    most = max(float(np.abs(rows).max()), 1e-9) * len(names)
    if abs(begun - ended - lost) > closes * most:
        return f"{begun:.8g} went in, {ended:.8g} came out, the books have {lost:.8g}"
    return ""


def agree(one: Array, two: Array) -> bool:
    size = max(float(np.abs(one).max()), float(np.abs(two).max()), 1e-9)
    return one.shape == two.shape and bool((np.abs(one - two) <= SAME * size).all())


def judge_network(drawn: Drawn, linear: bool = False) -> Outcome:
    """Every law on one network, with composites chosen by its random seed."""
    rng = np.random.default_rng(drawn.seed)
    try:
        if linear:
            return _gradient_times_input(drawn)
        outcome = _books(drawn, str(rng.choice(COMPOSITES)), inner(drawn, rng))
        return outcome if outcome.word != "right" else _forms(drawn, str(rng.choice(COMPOSITES)), rng)
    except OnnxplainError as error:
        if "\n" in str(error):
            return Outcome("crashed", f"a message of several lines: {error}")
        return Outcome("refused", str(error) if named_node(drawn, str(error)) else f"(names no node) {error}")
    except ArithmeticError as error:
        return Outcome("wrong", str(error))
    except Exception as error:
        return Outcome("crashed", f"{type(error).__name__}: {error}")


def _books(drawn: Drawn, composite: str, tensor: str | None) -> Outcome:
    asked: dict[str, Any] = {"method": "lrp", "composite": composite, "ledger": True}
    full = told(drawn.model, drawn.feeds, **asked, keep=(tensor,) if tensor else ())
    for name, r in full.relevances.items():
        if not np.isfinite(r).all():
            return Outcome("wrong", f"{composite}: relevance of {name} is not finite")
    problem = closed(full)
    if problem:
        return Outcome("wrong", f"{composite}: {problem}")
    if tensor is None:
        return Outcome("right")
    node = next(n for n in drawn.model.graph.node if tensor in n.output)
    if node.name not in full.about["ledger"]["rows"]:
        return Outcome("right")
    try:
        part = told(drawn.model, drawn.feeds, **asked, attribute_to=(tensor,))
    except OnnxplainError as error:
        return Outcome("wrong", f"{composite}: {tensor} has a row in the books, but cannot be asked for: {error}")
    for name, rule in part.about["rules"].items():
        if full.about["rules"].get(name) != rule:
            return Outcome(
                "wrong", f"{composite}: asked for {tensor}, {name} has {rule}, else {full.about['rules'].get(name)}"
            )
    rows = full.about["ledger"]["rows"]
    own = f"{tensor}.asked"  # where an equal tensor was found, this one has an Identity, and a row, of its own
    row = full.books[:, rows.index(own if own in rows else node.name)]  # type: ignore[index]
    there, total = part.relevances[tensor], row[:, full.about["ledger"]["columns"].index("in")].sum()
    if abs(there.sum() - total) > SAME * max(1e-9, float(np.abs(there).sum())):
        return Outcome("wrong", f"{composite}: {tensor} receives {there.sum():.8g}, the books say {total:.8g}")
    return Outcome("right")


def _gradient_times_input(drawn: Drawn) -> Outcome:
    rules = list(GRADIENT_RULES)
    while True:
        try:
            lrp = told(drawn.model, drawn.feeds, method="lrp", composite="epsilon", rules=rules)
            break
        except UsageError as error:  # a rule for an op that this network lacks says nothing, and is refused
            unfit = [rule for rule in rules if f"rule {rule.split('=')[0]}=" in str(error)]
            if not unfit:
                raise
            rules.remove(unfit[0])
    gradient = told(drawn.model, drawn.feeds, method="gradient")
    for name, r in lrp.relevances.items():
        product = gradient.relevances[name] * drawn.feeds[name]
        if not agree(r, product):
            return Outcome("wrong", f"LRP-0 of {name} is not gradient x input: {np.abs(r - product).max():.3g} off")
    return Outcome("right")


def _forms(drawn: Drawn, composite: str, rng: np.random.Generator) -> Outcome:
    ranks = {n: v.ndim for n, v in tensor_values(drawn).items()}
    others = {name: forms.rewritten(drawn.model, name, ranks) for name in forms.FORMS}
    others |= {f"opset {o}": forms.at_opset(drawn.model, o) for o in (13, 21)}
    fitting = [name for name, model in others.items() if model is not None]
    if not fitting:
        return Outcome("right", "no other form")
    one = told(drawn.model, drawn.feeds, method="lrp", composite=composite)
    for form in rng.permutation(fitting)[:1]:
        model = others[str(form)]
        assert model is not None
        if runnable(Drawn(drawn.seed, model, drawn.feeds)):
            continue
        two = told(model, drawn.feeds, method="lrp", composite=composite)
        for name, r in one.relevances.items():
            if not agree(r, two.relevances[name]):
                off = float(np.abs(r - two.relevances[name]).max() / np.abs(r).max())
                return Outcome("wrong", f"{composite}: written as {form}, the relevance of {name} is {off:.3g} off")
    return Outcome("right")


def judged_network(seed: int) -> tuple[Drawn, Outcome]:
    """The first runnable network from this random seed on, and what came of it; one in six is linear."""
    linear = seed % 6 == 0
    for attempt in range(20):
        drawn = network(seed + 1_000_000 * attempt, linear)
        if not runnable(drawn):
            break
    return drawn, judge_network(drawn, linear)
