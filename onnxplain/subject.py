"""A model made ready once, to be explained by any number of recipes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxplain.compile import Request, Resolved, batch_axes, looked_up, resolve
from onnxplain.compile.layer_choice import MapLayers, map_layers
from onnxplain.errors import ConversionChanged, InputError, UnsupportedModel, UsageError
from onnxplain.frontend.compare import mismatch
from onnxplain.frontend.load import Source, load
from onnxplain.frontend.normalise import Normalised, normalise
from onnxplain.frontend.tree_path import find_trees, players_of
from onnxplain.graph import weight_files
from onnxplain.graph.stored_graph import DeferredModel
from onnxplain.inputs import InputSpec
from onnxplain.inputs.samples import answer_alone, may_be_rows
from onnxplain.model_part import ModelPart
from onnxplain.runtime import chunking
from onnxplain.runtime.batch_size import FIXED, BatchSize
from onnxplain.runtime.memory_budget import MemoryBudget, nbytes_of
from onnxplain.runtime.open import Graph, bytes_per_stream, open_session
from onnxplain.runtime.session import Array, Runs
from onnxplain.trees import TreeScore

Opener = Callable[[Graph, str], Runs]
ROUNDING = 1e-2  # of the largest value: two forms of a model on any provider agree to that, a wrong kernel does not


@dataclass
class Subject:
    """A model made ready once and explained by any number of recipes: source, normal form, forward session."""

    source: Source
    normalised: Normalised
    request: Request
    resolved: Resolved
    provider: str = "auto"
    threads: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    opener: Opener | None = None
    forward_graph: DeferredModel | None = None  # the normal form that answers; None: made of it
    memory: int | None = None  # bytes that runs may take; None: a share of what is free
    batch_rows: int | None = None  # of a looped method's run; None: tried on the first batches
    beside: int = 0  # bytes of a row in the compiled graph that runs beside the model
    _forward: Runs | None = None
    _trees: dict[tuple[object, ...], TreeScore] = field(default_factory=dict)
    _parts: dict[tuple[str, ...], ModelPart] = field(default_factory=dict)
    _layers: dict[Request, MapLayers] = field(default_factory=dict)
    tails: dict[tuple[str, ...], Any] = field(default_factory=dict)  # `LayerTail`s, by the tensors they begin at
    _axes: list[dict[str, int] | None] = field(default_factory=list)  # one entry, when they are known
    _batch_sizes: dict[str, BatchSize] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        path: str | Path,
        request: Request | None = None,
        provider: str = "auto",
        threads: int = 0,
        opener: Opener | None = None,
        sample: Array | Mapping[str, Array] | None = None,
        shapes: Mapping[str, Sequence[int]] | None = None,
        unexplained: bool = False,
        memory: int | str | None = None,
    ) -> Subject:
        """Load, normalise and verify a model file. opener: (model, role) -> what runs it; None: a Session.

        sample: input to verify on, where random input cannot run; shapes: sizes of random input. unexplained: a model
        that has nothing to explain is made ready for its answers alone; `resolved.problem` says why. memory: bytes that
        runs may take above what is there when all is loaded, such as "1GB"; None: a share of what is free.
        """
        request, limit = request or Request(), None if memory is None else nbytes_of(memory)
        begun = time.perf_counter()
        source = load(Path(path))
        loaded = time.perf_counter()
        try:
            resolved = resolve(source.model, request)
        except (UnsupportedModel, UsageError) as error:
            if not unexplained:
                raise
            resolved = Resolved((), problem=str(error))
        if isinstance(sample, np.ndarray):
            names = [str(value.name) for value in source.model.graph.inputs]
            if len(names) != 1:
                raise InputError(f"the model has the inputs {', '.join(names)}: give the sample by name.")
            sample = {names[0]: sample}
        normalised = normalise(source, resolved.protected, sample, shapes)
        seconds = {"load": loaded - begun, "normalise": time.perf_counter() - loaded, **normalised.timings}
        return cls(source, normalised, request, resolved, provider, threads, seconds, opener, memory=limit)

    @classmethod
    def restored(
        cls,
        normalised: Normalised,
        request: Request,
        resolved: Resolved,
        forward_graph: DeferredModel,
        row_axes: dict[str, int] | None,
        provider: str = "auto",
        threads: int = 0,
        opener: Opener | None = None,
    ) -> Subject:
        """A model that was made ready before, as it was then; nothing is run. row_axes: see there.

        normalised, its source and forward_graph may hold models that are read when somebody looks into them.
        """
        return cls(
            normalised.source, normalised, request, resolved, provider, threads, {}, opener, forward_graph,
            _axes=[row_axes],
        )  # fmt: skip

    def refuse_others(self, asked: Mapping[str, Any]) -> None:
        """Made for one request and one provider: raise UsageError for what it was not made for."""
        held = {**vars(self.request), "provider": self.provider, "threads": self.threads, "memory": self.memory}
        for name, value in asked.items():
            if value is None or (name in held and value == held[name]):
                continue
            made = f"with {name}={held[name]!r}" if name in held else f"without this {name}"
            raise UsageError(
                f"{name}={value!r}: the Subject was made {made}, and its explainers share that. "
                "Make another: Subject.of(path, Request(…), provider, threads, …)."
            )

    def open(self, graph: Graph, role: str) -> Runs:
        """What runs a graph made from this model. role: "forward", or the recipe's digest."""
        if self.opener is not None:
            return self.opener(graph, role)
        return open_session(graph, self.provider, self.threads, sparing=self.memory is not None)

    @property
    def inputs(self) -> list[InputSpec]:
        """What the model asks for."""
        return [
            InputSpec(str(v.name), v.dtype.numpy().name if v.dtype else "float32", _shape(v))
            for v in self.normalised.ports.inputs
        ]

    @property
    def session(self) -> Runs:
        """What answers `forward`; created when first used."""
        if self._forward is None:
            self._forward = self.open(self.forward_graph or self.with_protected(), "forward")
        return self._forward

    @property
    def bytes_per_row(self) -> int:
        """Upper estimate of the memory one more row takes while the model answers, in bytes."""
        return bytes_per_stream(self.forward_graph or self.normalised.held)

    def fitting(self, rows: int, own: int | None = None, points: int = 0, held: int = 0, together: bool = False) -> int:
        """How many of so many rows one run may have, in the model and in the graph beside it.

        own: bytes of a row in what is run, if it is not the model; points: of arrays that it takes outside of
        onnxruntime; held, together: see `MemoryBudget.rows`. Raises UsageError where `memory` does not hold what it
        must.
        """
        if self.memory is None:
            row = self.bytes_per_row if own is None else own
            return rows if together else chunking.rows_per_run(row + points, rows)
        return MemoryBudget(self.memory).rows(self.bytes_per_row + self.beside + points, rows, held, together)

    def batch_size(self, recipe: str) -> BatchSize:
        """What chooses the batches of a looped recipe, remembered by its digest."""
        fixed = self.batch_rows or (FIXED if self.opener is not None else 0)  # runs of a service share their time
        return BatchSize(fixed) if fixed else self._batch_sizes.setdefault(recipe, BatchSize())

    def row_axes(self) -> dict[str, int] | None:
        """The same for the model itself, its explained and its kept tensors; see `Explainer.row_axes`."""
        if not self._axes:
            self._axes.append(batch_axes(self.with_protected().graph))
        return self._axes[0]

    def looked_up(self) -> list[str]:
        """Names of the integer inputs that are tokens or categories."""
        return looked_up(self.normalised.model.graph)

    def forward(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """The model's outputs, the explained tensors and the kept ones."""
        session = self.session
        names = [n for n in (outputs or session.outputs) if n not in feeds]
        found = session.run(feeds, names) if self.memory is None else self._within(session, feeds, names)
        return {**found, **{n: feeds[n] for n in outputs or () if n in feeds}}

    def require_same(self, forward: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        """Raise ConversionChanged where outputs of a compiled graph are not the model's own on the same input."""
        alike = [n for n in outputs if n in forward and np.shape(outputs[n]) == np.shape(forward[n])]
        bounded = self.normalised.reference.bounded
        problem = mismatch({n: forward[n] for n in alike}, {n: outputs[n] for n in alike}, bounded, ROUNDING)
        if problem is not None:
            raise ConversionChanged(f"the compiled graph answers this input differently from the model: {problem}.")

    def rows_are_samples(self, feeds: Mapping[str, Array], name: str, values: Array) -> bool:
        """Whether axis 0 of a tensor, whose values are given, counts samples: proven on the graph, else tried."""
        if not may_be_rows(feeds, values):
            return False
        if all(len(x) == 1 for x in feeds.values() if x.ndim) or (self.row_axes() or {}).get(name) == 0:
            return True
        return answer_alone(lambda changed: self.forward(changed, [name])[name], feeds, values)

    def _within(self, session: Runs, feeds: Mapping[str, Array], names: Sequence[str]) -> dict[str, Array]:
        """As one run, in as many as `memory` takes."""
        rows = max((len(array) for array in feeds.values() if array.ndim), default=1)
        axes = self.row_axes()
        apart = axes is not None and all(axes.get(name) == 0 for name in names)
        size = self.fitting(rows, together=not apart)
        if size >= rows:
            return session.run(feeds, names)
        parts = [
            session.run({name: x[part] if len(x) == rows else x for name, x in feeds.items()}, names)
            for part in chunking.chunks(rows, size)
        ]
        return chunking.concatenate(parts, dict.fromkeys(names, 0))

    def trees(self, explained: str, inputs: Mapping[str, tuple[int, ...]]) -> TreeScore:
        """The trees whose sum a tensor is. inputs: the shape of a row of each attributed input, by name.

        Raises UnsupportedModel where it is none, or the trees read what is not attributed to.
        """
        sizes = {name: math.prod(shape) for name, shape in inputs.items()}
        key = (explained, *sizes.items())
        if key not in self._trees:
            self._trees[key] = self._tree_score(explained, sizes)
        return self._trees[key]

    def _tree_score(self, explained: str, sizes: dict[str, int]) -> TreeScore:
        path = find_trees(self.normalised.model, explained)
        front = None if path.columns is None else self.open(path.front(self.normalised.model), "front of the trees")
        columns = path.columns or tuple((path.entry, column) for column in range(sizes.get(path.entry, 1)))
        players = players_of(columns, sizes)

        def features(values: Mapping[str, Array]) -> Array:
            rows = len(next(iter(values.values())))
            table = values[path.entry] if front is None else front.run(dict(values), [path.entry])[path.entry]
            return np.asarray(table).reshape(rows, -1)

        return TreeScore(path.trees, path.transform, players, features)

    def map_layers(self) -> MapLayers:
        """The feature maps that a method about one looks at. Raises UsageError, UnsupportedModel."""
        if self.request not in self._layers:
            self._layers[self.request] = map_layers(self.normalised, self.resolved, self.request)
        return self._layers[self.request]

    def part(self, outputs: tuple[str, ...]) -> ModelPart:
        """What computes inner tensors of the normal form, and no more."""
        if outputs not in self._parts:
            self._parts[outputs] = ModelPart(self.normalised.model, outputs, self.open)
        return self._parts[outputs]

    def pin(self) -> None:
        """Take weights that lie in files into memory, so that nobody can change them under the sessions."""
        taken: dict[int, ir.Tensor[Any]] = {}
        for model in (self.source.model, self.normalised.model):
            for value in model.graph.initializers.values():
                tensor = value.const_value
                if tensor is not None and weight_files.on_disk(tensor):
                    if id(tensor) not in taken:
                        taken[id(tensor)] = ir.Tensor(
                            np.array(tensor.numpy()), dtype=tensor.dtype, name=tensor.name or value.name
                        )
                    value.const_value = taken[id(tensor)]

    def with_protected(self) -> ir.Model:
        """The normalised model with the explained and the kept tensors as outputs too."""
        model = self.normalised.model.clone()
        values = ir.convenience.create_value_mapping(model.graph)
        for name in self.resolved.protected:
            if values[name] not in model.graph.outputs and not values[name].is_graph_input():
                model.graph.outputs.append(values[name])
        return model


def _shape(value: ir.Value) -> tuple[int | str | None, ...] | None:
    return None if value.shape is None else tuple(d if isinstance(d, int) else d.value for d in value.shape)
