"""A model served from this process."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

from onnxplain.errors import InputError, NotFound, OnnxplainError, UnknownName
from onnxplain.recipes import named, recipe_names
from onnxplain.runtime.nonfinite import finite
from onnxplain.runtime.open import serialised
from onnxplain.runtime.session import Array
from onnxplain.server.call import CALL
from onnxplain.server.handlers.explain_request import question, recipe_of, request_of, targets_of
from onnxplain.server.handlers.explain_response import explanation_reply
from onnxplain.server.handlers.infer_request import PREFIX, checked, parameters_of, rows_of, seeded, wanted
from onnxplain.server.handlers.model_info import Answers
from onnxplain.server.models import ports
from onnxplain.server.models.loaded import LoadedModel, Variant
from onnxplain.server.models.served import EXPLAIN, split
from onnxplain.server.scheduling.queue import ModelQueue
from onnxplain.v1 import explainer_pb2 as v1
from onnxplain.wire.chunks import pieces
from onnxplain.wire.inference import messages as oip
from onnxplain.wire.tensors import infer_arrays, infer_outputs

T = TypeVar("T")


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
        rows = max((rows_of(tensor, self._inputs) for tensor in request.inputs), default=1)
        _note(model=request.model_name, version=self.version, rows=rows)
        with self.model.gate.admit(rows, request.ByteSize(), self._pace(self.model.forward)):
            arrays = infer_arrays(request)
            parameters = parameters_of(request)
            if recipe is None:
                if parameters:
                    raise UnknownName("parameter of a model", PREFIX + next(iter(parameters)), ()).at("parameters")
                feeds = checked(arrays, self._inputs)
                names = wanted(request, [port.name for port in self._outputs])
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
        names = wanted(request, [port.name for port in outputs])
        given = [port for port in seeds if port.name in arrays]
        if len(given) == len(seeds):
            if parameters:
                raise InputError("give a seed or a target, not both.").at("parameters")
            feeds = checked(arrays, inputs)
            found = await asyncio.wrap_future(variant.lane.submit(feeds, names))
            if not finite(variant.explainer.compiled, found):
                await self._think(lambda: variant.explainer.graph.require_finite(feeds, found))
            return found
        if given or len(seeds) > 1:
            missing = ", ".join(port.name for port in seeds if port.name not in arrays)
            raise InputError(f"several tensors are explained: give every seed; {missing} is missing.").at("inputs")
        feeds = checked(arrays, [port for port in inputs if port not in seeds])
        if len(parameters) > 1:
            raise InputError("give onnxplain_target or onnxplain_target_index, not both.").at("parameters")
        word = str(parameters.get("target", parameters.get("target_index", "predicted")))

        def explain() -> dict[str, Array]:
            asked = {**feeds, **seeded(variant, feeds, word)}
            found = variant.lane.run(asked, names)
            variant.explainer.graph.require_finite(asked, found)
            return found

        return await self._think(explain)

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
        rows = max((rows_of(tensor, self._inputs) for tensor in request.inputs), default=1)
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

        def make() -> tuple[bytes, v1.CompileGraphResponse]:
            recipe, head = recipe_of(request.recipe, self.model)
            targets = [request.target] if request.HasField("target") else []
            asked = request_of(self.model, targets, request.attribute_to, head)
            if request.target.HasField("indices"):
                asked = replace(asked, seed="index")
            variant = self.model.variant(recipe or self.model.default(), asked)
            content, first = serialised(variant.explainer.compiled.model), v1.CompileGraphResponse()
            first.graph.graph_digest, first.graph.byte_size = variant.digest(), len(content)
            first.graph.warnings.extend(variant.notes)
            if request.with_triton_config:
                first.graph.triton_config_pbtxt = Answers(self.model).triton_config(variant)
            return content, first

        content, first = await self._think(make)
        yield first
        for chunk in pieces(content, "graph"):
            yield v1.CompileGraphResponse(chunk=chunk)

    async def close(self) -> None:
        """Put the sessions away."""
        await asyncio.to_thread(self.model.close)

    # Inside

    async def _graph(self, name: str) -> tuple[list[ports.Port], list[ports.Port], ModelQueue]:
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

    def _pace(self, lane: ModelQueue) -> float:
        return lane.expected(1)


def _note(**fields: object) -> None:
    """What the access log and the trace of the current call show."""
    call = CALL.get(None)
    if call is not None:
        call.fields.update(fields)
