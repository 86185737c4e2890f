"""What a user holds: an Explainer made of a model and a recipe, and the Explanations it gives."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxplain.compile import Compiled, Request, compile_graph
from onnxplain.compile.ledger import LEDGER
from onnxplain.compile.save import save
from onnxplain.composites import Bounds
from onnxplain.cpu_session import CpuSession
from onnxplain.errors import ConversionChanged, InputError, UnknownName, UsageError
from onnxplain.explanation import Explanation
from onnxplain.frontend.compare import mismatch
from onnxplain.frontend.verify import second
from onnxplain.graph import weight_files
from onnxplain.graph.outline import release, runtime
from onnxplain.inputs import InputSpec, bind, resolve_targets
from onnxplain.inputs.naming import match
from onnxplain.inputs.samples import answer_alone, may_be_rows
from onnxplain.inputs.settings import KINDS
from onnxplain.inputs.tables import Columns, from_table, is_table
from onnxplain.inputs.targets import Target, labels_unfit, one_thing
from onnxplain.recipes import Recipe
from onnxplain.runtime import chunking, verification
from onnxplain.runtime.nonfinite import answer_error, score_error
from onnxplain.runtime.open import bytes_per_stream, nbytes_of_weights
from onnxplain.runtime.session import Array, Runs
from onnxplain.subject import Subject

VERIFIED = (
    1 << 25
)  # bytes of weights and of one stream's tensors; below, a verification takes some hundredths of a second
ROUNDING = 1e-2  # of the largest value: two forms of a model on any provider agree to that, a wrong kernel does not
SEARCHES = 8  # of an explainer, for where a NaN begins: each is a session and a run
Ask = str | int | Callable[[Array, Sequence[str], str | None], list[Target]]


class Explainer:
    """A model with a recipe.

    model: path of an ONNX file, or a Subject to share between recipes. method, composite, rules, form: the recipe.
    explain, head, seed, attribute_to, keep, ledger, fold: `compile.Request`; with provider and threads they are a
    Subject's own, and refused beside one that was made otherwise. bounds: (lows, highs) of the input per
    channel, in model units, for the box rule. labels: class names. kind: classification, regression, sigmoid or dense.
    sample, shapes: as in `Subject.of`.
    columns: names of a table's columns in the model's order, for the one input or by input: a DataFrame goes by them.
    Raises InputError, UnsupportedModel, UnsupportedOp, UsageError.
    """

    def __init__(
        self,
        model: str | Path | Subject,
        method: str = "lrp",
        *,
        composite: str | None = None,
        rules: Sequence[str] = (),
        form: str | None = None,
        explain: str | Sequence[str] | None = None,
        head: str | None = None,
        seed: str | None = None,
        attribute_to: str | Sequence[str] | None = None,
        keep: str | Sequence[str] | None = None,
        ledger: bool | None = None,
        fold: bool | None = None,
        bounds: Bounds = None,
        labels: Sequence[str] = (),
        kind: str | None = None,
        columns: Sequence[str] | Columns = (),
        provider: str | None = None,
        threads: int | None = None,
        sample: Array | Mapping[str, Array] | None = None,
        shapes: Mapping[str, Sequence[int]] | None = None,
    ):
        self.recipe = Recipe(method, composite, tuple(rules), form)
        passes, self.method = self.recipe.passes(bounds)
        asked: dict[str, Any] = {
            "explain": _names(explain),
            "head": head,
            "seed": seed,
            "attribute_to": _names(attribute_to),
            "keep": _names(keep),
            "ledger": ledger,
            "fold": fold,
        }
        asked = {name: value for name, value in asked.items() if value is not None}
        if isinstance(model, Subject):
            _refuse_others(
                model, asked | {"provider": provider, "threads": threads, "sample": sample, "shapes": shapes}
            )
        else:
            model = Subject.of(model, Request(**asked), provider or "auto", threads or 0, sample=sample, shapes=shapes)
        if kind is not None and kind not in KINDS:
            raise UnknownName("kind", kind, KINDS)
        self.subject = model
        self.compiled: Compiled = compile_graph(model.normalised, model.resolved, passes, model.request)
        self.bounds = bounds
        self.columns = _columns(columns, model.inputs)
        self.labels, self.kind = tuple(labels), kind or _kind(model.resolved.heads)
        if bounds is None and (note := self.recipe.without_bounds):
            self.compiled.notes.append(note)
        self._session: Runs | None = None
        self._searches = SEARCHES

    @property
    def explained(self) -> tuple[str, ...]:
        """Names of the explained tensors."""
        return tuple(self.subject.resolved.explained)

    @property
    def notes(self) -> list[str]:
        """What the compiler chose by itself, in sentences."""
        return list(dict.fromkeys(self.compiled.notes))

    @property
    def session(self) -> Runs:
        """The compiled graph in onnxruntime; created when first used, and verified where that takes no time."""
        if self._session is None:
            model = self.compiled.model
            session = self.subject.open(model, self.recipe.digest)
            if self.subject.opener is None and nbytes_of_weights(model) + bytes_per_stream(model) <= VERIFIED:
                self.verify(users=lambda: session, batches=1)
            self._session = session
        return self._session

    def row_axes(self) -> dict[str, int] | None:
        """The axis of every input and output of the compiled graph that carries its rows; None: rows do not go apart.

        Proven on the graph: what is None must not be put into one batch with somebody else's rows.
        """
        forward = self.subject.row_axes()
        if forward is None or not self.compiled.streams:
            return None
        return {
            **forward,
            **dict.fromkeys(self.compiled.seeds, 0),
            **self.compiled.provenance["stream_axis"],
            LEDGER: 0,
        }

    def save(self, path: str | Path, put_aside: bool = False) -> None:
        """Write the compiled graph; any onnxruntime runs it.

        put_aside: the larger weights are read from that file from now on, in place of memory; so it has to stay.
        """
        places = save(self.compiled.model, Path(path), self.subject.source.path)
        if put_aside:
            weight_files.put_aside(
                [self.compiled.model, self.subject.normalised.model], weight_files.File(Path(path)), places
            )

    def verify(
        self, path: str | Path | None = None, users: Callable[[], Runs] | None = None, batches: int = 2
    ) -> list[str]:
        """Compare what users run with the source and with the graph as written, forward and backward.

        Users run the file at `path`, else what `users` opens, else this explainer's session. batches: 2 tries another
        batch size too, where the batch is open. Returns notes on relevances that are not finite. Raises
        ConversionChanged with the output that differs.
        """
        references, model = [self.subject.normalised.reference], self.compiled.model
        if batches > 1 and (other := second(self.subject.source, references[0])) is not None:
            references.append(other)
        asked = verification.questions(self.compiled, references)
        names = [str(value.name) for value in self.subject.source.model.graph.outputs]
        release(self.subject.source.model, self.subject.normalised.model, model)
        if path is None:
            opened = users or (lambda: self.session)
            return verification.verify(self.compiled, asked, names, opened, lambda: runtime(model))
        file = Path(path)
        return verification.verify(
            self.compiled, asked, names, lambda: CpuSession(file, optimise=True), lambda: CpuSession(file)
        )

    def run(self, inputs: Array | Mapping[str, Array], seed: Array | Mapping[str, Array]) -> dict[str, Array]:
        """Outputs of the compiled graph by name.

        inputs: (N, …), one array or by name. seed: (S, …), one array or by explained tensor; S = N, or N = 1, or S = 1
        (the same for every row). More rows than fit in memory are run in chunks. Raises NotFinite where a score or a
        relevance is NaN or infinite; `session.run` returns those as they are.
        """
        feeds = self._feeds(inputs)
        seeds = self.compiled.seeds  # name in the graph -> explained tensor
        if isinstance(seed, Mapping):
            by_tensor = {source: name for name, source in seeds.items()}
            named = [by_tensor.get(name, name) for name in seed]
            positions = match(named, list(seeds), "seed", "the seeds", f"Give one for each of {', '.join(by_tensor)}.")
            arrays = list(seed.values())
            given = {name: np.asarray(arrays[n]) for name, n in zip(seeds, positions, strict=True)}
        elif len(seeds) != 1:
            raise UsageError(f"several tensors are explained: give a seed for each of {', '.join(seeds.values())}.")
        else:
            given = {name: np.asarray(seed) for name in seeds}
        return self._run(feeds, given)

    def explain(self, inputs: Array | Mapping[str, Array], target: Ask | Sequence[Ask] = "predicted") -> Explanation:
        """Explain a batch for one or several targets.

        inputs: (N, …) in model units. target: `predicted`, `top3`, a class name, an index, "A vs B", a function
        (scores, labels, kind) -> targets, or several. Raises NotFinite, as `run` does.
        """
        if len(self.explained) != 1:
            raise UsageError("several tensors are explained: use run(inputs, seed) with a seed for each.")
        if self.subject.request.seed == "index":
            raise UsageError(
                "explain() makes float seeds; an explainer compiled with seed='index' is run by run(inputs, target)."
            )
        feeds = self._feeds(inputs)
        forward = self.subject.forward(feeds)
        name = self.explained[0]
        values = forward[name] if name in forward else feeds[name]
        if (error := score_error(self.subject.normalised.model, feeds, name, values, self._searches > 0)) is not None:
            self._searches -= 1
            raise error
        separate = self._rows_are_samples(feeds, values)
        scores = values if separate else one_thing(values)
        notes = self.notes if separate else [*self.notes, _one_thing_said(name, values, feeds)]
        if unfit := labels_unfit(scores, self.labels, self.kind):
            if not self.subject.request.explain:
                raise UsageError(f"{unfit} of {name} {list(values.shape)}: give as many labels as there are classes.")
            notes = [*notes, f"{unfit} of {name}: they name another tensor, and are not used"]
        asked = [target] if isinstance(target, (str, int, np.integer)) or callable(target) else list(target)
        targets = [t for ask in asked for t in self._resolve(ask, scores)]
        begun = time.perf_counter()
        outputs = self._targets(feeds, name, targets, scores) if separate else self._whole(feeds, targets, values)
        self._compare(forward, outputs)
        relevance = {source: outputs[out] for out, source in self.compiled.relevances.items()}
        known = {**feeds, **forward}
        kept = {n: known[n] for n in self.subject.request.keep}
        return Explanation(
            method=self.method,
            recipe=self.recipe,
            targets=targets,
            samples=scores.shape[0] if separate and scores.ndim else 1,
            relevances=relevance,
            inputs=feeds,
            scores=scores,
            explained=name,
            outputs={n: forward[n] for n in forward if n not in kept},
            kept=kept,
            ledger=outputs.get(LEDGER),
            provenance=self.compiled.provenance,
            labels=self.labels,
            kind=self.kind,
            notes=notes,
            seconds=time.perf_counter() - begun,
        )

    def _compare(self, forward: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        """The compiled graph's forward answers on the user's own input must be the model's."""
        alike = [n for n in outputs if n in forward and np.shape(outputs[n]) == np.shape(forward[n])]
        bounded = self.subject.normalised.reference.bounded
        problem = mismatch({n: forward[n] for n in alike}, {n: outputs[n] for n in alike}, bounded, ROUNDING)
        if problem is not None:
            raise ConversionChanged(f"the compiled graph answers this input differently from the model: {problem}.")

    def _resolve(self, ask: Ask, scores: Array) -> list[Target]:
        if callable(ask):
            return ask(scores, self.labels, self.kind)
        return resolve_targets(str(ask), scores, self.labels, self.kind)

    def _rows_are_samples(self, feeds: dict[str, Array], scores: Array) -> bool:
        """Whether axis 0 of the explained tensor counts the inputs' samples: proven on the graph, else tried."""
        if self.compiled.streams:
            return True
        if not may_be_rows(feeds, scores):
            return False
        (name,) = self.explained
        if all(len(x) == 1 for x in feeds.values() if x.ndim) or (self.subject.row_axes() or {}).get(name) == 0:
            return True
        return answer_alone(lambda changed: self.subject.forward(changed, [name])[name], feeds, scores)

    def _whole(self, feeds: dict[str, Array], targets: Sequence[Target], values: Array) -> dict[str, Array]:
        """Every target of the explained tensor as one thing, a run for each; the targets lie along a new axis 0.

        Tensors that have an axis 0 of length one have the targets there.
        """
        key = next(iter(self.compiled.seeds))
        dtype = np.float64 if values.dtype == np.float64 else np.float32
        parts = []
        for target in targets:
            asked = {**feeds, key: target.seed.reshape(values.shape).astype(dtype)}
            parts.append(self.session.run(asked))
            self.require_finite(asked, parts[-1])
        return {
            name: (np.concatenate if array.shape[:1] == (1,) else np.stack)([part[name] for part in parts])
            for name, array in parts[0].items()
        }

    def _targets(
        self, feeds: dict[str, Array], name: str, targets: Sequence[Target], scores: Array
    ) -> dict[str, Array]:
        """Every target of every row; rows of the result are target-major."""
        rows = scores.shape[0] if scores.ndim else 1
        key = next(iter(self.compiled.seeds))
        dtype = np.float64 if scores.dtype == np.float64 else np.float32
        seeds = [np.broadcast_to(t.seed, scores.shape).astype(dtype) for t in targets]
        if rows == 1 and scores.ndim:
            return self._run(feeds, {key: np.concatenate(seeds)})
        parts = [self._run(feeds, {key: seed}) for seed in seeds]
        return chunking.concatenate(parts, self._row_axes())

    def _run(self, feeds: dict[str, Array], seeds: dict[str, Array]) -> dict[str, Array]:
        found = self._compute(feeds, seeds)
        self.require_finite({**feeds, **seeds}, found)
        return found

    def require_finite(self, feeds: Mapping[str, Array], found: Mapping[str, Array]) -> None:
        """Raise NotFinite for a score or relevance that is NaN or infinite, with the first tensor that is.

        feeds: seeds among them. found: outputs of the compiled graph.
        """
        if (error := answer_error(self.compiled, feeds, found, self._searches > 0)) is not None:
            self._searches -= 1
            raise error

    def _compute(self, feeds: dict[str, Array], seeds: dict[str, Array]) -> dict[str, Array]:
        if not self.compiled.streams and self._exact(feeds, seeds):
            return self.session.run({**feeds, **seeds})
        rows = _rows(feeds)
        streams = {seed.shape[0] if seed.ndim else 1 for seed in seeds.values()}
        count = max(streams)
        if len(streams - {1}) > 1 or (count != rows and 1 not in (count, rows)):
            raise InputError(
                f"{rows} input rows and {sorted(streams)} seeds: there is one seed a row, or one row, or one seed."
            )
        count = max(count, rows)
        seeds = {k: np.repeat(seed, count, 0) if seed.ndim and len(seed) < count else seed for k, seed in seeds.items()}
        size = count
        if self.compiled.streams:
            size = chunking.rows_per_run(bytes_per_stream(self.compiled.model), count)
        elif rows < count:
            size = 1
        parts = []
        for rows_of_chunk in chunking.chunks(count, size):
            part = {k: seed[rows_of_chunk] if seed.ndim and count > 1 else seed for k, seed in seeds.items()}
            x = {k: v[rows_of_chunk] for k, v in feeds.items()} if rows > 1 and size < count else feeds
            parts.append(self.session.run({**x, **part}))
        return chunking.concatenate(parts, self._row_axes())

    def _exact(self, feeds: dict[str, Array], seeds: dict[str, Array]) -> bool:
        """Whether the seeds have the very shapes of the explained tensors, whatever axis 0 of these means."""
        forward = self.subject.forward(feeds, list(self.compiled.seeds.values()))
        for name, source in self.compiled.seeds.items():
            shape, seed = forward[source].shape, seeds[name]
            wanted = (*shape[:1], len(shape) - 1)[: 1 if len(shape) == 2 else 2] if name.endswith(".target") else shape
            if seed.shape != wanted:
                return False
        return True

    def _row_axes(self) -> dict[str, int | None]:
        axes: dict[str, int | None] = {LEDGER: 0}
        for out, axis in self.compiled.provenance["stream_axis"].items():
            axes[out] = axis if axis is not None else 0
        for name in self.session.outputs:
            axes.setdefault(name, 0 if _rows_of(self.compiled.model, name) else None)
        return axes

    def _feeds(self, inputs: Array | Mapping[str, Array]) -> dict[str, Array]:
        specs = self.subject.inputs
        if is_table(inputs):
            return bind(from_table(inputs, specs, self.columns), specs)
        if not isinstance(inputs, Mapping):
            if len(specs) != 1:
                raise InputError(f"the model has the inputs {', '.join(s.name for s in specs)}: give arrays by name.")
            inputs = {"": inputs}
        return bind({k: np.asarray(v) for k, v in inputs.items()}, specs)


def _columns(given: Sequence[str] | Columns, inputs: Sequence[InputSpec]) -> Columns:
    """By input. Raises UsageError for names of several inputs' columns in one list, or of no input."""
    if isinstance(given, Mapping):
        if unknown := [name for name in given if all(name != spec.name for spec in inputs)]:
            raise UnknownName("input (of columns)", unknown[0], [spec.name for spec in inputs])
        return dict(given)
    if given and len(inputs) != 1:
        raise UsageError(
            f"columns: the model has {len(inputs)} inputs; give names by input, {{{inputs[0].name!r}: […]}}."
        )
    return {inputs[0].name: tuple(given)} if given else {}


def _names(given: str | Sequence[str] | None) -> tuple[str, ...] | None:
    return (given,) if isinstance(given, str) else None if given is None else tuple(given)


def _refuse_others(subject: Subject, asked: Mapping[str, Any]) -> None:
    """A Subject was made for one request and one provider: raise UsageError for what it was not made for."""
    held = {**vars(subject.request), "provider": subject.provider, "threads": subject.threads}
    for name, value in asked.items():
        if value is None or (name in held and value == held[name]):
            continue
        made = f"with {name}={held[name]!r}" if name in held else f"without this {name}"
        raise UsageError(
            f"{name}={value!r}: the Subject was made {made}, and its explainers share that. "
            "Make another: Subject.of(path, Request(…), provider, threads, …)."
        )


def _kind(heads: Mapping[str, str]) -> str | None:
    return "sigmoid" if "Sigmoid" in heads.values() else None


def _one_thing_said(name: str, values: Array, feeds: Mapping[str, Array]) -> str:
    inputs = ", ".join(f"{key} {list(array.shape)}" for key, array in feeds.items())
    return (
        f"axis 0 of {name} {list(values.shape)} does not count samples of {inputs}: it is explained as one thing, and "
        "targets address its positions"
    )


def _rows(feeds: Mapping[str, Array]) -> int:
    return max((array.shape[0] for array in feeds.values() if array.ndim), default=1)


def _rows_of(model: ir.Model, name: str) -> bool:
    value = next(v for v in model.graph.outputs if v.name == name)
    return bool(value.shape is not None and len(value.shape) and not isinstance(value.shape[0], int))
