"""What onnxplain makes of a specimen (`specimens.py`): one word a method, and why. No torch in here."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnxruntime

from onnxplain import Explainer
from onnxplain.errors import OnnxplainError
from onnxplain.subject import Subject

TOLERANCE = 1e-3  # of the largest gradient: float32 against float64 through a hundred layers
ROUNDING, CHAOS = 2, 1e-2  # times as far as torch's own float32 is from its float64, up to this much: random weights
# make some networks chaotic
FORWARD = 1e-3  # of the largest output, likewise
METHODS = {"gradient": {}, "lrp": {}, "epsilon": {"composite": "epsilon"}}  # column -> options of an Explainer
STRONG = 0.25  # epsilon that keeps any network within float32
GOOD = ("equal", "finite", "overflow")


@dataclass
class Verdict:
    """One row of the table.

    verdicts: method -> one of GOOD; refused; export (torch itself cannot); slow; or what should never be: wrong, does
    not run, crash, nan, forward differs. why: reasons. batch: the one that the exporter fixed, 0 if it is open.
    """

    name: str
    exporter: str = ""
    batch: int = 0
    nodes: int = 0
    seconds: float = 0.0
    verdicts: dict[str, str] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, word: str, why: str) -> Verdict:
        """One word for all methods."""
        return cls(name, verdicts=dict.fromkeys(METHODS, word), why=dict.fromkeys(METHODS, why))

    def line(self) -> str:
        """As one line of JSON."""
        return json.dumps(dataclasses.asdict(self))


def session(path: Path) -> onnxruntime.InferenceSession:
    """As a stranger opens it: default options, but quiet and on one thread."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def judged(folder: Path, name: str = "", methods: tuple[str, ...] = tuple(METHODS)) -> Verdict:
    """Compile each method to a file, run the file, compare."""
    verdict = Verdict(name or folder.name)
    begun = time.perf_counter()
    oracle = dict(np.load(folder / "oracle.npz"))
    try:
        (verdict.batch,) = {
            x.shape[0] if isinstance(x.shape[0], int) else 0 for x in session(folder / "model.onnx").get_inputs()
        }
        oracle = {
            name: x
            for name, x in oracle.items()
            if not verdict.batch or name.split(".")[1:2] in ([], [str(verdict.batch)])
        }
        problem = _of_export(folder / "model.onnx", oracle)
    except Exception as error:
        problem = _line(error)
    if problem:
        verdict.verdicts, verdict.why = dict.fromkeys(methods, "export"), dict.fromkeys(methods, problem)
    else:
        for method, (word, why) in _methods(folder, methods, oracle, verdict).items():
            verdict.verdicts[method] = word
            verdict.why.update({method: why} if why else {})
    verdict.seconds = round(time.perf_counter() - begun, 1)
    return verdict


def _of_export(path: Path, oracle: dict[str, np.ndarray]) -> str:
    """What is wrong with the file itself, where onnxplain has no part in it."""
    plain = session(path)
    for key in _keys(oracle):
        (logits, *_) = plain.run(None, _feeds(plain, oracle, key))
        distance = _distance(logits, oracle[f"{key}.logits"])
        if not distance < FORWARD:
            return f"the exported file answers otherwise than torch by {distance:.1e} (try.batch {key})"
    return ""


def _methods(
    folder: Path, methods: tuple[str, ...], oracle: dict[str, np.ndarray], verdict: Verdict
) -> dict[str, tuple[str, str]]:
    """Method -> word and reason."""
    try:
        subject = Subject.of(folder / "model.onnx", provider="cpu")
    except Exception as error:
        return dict.fromkeys(methods, _raised(error))
    verdict.nodes = len(subject.source.model.graph)
    return {method: _method(subject, method, folder / f"{method}.onnx", oracle) for method in methods}


def _raised(error: Exception) -> tuple[str, str]:
    """A refusal is one line of ours; everything else should not have come out of the compiler."""
    return "refused" if isinstance(error, OnnxplainError) else "crash", _line(error)


def _method(
    subject: Subject, method: str, target: Path, oracle: dict[str, np.ndarray], rules: tuple[str, ...] | None = None
) -> tuple[str, str]:
    target.unlink(missing_ok=True)
    try:
        Explainer(subject, "gradient" if method == "gradient" else "lrp", rules=rules or (), **METHODS[method]).save(
            target
        )
    except Exception as error:
        return _raised(error)
    try:
        opened = session(target)
        ran = {key: _run(opened, oracle, key) for key in _keys(oracle)}
    except Exception as error:
        return "does not run", _line(error)
    finally:
        target.unlink(missing_ok=True)
    for key, (logits, relevance) in ran.items():
        if not np.isfinite(relevance).all():
            if rules is None and method == "epsilon":  # is it float32's range, or an error?
                word, why = _method(subject, method, target, oracle, _strong(subject, opened))
                if word == "finite":
                    return "overflow", f"beyond float32 with epsilon 1e-6, finite with {STRONG}"
                return word, why
            return "nan", f"{np.size(relevance) - np.isfinite(relevance).sum()} of {relevance.size} (try.batch {key})"
        distance = _distance(logits, oracle[f"{key}.logits"])
        if not distance < FORWARD:
            return "forward differs", f"by {distance:.1e} (try.batch {key})"
    relevances = {key: relevance for key, (_, relevance) in ran.items()}
    return _gradient(relevances, oracle) if method == "gradient" else _relevance(relevances, oracle)


def _strong(subject: Subject, opened: onnxruntime.InferenceSession) -> tuple[str, ...]:
    """Rules with the larger epsilon for every type of op that has epsilon in the file."""
    rules = json.loads(opened.get_modelmeta().custom_metadata_map["onnxplain"])["rules"]
    nodes = subject.source.model.graph
    types = sorted({node.op_type for node in nodes if str(rules.get(node.name)).startswith("epsilon(")})
    return tuple(f"type:{op_type}=epsilon(epsilon={STRONG})" for op_type in types)


def _gradient(ours: dict[str, np.ndarray], oracle: dict[str, np.ndarray]) -> tuple[str, str]:
    """equal, if for either batch size some try agrees with torch, or with what decides where torch's own is wrong.

    In a batch of 2 the slopes decide, of 1 torch's gradient of the same row beside another. As near as torch's own
    float32 is near enough.
    """
    notes = []
    for batch in (2, 1):
        keys = [key for key in ours if key.endswith(f".{batch}")]
        if not keys:  # the exporter fixed the batch
            continue
        distances = [_distance(ours[key], oracle[f"{key}.gradient"]) for key in keys]
        rounding = [float(oracle.get(f"{key}.rounding", 0)) for key in keys]
        rounded = [pair for pair in zip(distances, rounding, strict=True) if pair[0] <= min(ROUNDING * pair[1], CHAOS)]
        if min(distances) < TOLERANCE:
            kinks = sum(distance >= TOLERANCE for distance in distances)
            notes += [f"batch {batch}: {kinks} of {len(keys)} tries at a kink"] if kinks else []
        elif rounded:
            notes.append(f"batch {batch}: {min(rounded)[0]:.1e} off, torch's float32 by {min(rounded)[1]:.1e}")
        elif batch == 2:
            slopes = min(_slopes(ours[key], oracle, key) for key in keys)
            theirs = min(_slopes(oracle[f"{key}.gradient"], oracle, key) for key in keys)
            told = f"{min(distances):.1e} from torch's gradient; slopes off by {slopes:.1e}, torch's by {theirs:.1e}"
            if slopes >= TOLERANCE:
                return "wrong", f"batch 2: {told}"
            notes.append(f"batch 2: {told}")
        else:
            alike = [_distance(ours[key], oracle[f"{key[:-1]}2.gradient"][:1]) for key in keys]
            told = f"{min(distances):.1e} from torch's gradient, {min(alike):.1e} from that of the row in a batch of 2"
            if min(alike) >= TOLERANCE:
                return "wrong", f"batch 1: {told}"
            notes.append(f"batch 1: {told}")
    return "equal", "; ".join(notes)


def _relevance(ours: dict[str, np.ndarray], oracle: dict[str, np.ndarray]) -> tuple[str, str]:
    """finite, with the largest ratio of |R| to |seed * y|, where it is large."""
    ratio = max(
        np.abs(relevance).sum() / np.abs(oracle[f"{key}.seed"] * oracle[f"{key}.logits"]).sum()
        for key, relevance in ours.items()
    )
    return "finite", f"sum of |R| is {ratio:.0e} times that of |seed y|" if ratio > 1e4 or ratio < 1e-6 else ""


def _slopes(gradient: np.ndarray, oracle: dict[str, np.ndarray], key: str) -> float:
    """Largest difference of the derivatives along the directions, over the length of the gradient."""
    along = (oracle[f"{key}.directions"].astype(np.float64) * gradient).reshape(len(oracle[f"{key}.slopes"]), -1).sum(1)
    return float(np.abs(along - oracle[f"{key}.slopes"]).max() / np.linalg.norm(gradient))


def _keys(oracle: dict[str, np.ndarray]) -> list[str]:
    return [name.removesuffix(".seed") for name in oracle if name.endswith(".seed")]


def _feeds(opened: onnxruntime.InferenceSession, oracle: dict[str, np.ndarray], key: str) -> dict[str, np.ndarray]:
    names = {x.name for x in opened.get_inputs()}
    prefix = f"{key}.input."
    return {
        n.removeprefix(prefix): x for n, x in oracle.items() if n.startswith(prefix) and n.removeprefix(prefix) in names
    }


def _run(
    opened: onnxruntime.InferenceSession, oracle: dict[str, np.ndarray], key: str
) -> tuple[np.ndarray, np.ndarray]:
    """Outputs of the model, relevance of the attributed input."""
    (seed,) = [x.name for x in opened.get_inputs() if x.name.endswith(".seed")]
    wanted = ["logits", f"{oracle['attributed']}.relevance"]
    feeds = {**_feeds(opened, oracle, key), seed: oracle[f"{key}.seed"]}
    logits, relevance = opened.run(wanted, feeds)
    return logits, relevance


def _distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    if ours.shape != theirs.shape:
        return float("inf")
    return float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-30))


def _line(error: Exception) -> str:
    return re.sub(r"\s+", " ", f"{type(error).__name__}: {error}")[:400]
