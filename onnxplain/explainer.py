"""What a user holds: an Explainer made of a model and a recipe, and the Explanations it gives."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxplain import __version__
from onnxplain.compile import Compiled, Request, require_reached
from onnxplain.compile.ledger import LEDGER
from onnxplain.composites import Bounds
from onnxplain.errors import UnknownName, UsageError
from onnxplain.explanation import Explanation
from onnxplain.explanation_graph import ExplanationGraph
from onnxplain.inputs import resolve_targets
from onnxplain.inputs.background import IDLE_BACKGROUND, NO_BACKGROUND, Background
from onnxplain.inputs.naming import match
from onnxplain.inputs.samples import one_thing_said
from onnxplain.inputs.settings import KINDS
from onnxplain.inputs.tables import Columns, columns_by_input, feeds_of
from onnxplain.inputs.targets import Target, labels_unfit, one_thing
from onnxplain.loop_answers import LoopAnswers
from onnxplain.loop_plan import LoopPlan
from onnxplain.loops import Progress
from onnxplain.methods import METHODS, Looped
from onnxplain.recipes import Recipe
from onnxplain.runtime.memory_budget import nbytes_of
from onnxplain.runtime.nonfinite import score_error
from onnxplain.runtime.session import Array, Runs
from onnxplain.subject import Subject

Ask = str | int | Callable[[Array, Sequence[str], str | None], list[Target]]


class Explainer:
    """A model with a recipe.

    model: path of an ONNX file, or a Subject to share between recipes. method: a name, or a Recipe, which says all;
    base: what a looped method runs, by a recipe's name or as a Recipe. options: of the method, as `onnxplain methods`
    lists them: composite, rules and form of LRP, steps and baseline of integrated gradients.
    explain, head, seed, attribute_to, keep, ledger, fold: `compile.Request`; with provider and threads they are a
    Subject's own, and refused beside one that was made otherwise. bounds: (lows, highs) of the input per
    channel, in model units, for the box rule. labels: class names. kind: classification, regression, sigmoid or dense.
    sample, shapes, memory: as in `Subject.of`.
    columns: names of a table's columns in the model's order, for the one input or by input: a DataFrame goes by them.
    background: rows of the inputs, (B, …), in model units, for methods with baseline=background.
    graph: a compiled graph of the recipe's one-pass part, where there is one already.
    Raises InputError, UnsupportedModel, UnsupportedOp, UsageError.
    """

    def __init__(
        self,
        model: str | Path | Subject,
        method: str | Recipe = "lrp",
        *,
        base: str | Recipe | None = None,
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
        background: Background | Array | Mapping[str, Array] | None = None,
        provider: str | None = None,
        threads: int | None = None,
        sample: Array | Mapping[str, Array] | None = None,
        shapes: Mapping[str, Sequence[int]] | None = None,
        memory: int | str | None = None,
        graph: ExplanationGraph | None = None,
        **options: Any,
    ):
        self.recipe = Recipe.asked(method, base, **options)
        self.method = METHODS[self.recipe.method]
        asked: dict[str, Any] = {
            "explain": _names(explain), "head": head, "seed": seed, "attribute_to": _names(attribute_to),
            "keep": _names(keep), "ledger": ledger, "fold": fold,
        }  # fmt: skip
        asked = {name: value for name, value in asked.items() if value is not None}
        made: dict[str, Any] = {
            "sample": sample,
            "shapes": shapes,
            "memory": None if memory is None else nbytes_of(memory),
        }
        if isinstance(model, Subject):
            model.refuse_others({**asked, "provider": provider, "threads": threads, **made})
        else:
            model = Subject.of(model, Request(**asked), provider or "auto", threads or 0, **made)
        if kind is not None and kind not in KINDS:
            raise UnknownName("kind", kind, KINDS)
        model.resolved.require_explained()
        self.subject = model
        if self.recipe.looped and model.request.ledger:
            raise UsageError(
                f"ledger: method {self.method.name} looks at the model many times, and a ledger is of one run; take it "
                f"of {'lrp' if self.recipe.base is None else self.recipe.base.title}."
            )
        self._graph = graph  # None: a forward-only method, which has none
        if self.method.family == "forward-only":
            require_reached(model.normalised.model.graph, model.resolved.explained)
        elif graph is None:
            self._graph = ExplanationGraph(model, self.recipe.one_pass, bounds)
        self.bounds, self.columns = bounds, columns_by_input(columns, model.inputs)
        self.labels, self.kind = tuple(labels), kind or _kind(model.resolved.heads)
        if background is not None and not isinstance(background, Background):
            background = Background.of(background, model.inputs, self.columns)
        if (needed := self.recipe.background) == ("required" if background is None else "none"):
            raise UsageError(f"method {self.method.name}: {IDLE_BACKGROUND if needed == 'none' else NO_BACKGROUND}")
        self.background = background
        self._plan: LoopPlan | None = None
        if isinstance(self.method, Looped):
            self._plan = LoopPlan(
                model, self.recipe, self.method, self._graph, bounds, background, self.columns, self.labels
            )

    @property
    def explained(self) -> tuple[str, ...]:
        """Names of the explained tensors."""
        return tuple(self.subject.resolved.explained)

    @property
    def notes(self) -> list[str]:
        """What the compiler chose by itself, in sentences."""
        subject = self.subject
        of_graph = (*subject.normalised.notes, *subject.resolved.notes)
        if self._graph is not None:
            of_graph = tuple(self._graph.compiled.notes)
        return list(dict.fromkeys([*of_graph, *(self._plan.notes if self._plan is not None else ())]))

    @property
    def graph(self) -> ExplanationGraph:
        """The compiled graph that answers for this recipe. Raises UsageError for a looped method: no one graph does."""
        self.recipe.require_graph()
        assert self._graph is not None
        return self._graph

    @property
    def bytes_per_stream(self) -> int:
        """Memory that one more row takes while it is explained, in bytes; 0 where no graph runs."""
        return 0 if self._graph is None else self._graph.bytes_per_stream

    @property
    def compiled(self) -> Compiled:
        """The compiled graph as a model, with its names. Raises UsageError as `graph` does."""
        return self.graph.compiled

    @property
    def session(self) -> Runs:
        """What runs the compiled graph; created when first used."""
        return self.graph.session

    def row_axes(self) -> dict[str, int] | None:
        """See `ExplanationGraph.row_axes`."""
        return self.graph.row_axes()

    def save(self, path: str | Path, put_aside: bool = False) -> None:
        """Write the compiled graph, see `ExplanationGraph.save`. Raises UsageError as `graph` does."""
        self.graph.save(path, put_aside)

    def verify(
        self, path: str | Path | None = None, users: Callable[[], Runs] | None = None, batches: int = 2
    ) -> list[str]:
        """Compare what users run with the source, see `ExplanationGraph.verify`."""
        return self.graph.verify(path, users, batches)

    def run(self, inputs: Array | Mapping[str, Array], seed: Array | Mapping[str, Array]) -> dict[str, Array]:
        """Outputs of the compiled graph by name.

        inputs: (N, …), one array or by name. seed: (S, …), one array or by explained tensor; S = N, or N = 1, or S = 1
        (the same for every row). More rows than fit in memory are run in chunks. Raises NotFinite where a score or a
        relevance is NaN or infinite; `session.run` returns those as they are.
        """
        feeds = feeds_of(inputs, self.subject.inputs, self.columns)
        seeds = self.compiled.seeds  # name in the graph -> explained tensor
        if isinstance(seed, Mapping):
            by_tensor = {source: name for name, source in seeds.items()}
            named = [by_tensor.get(name, name) for name in seed]
            positions = match(named, list(seeds), "seed", "the seeds", f"Give one for each of {', '.join(by_tensor)}.")
            given = {name: np.asarray([*seed.values()][n]) for name, n in zip(seeds, positions, strict=True)}
        elif len(seeds) != 1:
            raise UsageError(f"several tensors are explained: give a seed for each of {', '.join(seeds.values())}.")
        return self.graph.run(feeds, given if isinstance(seed, Mapping) else {name: np.asarray(seed) for name in seeds})

    def explain(
        self,
        inputs: Array | Mapping[str, Array],
        target: Ask | Sequence[Ask] = "predicted",
        progress: Progress | None = None,
    ) -> Explanation:
        """Explain a batch for one or several targets.

        inputs: (N, …) in model units. target: `predicted`, `top3`, a class name, an index, "A vs B", a function
        (scores, labels, kind) -> targets, or several. progress: told how far a looped method is, see `loops.Progress`;
        what it raises ends the explanation. Raises NotFinite, as `run` does.
        """
        if len(self.explained) != 1:
            raise UsageError("several tensors are explained: use run(inputs, seed) with a seed for each.")
        if self.subject.request.seed == "index":
            raise UsageError(
                "explain() makes float seeds; an explainer with seed='index' is run by run(inputs, target)."
            )
        if self._graph is not None and self._graph.compiled.references and not self.recipe.looped:
            raise UsageError(
                f"method {self.method.name} with baseline=input is fed references, which explain() has not: say a "
                "baseline, use a method over it such as deep_lift_shap, or run what save() or compile writes."
            )
        feeds = feeds_of(inputs, self.subject.inputs, self.columns)
        forward = self.subject.forward(feeds)
        name = self.explained[0]
        values = forward[name] if name in forward else feeds[name]
        search = (lambda: True) if self._graph is None else self._graph.search
        if (error := score_error(lambda: self.subject.normalised.model, feeds, name, values, search)) is not None:
            raise error
        streams = self._graph is not None and self._graph.compiled.streams
        separate = streams or self.subject.rows_are_samples(feeds, name, values)
        scores = values if separate else one_thing(values)
        notes = self.notes if separate else [*self.notes, one_thing_said(name, values, feeds)]
        if unfit := labels_unfit(scores, self.labels, self.kind):
            if not self.subject.request.explain:
                raise UsageError(f"{unfit} of {name} {list(values.shape)}: give as many labels as there are classes.")
            notes = [*notes, f"{unfit} of {name}: they name another tensor, and are not used"]
        asked = [target] if isinstance(target, (str, int, np.integer)) or callable(target) else list(target)
        targets = [t for ask in asked for t in self._resolve(ask, scores)]
        begun = time.perf_counter()
        answers, relevances, ledger = LoopAnswers({}, {}, []), dict[str, Array](), None
        if self._graph is not None:  # of a looped method the first target only, as a trial
            run = self._graph.run_targets if separate else self._graph.run_whole
            outputs = run(feeds, targets[:1] if self.recipe.looped else targets, scores if separate else values)
            self.subject.require_same(forward, outputs)
            relevances = {source: outputs[out] for out, source in self._graph.compiled.relevances.items()}
            ledger = outputs.get(LEDGER)
        if self._plan is not None:
            answers = self._plan.answer(feeds, targets, values, separate, progress)
        kept = {n: forward[n] if n in forward else feeds[n] for n in self.subject.request.keep}
        return Explanation(
            method=self.method,
            recipe=self.recipe,
            targets=targets,
            samples=scores.shape[0] if separate and scores.ndim else 1,
            relevances=answers.relevances or relevances,
            standard_errors=answers.standard_errors,
            inputs=feeds,
            scores=scores,
            explained=name,
            outputs={n: forward[n] for n in forward if n not in kept},
            kept=kept,
            ledger=ledger,
            provenance=self.provenance,
            labels=self.labels,
            kind=self.kind,
            notes=[*notes, *answers.notes],
            row_notes=answers.row_notes,
            seconds=time.perf_counter() - begun,
        )

    @property
    def provenance(self) -> Mapping[str, Any]:
        """What answered: the compiled graph's provenance; of a looped method its own recipe, over its base's graph."""
        about: Mapping[str, Any] = {"version": __version__, "sha256": self.subject.source.sha256}
        if self._graph is not None:
            about = self._graph.compiled.provenance
        if self._plan is None:
            return about
        heads = dict(self.subject.resolved.heads)
        recipe = self.recipe.content()
        return {**about, **self._plan.provenance, "heads": heads, "method": self.method.name, "recipe": recipe}

    def _resolve(self, ask: Ask, scores: Array) -> list[Target]:
        if callable(ask):
            return ask(scores, self.labels, self.kind)
        return resolve_targets(str(ask), scores, self.labels, self.kind)


def _names(given: str | Sequence[str] | None) -> tuple[str, ...] | None:
    return (given,) if isinstance(given, str) else None if given is None else tuple(given)


def _kind(heads: Mapping[str, str]) -> str | None:
    return "sigmoid" if "Sigmoid" in heads.values() else None
