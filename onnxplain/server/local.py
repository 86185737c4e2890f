"""A model served from this process."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from onnxplain.errors import InputError, NotFound, OnnxplainError, UnknownName
from onnxplain.explainer import serialised
from onnxplain.inputs import resolve as resolve_target
from onnxplain.recipes import named, recipe_names
from onnxplain.server import ports
from onnxplain.server.answers import Answers
from onnxplain.server.call import CALL
from onnxplain.server.lane import Lane
from onnxplain.server.loaded import LoadedModel, Variant
from onnxplain.server.questions import question, recipe_of, request_of, targets_of
from onnxplain.server.replies import explanation_reply
from onnxplain.server.served import EXPLAIN, split
from onnxplain.session import Array
from onnxplain.v1 import explainer_pb2 as v1
from onnxplain.wire.chunks import pieces
from onnxplain.wire.inference import messages as oip
from onnxplain.wire.tensors import datatype_of, infer_arrays, infer_outputs

T = TypeVar("T")
PREFIX = "onnxplain_"  # of our request parameters


class LocalModel:
    """See `Served`. threads: where explanations wait and think; runs happen in the scheduler's slots."""

    def __init__(self, model: LoadedModel, threads: ThreadPoolExecutor):
        self.model, self.name, self.version = model, model.name, model.version
        self._threads = threads
        graph = model.subject.source.model.graph
        self._inputs = ports.ports(v for v in graph.inputs if v.name not in graph.initializers)
        self._outputs = ports.ports(graph.outputs)

    # The Open Inference Protocol

    async def infer(self, request: Any) -> Any:
        """The model's outputs, or those of its explanation graph."""
        _, recipe = split(request.model_name)
        rows = max((self._rows(tensor) for tensor in request.inputs), default=1)
        _note(model=request.model_name, version=self.version, rows=rows)
        with self.model.gate.admit(rows, request.ByteSize(), self._pace(self.model.forward)):
            arrays = infer_arrays(request)
            parameters = _parameters(request)
            if recipe is None:
                if parameters:
                    raise UnknownName("parameter of a model", PREFIX + next(iter(parameters)), ()).at("parameters")
                feeds = self._checked(arrays, self._inputs)
                names = _wanted(request, [port.name for port in self._outputs])
                found = await asyncio.wrap_future(self.model.infer(feeds, names))
                digest = ""
            else:
                variant = await self._variant(recipe)
                found = await self._explain_as_infer(request, arrays, parameters, variant)
                digest = variant.recipe_digest
        reply = oip.ModelInferResponse(model_name=request.model_name, model_version=self.version, id=request.id)
        if digest:
            reply.parameters["onnxplain_recipe_digest"].string_param = digest
        infer_outputs(reply, found)
        return reply

    async def _explain_as_infer(
        self, request: Any, arrays: Mapping[str, Array], parameters: Mapping[str, Any], variant: Variant
    ) -> dict[str, Array]:
        """The compiled graph as it is; seeds that are not given are made from a target, by default the prediction."""
        for name in parameters:
            if name not in ("target", "target_index"):
                raise UnknownName("parameter", PREFIX + name, [PREFIX + "target", PREFIX + "target_index"]).at(
                    "parameters"
                )
        inputs, outputs = variant.ports
        seeds = [port for port in inputs if port.name in variant.explainer.compiled.seeds]
        names = _wanted(request, [port.name for port in outputs])
        given = [port for port in seeds if port.name in arrays]
        if len(given) == len(seeds):
            if parameters:
                raise InputError("give a seed or a target, not both.").at("parameters")
            return await asyncio.wrap_future(variant.lane.submit(self._checked(arrays, inputs), names))
        if given or len(seeds) > 1:
            missing = ", ".join(port.name for port in seeds if port.name not in arrays)
            raise InputError(f"several tensors are explained: give every seed; {missing} is missing.").at("inputs")
        feeds = self._checked(arrays, [port for port in inputs if port not in seeds])
        word = str(parameters.get("target", parameters.get("target_index", "predicted")))

        def ask() -> dict[str, Array]:
            source = variant.explainer.compiled.seeds[seeds[0].name]
            scores = variant.forward.run(feeds, [source])[source] if source not in feeds else feeds[source]
            targets = resolve_target(word, scores, self.model.labels, variant.explainer.kind)
            if len(targets) != 1:
                raise InputError(f"target {word!r}: a model answers one target a row; use Explain for several.").at(
                    "parameters"
                )
            dtype = np.float64 if scores.dtype == np.float64 else np.float32
            seed = np.ascontiguousarray(np.broadcast_to(targets[0].seed, scores.shape).astype(dtype))
            return variant.lane.run({**feeds, seeds[0].name: seed}, names)

        return await self._think(ask)

    async def metadata(self, name: str) -> Any:
        """Name, version, inputs, outputs."""
        inputs, outputs, _ = await self._graph(name)
        return ports.metadata(name, [self.version], inputs, outputs)

    async def config(self, name: str) -> Any:
        """Batching and data types, as Triton's tools ask for them."""
        inputs, outputs, lane = await self._graph(name)
        return ports.configuration(name, inputs, outputs, lane)

    async def statistics(self) -> list[Any]:
        """Of the model, and of each recipe that was asked for."""
        found = []
        for title, lane in self.model.lanes().items():
            name = self.name if not title else f"{self.name}{EXPLAIN}.{title}"
            if title and title == self.model.recipe.title:
                name = self.name + EXPLAIN
            found.append(ports.statistics(name, self.version, lane))
        return found

    async def ready(self, name: str) -> bool:
        """Whether a name answers: the model does; M.explain where its recipe is possible; M.explain.R likewise."""
        try:
            await self._graph(name)
        except OnnxplainError:
            return False
        return True

    async def explanations(self) -> list[tuple[str, str]]:
        """M.explain, and M.explain.R for every recipe that was asked for."""
        titles = [title for title in self.model.lanes() if title and title != self.model.recipe.title]
        return [(self.name + EXPLAIN, self.model.why_not), *((f"{self.name}{EXPLAIN}.{t}", "") for t in titles)]

    # onnxplain.v1

    async def explain(self, request: v1.ExplainRequest) -> v1.ExplainResponse:
        """The reasons for an answer."""
        begun = time.perf_counter()
        rows = max((self._rows(tensor) for tensor in request.inputs), default=1)
        targets = sum(map(targets_of, request.targets)) or 1
        _note(model=self.name, version=self.version, rows=rows * targets, recipe=request.recipe.name or None)
        with self.model.gate.admit(rows * targets, request.ByteSize(), self._pace(self.model.forward)):
            reply = await self._think(lambda: self._explain(request))
        reply.timing.compute.FromNanoseconds(int(1e9 * (time.perf_counter() - begun)))
        return reply

    def _explain(self, request: v1.ExplainRequest) -> v1.ExplainResponse:
        asked = question(request, self.model)
        hit = self.model.made(asked.recipe or self.model.default(), asked.request) is not None
        if request.output_format.validate_only:
            variant = self.model.variant(asked.recipe or self.model.default(), asked.request)
            reply = v1.ExplainResponse(
                model=v1.ModelRef(name=self.name, version=self.version),
                request_id=request.request_id,
                recipe_digest=variant.explainer.recipe.digest,
                graph_digest=variant.digest(),
                method=variant.explainer.recipe.method,
                explained=variant.explainer.explained[0],
                warnings=variant.notes,
            )
        else:
            found, variant = self.model.explain(asked)
            reply = explanation_reply(request, found, self.model, variant)
            if reply.layers and reply.conservation:
                worst = max(row.relative_error for row in reply.conservation)
                self.model.house.metrics.conserved(self.name, worst)
        if not hit:
            reply.timing.compile.FromNanoseconds(int(1e9 * variant.seconds))
        call = CALL.get(None)
        if call is not None:
            waited, rows = call.fields.get("queue_ms"), call.fields.get("batch_rows")
            reply.timing.queue.FromNanoseconds(int(1e6 * waited) if isinstance(waited, float) else 0)
            reply.timing.batch_size = rows if isinstance(rows, int) else 0
        reply.timing.graph_cache_hit = hit
        return reply

    async def explainability(self, request: v1.GetExplainabilityRequest) -> v1.GetExplainabilityResponse:
        """What can be explained of the model, and how its inputs are prepared."""
        return await self._think(lambda: Answers(self.model).explainability(request, self._inputs, self._outputs))

    async def compile(self, request: v1.CompileGraphRequest) -> AsyncIterator[v1.CompileGraphResponse]:
        """The graph's digest and size, then its bytes."""

        def make() -> tuple[bytes, Variant]:
            recipe, head = recipe_of(request.recipe, self.model)
            targets = [request.target] if request.HasField("target") else []
            wanted = request_of(self.model, targets, request.attribute_to, head)
            variant = self.model.variant(recipe or self.model.default(), wanted)
            return serialised(variant.explainer.compiled.model), variant

        content, variant = await self._think(make)
        first = v1.CompileGraphResponse()
        first.graph.graph_digest, first.graph.byte_size = variant.digest(), len(content)
        first.graph.warnings.extend(variant.notes)
        if request.with_triton_config:
            first.graph.triton_config_pbtxt = Answers(self.model).triton_config(variant)
        yield first
        for chunk in pieces(content, "graph"):
            yield v1.CompileGraphResponse(chunk=chunk)

    async def close(self) -> None:
        """Put the sessions away."""
        await asyncio.to_thread(self.model.close)

    # Inside

    async def _graph(self, name: str) -> tuple[list[ports.Port], list[ports.Port], Lane]:
        """Inputs, outputs and lane of a served name."""
        _, recipe = split(name)
        if recipe is None:
            return self._inputs, self._outputs, self.model.forward
        variant = await self._variant(recipe)
        return *variant.ports, variant.lane

    async def _variant(self, recipe: str) -> Variant:
        """A recipe by the last part of a served name, "" for the model's own; compiled if it was not."""
        if recipe and recipe not in recipe_names():
            raise NotFound(f"no recipe {recipe[:100]!r}; `ListRecipes` or `onnxplain methods` has their names.").at(
                "model_name"
            )
        chosen = named(recipe) if recipe else self.model.default()
        ready = self.model.made(chosen)
        return ready if ready is not None else await self._think(lambda: self.model.variant(chosen))

    async def _think(self, work: Callable[[], T]) -> T:
        """Do blocking work in a thread that knows the current call."""
        context = contextvars.copy_context()
        return await asyncio.get_running_loop().run_in_executor(self._threads, context.run, work)

    def _checked(self, arrays: Mapping[str, Array], wanted: list[ports.Port]) -> dict[str, Array]:
        """Names, types and shapes are the graph's. Raises InputError with the field."""
        order = {name: n for n, name in enumerate(arrays)}
        known = {port.name: port for port in wanted}
        for name, n in order.items():
            if name not in known:
                raise InputError(f"no input named {name[:100]!r}; this model takes {', '.join(known)}.").at(
                    f"inputs[{n}].name"
                )
        feeds = {}
        for port in wanted:
            if port.name not in arrays:
                raise InputError(f"input {port.name!r} ({port.datatype}) is missing.").at("inputs")
            array, where = arrays[port.name], f"inputs[{order[port.name]}]"
            found = datatype_of(array.dtype)
            if found != port.datatype:
                raise InputError(f"{port.name}: found {found}, expected {port.datatype}.").at(f"{where}.datatype")
            if port.shape is not None and (
                len(port.shape) != array.ndim
                or any(want not in (-1, have) for want, have in zip(port.shape, array.shape, strict=True))
            ):
                raise InputError(
                    f"{port.name}: found shape {list(array.shape)}, expected {list(port.shape)} (-1: any length)."
                ).at(f"{where}.shape")
            feeds[port.name] = array
        return feeds

    def _rows(self, tensor: Any) -> int:
        """Rows that an input claims to have: along axis 0, where the model leaves that open."""
        port = next((port for port in self._inputs if port.name == tensor.name), self._inputs[0])
        open_axis = port.shape is None or (len(port.shape) > 1 and port.shape[0] == -1)
        same_rank = port.shape is None or len(port.shape) == len(tensor.shape)
        return max(1, tensor.shape[0]) if open_axis and same_rank and tensor.shape else 1

    def _pace(self, lane: Lane) -> float:
        return lane.expected(1)


def _note(**fields: object) -> None:
    """What the access log and the trace of the current call show."""
    call = CALL.get(None)
    if call is not None:
        call.fields.update(fields)


def _parameters(request: Any) -> dict[str, Any]:
    """Our own request parameters, without their prefix."""
    found = {}
    for name, value in request.parameters.items():
        if name.startswith(PREFIX):
            kind = value.WhichOneof("parameter_choice")
            found[name.removeprefix(PREFIX)] = getattr(value, kind) if kind else None
    return found


def _wanted(request: Any, known: list[str]) -> list[str]:
    """The outputs asked for; all where none are named."""
    names = [output.name for output in request.outputs]
    for n, name in enumerate(names):
        if name not in known:
            raise InputError(f"no output named {name[:100]!r}; this model has {', '.join(known)}.").at(
                f"outputs[{n}].name"
            )
    return list(dict.fromkeys(names)) or known
