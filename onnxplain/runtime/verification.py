"""Is a compiled graph right where users run it: under onnxruntime's default optimisation, forward and backward?

The forward answers are the source's. The relevances are those of the same graph as written, without optimisation, for
which the laws of the derivatives and rules hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from onnxplain.bfloat16 import is_floating
from onnxplain.compile.assemble import Compiled
from onnxplain.cpu_session import give_back
from onnxplain.errors import ConversionChanged, InputError, OutOfMemory, UnsupportedModel
from onnxplain.frontend.compare import HALF_TOLERANCE
from onnxplain.frontend.verify import Reference
from onnxplain.runtime.finite import Holes, first_not_finite
from onnxplain.runtime.first_difference import first_difference

TOLERANCE = 1e-3  # of a relevance's length; rules divide by sums that nearly cancel, a wrong kernel is off by far more
NOISE = 1e-6  # of each input value, some roundings of float32: what a graph makes of it is what rounding may do to it
COARSE = 1e-3  # the same for 16 bits, and for CUDA, which multiplies float32 with 11 bits by default
TIMES = 10.0  # more than that many times what noise does is no rounding
DRAWS = 3
CPU = ("CPUExecutionProvider",)
REPORT = "Please report this model."

Arrays = Mapping[str, np.ndarray]


class _Session(Protocol):
    """What runs a graph: a Session, a CpuSession, or what a server puts in their place."""

    def run(self, feeds: Arrays) -> Mapping[str, Any]:
        """Outputs by name."""


@dataclass(frozen=True)
class Question:
    """Feeds, seeds among them, and what the source answers to them; None: only relevances are compared."""

    feeds: Arrays
    reference: Reference | None


def questions(compiled: Compiled, references: Sequence[Reference]) -> list[Question]:
    """One for each reference (each has another batch size), and one row with two seeds where streams are free."""
    rng = np.random.default_rng(0)
    found = [Question({**r.feeds, **_other_inputs(compiled, r), **_seeds(compiled, r, rng)}, r) for r in references]
    own = references[0].feeds
    rows = {x.shape[0] if x.ndim else 0 for x in own.values()}
    if compiled.streams and len(rows) == 1 and (len(references) > 1 or rows == {1}):
        single = {v.name for v in compiled.ports.inputs if v.shape and isinstance(v.shape[0], int)} | set(own)
        row = {n: x[:1] if n in single else np.resize(x, (2, *x.shape[1:])) for n, x in found[0].feeds.items()}
        found.append(Question(row, None))
    return found


def _other_inputs(compiled: Compiled, reference: Reference) -> dict[str, np.ndarray]:
    """Reference inputs: half of what is fed, so that no difference is zero; indices and the like as they are."""
    found = {name: reference.feeds[source] for name, source in compiled.references.items()}
    return {name: np.asarray(x / 2, x.dtype) if is_floating(x) else x for name, x in found.items()}


def _seeds(compiled: Compiled, reference: Reference, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Random seeds of the explained tensors' shapes; for `--seed index` random indices."""
    seeds: dict[str, np.ndarray] = {}
    for name, source in compiled.seeds.items():
        y = np.asarray(reference.outputs[source] if source in reference.outputs else reference.feeds[source])
        if name.endswith(".target"):
            index = np.stack([rng.integers(0, max(1, n), len(y)) for n in y.shape[1:]], 1)
            seeds[name] = index[:, 0] if y.ndim == 2 else index
        else:
            seeds[name] = np.asarray(rng.standard_normal(y.shape), np.promote_types(y.dtype, np.float32))
    return seeds


def verify(
    compiled: Compiled,
    asked: Sequence[Question],
    outputs: Sequence[str],
    open_users: Callable[[], _Session],
    open_plain: Callable[[], _Session],
) -> list[str]:
    """Compare what users run with the source and with the graph as written; returns what is not finite, as notes.

    outputs: the model's own. open_users, open_plain: the sessions, of which one is held at a time. Raises
    ConversionChanged with the output, and with the node where one can be found.
    """
    give_back()
    try:
        answers, noise = _answers(open_users, asked)
    except OutOfMemory:
        raise
    except (UnsupportedModel, InputError) as error:
        raise ConversionChanged(
            f"the compiled graph does not run in a session of onnxruntime's default options: {error}. {REPORT}"
        ) from error
    give_back()
    plain = open_plain()
    for question, answer in zip(asked, answers, strict=True):
        Comparison(compiled, question, answer, plain, noise).judge(outputs)
    return _holes(compiled, asked[0].feeds, answers[0], outputs)


def _answers(open_session: Callable[[], _Session], asked: Sequence[Question]) -> tuple[list[Mapping[str, Any]], float]:
    """What a session answers, and how coarsely it computes; it is gone when this returns."""
    session = open_session()
    coarse = set(getattr(session, "providers", CPU)) != set(CPU)
    return [session.run(question.feeds) for question in asked], COARSE if coarse else NOISE


class Comparison:
    """One question's answers with optimisation (`answer`) and without."""

    def __init__(
        self, compiled: Compiled, question: Question, answer: Mapping[str, Any], plain: _Session, noise: float
    ) -> None:
        self.compiled, self.question, self.answer, self.plain = compiled, question, answer, plain
        self.expected = plain.run(question.feeds)
        reference = question.reference
        self.noise = max(noise, COARSE if reference is not None and reference.tolerance >= HALF_TOLERANCE else 0.0)

    def judge(self, outputs: Sequence[str]) -> None:
        """Raise ConversionChanged for the first output that differs by more than rounding."""
        reference = self.question.reference
        for name in outputs if reference is not None else ():
            assert reference is not None
            if (problem := reference.mismatch(self.expected, [name])) is not None:
                raise ConversionChanged(f"the compiled graph answers differently from the model: {problem}. {REPORT}")
            problem = reference.mismatch(self.answer, [name])
            if problem is not None and not self._rounding(name):
                raise ConversionChanged(self._optimised(name, problem))
        for name in self.compiled.relevances:
            error = distance(self.answer[name], self.expected[name])
            if error > TOLERANCE and not self._rounding(name):
                raise ConversionChanged(self._optimised(name, f"output {name}: differs by {error:.1e} of its length"))

    def _rounding(self, name: str) -> bool:
        """Whether an output differs by no more than noise on the inputs makes it."""
        expected = self.expected[name]
        if not isinstance(expected, np.ndarray) or not is_floating(expected):
            return False
        error, rng = distance(self.answer[name], expected), np.random.default_rng(1)
        for _ in range(DRAWS):
            noisy = {
                key: np.asarray(x * (1 + self.noise * rng.standard_normal(x.shape)), x.dtype)
                for key, x in self.question.feeds.items()
                if is_floating(x)
            }
            if error <= TIMES * distance(self.plain.run({**self.question.feeds, **noisy})[name], expected):
                return True
        return False

    def _optimised(self, name: str, problem: str) -> str:
        """What to tell of an output that optimisation changes."""
        where = first_difference(self.compiled.model, self.question.feeds, name, _same) or ""
        return (
            f"onnxruntime's default optimisation changes the answer: {problem}{where and f', first at {where}'}. "
            f"Sessions with graph_optimization_level ORT_DISABLE_ALL answer as they should. {REPORT}"
        )


def distance(found: Any, expected: Any) -> float:
    """Length of the difference over the length of the expected; infinite where shapes or holes differ."""
    a, b = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    if a.shape != b.shape or not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return float("inf")
    a, b = a[np.isfinite(b)], b[np.isfinite(b)]
    scale = max(float(np.abs(b).max(initial=0.0)), float(np.abs(a).max(initial=0.0)))  # squares may overflow
    if scale == 0.0:
        return 0.0
    length = float(np.linalg.norm(b / scale))
    return float(np.linalg.norm((a - b) / scale)) / length if length else float("inf")


def _same(users: np.ndarray, plain: np.ndarray) -> bool:
    return distance(users, plain) <= TOLERANCE if is_floating(plain) else bool(np.array_equal(users, plain))


def _holes(compiled: Compiled, feeds: Arrays, answer: Mapping[str, Any], outputs: Sequence[str]) -> list[str]:
    """A note for each relevance that is not finite on random input for which the model's own answer is."""
    if any(isinstance(answer[name], np.ndarray) and Holes.of(answer[name]) is not None for name in outputs):
        return []
    notes = []
    for name, source in compiled.relevances.items():
        if (holes := Holes.of(answer[name])) is None:
            continue
        found = first_not_finite(compiled.model, feeds, holes.nans > 0)
        where = f" (first in {found[0]}, output of {found[1]})" if found else ""
        notes.append(f"on random input {holes} in the relevance of {source}{where}")
    return notes
