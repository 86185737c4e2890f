"""A model served from this process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from typing import Any, TypeVar

from onnxplain.compile import Request
from onnxplain.errors import InputError, NotFound, OnnxplainError, UnknownName
from onnxplain.recipes import Recipe, named, recipe_names
from onnxplain.runtime.nonfinite import all_finite
from onnxplain.runtime.open import serialised
from onnxplain.runtime.session import Array
from onnxplain.server.call import CALL, in_thread, log_fields
from onnxplain.server.handlers import explain_request, request_parameters
from onnxplain.server.handlers.description_cache import DescriptionCache
from onnxplain.server.handlers.explain_request import explain_query, graph_query, require_graph, target_count
from onnxplain.server.handlers.explain_response import explain_response
from onnxplain.server.handlers.infer_request import bound_feeds, requested_outputs, row_count, target_seed
from onnxplain.server.handlers.model_description import ModelDescription
from onnxplain.server.handlers.request_parameters import OWN, PREFIX, own_parameters
from onnxplain.server.models.explain_query import ExplainQuery
from onnxplain.server.models.inference_metadata import (
    TensorMetadata,
    model_config,
    model_metadata,
    model_statistics,
    tensor_metadata,
)
from onnxplain.server.models.loaded import LoadedModel
from onnxplain.server.models.served import EXPLAIN, Progress, split
from onnxplain.server.models.variant import Variant
from onnxplain.server.models.variant_requests import cached_variant, requested_variant
from onnxplain.server.scheduling.queue import ModelQueue, collected_reports
from onnxplain.server.scheduling.ticket import Outputs, RunReport, RunResult
from onnxplain.server.telemetry.metrics import Metrics
from onnxplain.server.telemetry.requests import counted
from onnxplain.v1 import explainer_pb2 as v1
from onnxplain.wire.chunks import pieces
from onnxplain.wire.inference import messages as oip
from onnxplain.wire.tensors import infer_arrays, infer_outputs

T = TypeVar("T")


class LocalModel:
    """See `Served`. threads: where explanations wait and compute; runs happen in the scheduler's slots."""

    def __init__(self, model: LoadedModel, threads: ThreadPoolExecutor):
        self.model, self.name, self.version = model, model.name, model.version
        self._threads = threads
        ports = model.subject.source.ports
        self._inputs, self._outputs = tensor_metadata(ports.inputs), tensor_metadata(ports.outputs)
        self._descriptions = DescriptionCache(model, threads, self._inputs, self._outputs)

    @property
    def nbytes(self) -> int:
        """Memory that it holds now, about."""
        return self.model.nbytes

    @property
    def metrics(self) -> Metrics:
        """Where its requests are counted."""
        return self.model.context.metrics

    # The Open Inference Protocol

    @counted
    async def infer(self, request: Any) -> Any:
        """The model's outputs, or those of its explanation graph."""
        _, recipe = split(request.model_name)
        rows = max((row_count(tensor, self._inputs) for tensor in request.inputs), default=1)
        log_fields(model=request.model_name, version=self.version, rows=rows)
        with self.model.admission.admit(rows, request.ByteSize(), self.model.forward_queue.expected(1)):
            arrays = infer_arrays(request)
            parameters = own_parameters(request)
            request_parameters.ask_for_turn(request)
            if recipe is None:
                if parameters:
                    raise UnknownName("parameter of a model", PREFIX + next(iter(parameters)), ()).at("parameters")
                feeds = bound_feeds(arrays, self._inputs)
                names = requested_outputs(request, [tensor.name for tensor in self._outputs])
                result = await asyncio.wrap_future(self.model.infer(feeds, names))
                digest = ""
            else:
                with self.model.variants.using(await self._variant(recipe)) as variant:
                    result = await self._explain_as_infer(request, arrays, parameters, variant)
                digest = variant.recipe_digest
        reply = oip.ModelInferResponse(model_name=request.model_name, model_version=self.version, id=request.id)
        if digest:
            reply.parameters["onnxplain_recipe_digest"].string_param = digest
        infer_outputs(reply, result.outputs)
        _log_run(result.report)
        return reply

    async def _explain_as_infer(
        self, request: Any, arrays: Mapping[str, Array], parameters: Mapping[str, Any], variant: Variant
    ) -> RunResult:
        """The compiled graph as it is; seeds that are not given are made from a target, by default the prediction."""
        for name in parameters:
            if name not in OWN:
                raise UnknownName("parameter", PREFIX + name, [PREFIX + own for own in OWN]).at("parameters")
        inputs, outputs = variant.signature
        seeds = [tensor for tensor in inputs if tensor.name in variant.explainer.compiled.seeds]
        names = requested_outputs(request, [tensor.name for tensor in outputs])
        given_seeds = [tensor for tensor in seeds if tensor.name in arrays]
        if len(given_seeds) == len(seeds):
            if parameters:
                raise InputError("give a seed or a target, not both.").at("parameters")
            feeds = bound_feeds(arrays, inputs)
            result = await asyncio.wrap_future(variant.queue.submit(feeds, names))
            if not all_finite(variant.explainer.compiled, result.outputs):
                await self._in_thread(lambda: variant.explainer.graph.require_finite(feeds, result.outputs))
            return result
        if given_seeds or len(seeds) > 1:
            missing = ", ".join(tensor.name for tensor in seeds if tensor.name not in arrays)
            raise InputError(f"several tensors are explained: give every seed; {missing} is missing.").at("inputs")
        feeds = bound_feeds(arrays, [tensor for tensor in inputs if tensor not in seeds])
        if len(parameters) > 1:
            raise InputError("give onnxplain_target or onnxplain_target_index, not both.").at("parameters")
        word = str(parameters.get("target", parameters.get("target_index", "predicted")))

        def explain() -> RunResult:
            with collected_reports() as reports:
                with_seed = {**feeds, **target_seed(variant, feeds, word)}
                outputs: Outputs = variant.queue.run(with_seed, names)
            variant.explainer.graph.require_finite(with_seed, outputs)
            return RunResult(outputs, reduce(RunReport.then, reports))

        return await self._in_thread(explain)

    async def metadata(self, name: str) -> Any:
        """Name, version, inputs, outputs."""
        inputs, outputs, _ = await self._graph(name)
        return model_metadata(name, [self.version], inputs, outputs)

    async def config(self, name: str) -> Any:
        """Batching and data types, as Triton's tools ask for them."""
        inputs, outputs, queue = await self._graph(name)
        file = self.model.subject.source.path if split(name)[1] is None else None
        versions = self.model.settings.serving.versions
        return model_config(name, inputs, outputs, queue, versions, file.name if file is not None else "")

    async def statistics(self) -> list[Any]:
        """Of the model, and of each recipe that was asked for."""
        statistics = []
        for title, queue in self.model.queues().items():
            name = self.name if not title else f"{self.name}{EXPLAIN}.{title}"
            if title and title == self.model.recipe.title:
                name = self.name + EXPLAIN
            statistics.append(model_statistics(name, self.version, queue))
        return statistics

    async def ready(self, name: str) -> bool:
        """Whether a name answers: the model does; M.explain where its recipe is possible; M.explain.R likewise."""
        try:
            await self._graph(name)
        except OnnxplainError:
            return False
        return True

    async def explanations(self) -> list[tuple[str, str]]:
        """M.explain, and M.explain.R for every recipe that was asked for."""
        titles = [title for title in self.model.queues() if title and title != self.model.recipe.title]
        default = self.model.recipe
        looped = f"method {default.method} has no graph of its own; ask onnxplain.v1 for it" if default.looped else ""
        return [
            (self.name + EXPLAIN, self.model.default_recipe_problem or looped),
            *((f"{self.name}{EXPLAIN}.{t}", "") for t in titles),
        ]

    # onnxplain.v1

    @counted
    async def explain(self, request: v1.ExplainRequest, progress: Progress | None = None) -> v1.ExplainResponse:
        """The reasons for an answer."""
        begun = time.perf_counter()
        rows = max((row_count(tensor, self._inputs) for tensor in request.inputs), default=1)
        targets = sum(map(target_count, request.targets)) or 1
        log_fields(model=self.name, version=self.version, rows=rows * targets, recipe=request.recipe.name or None)
        explain_request.ask_for_turn(request)
        with self.model.admission.admit(rows * targets, request.ByteSize(), self.model.forward_queue.expected(1)):
            answer = await self._in_thread(lambda: self._explain(request, progress))
            if isinstance(answer, ExplainQuery):  # no thread is held while the graph is being compiled
                query = answer
                compiled = (query.recipe or self.model.default_recipe(query.request)).opened
                with self.model.variants.using(await self._requested(compiled, query.request)) as variant:
                    answer = await self._in_thread(lambda: self._explain_by(variant, request, query, progress))
                answer[0].timing.compile.FromNanoseconds(int(1e9 * variant.seconds))
                answer[0].timing.graph_cache_hit = False
            reply, report = answer
        reply.timing.compute.FromNanoseconds(int(1e9 * (time.perf_counter() - begun)))
        if report.batch_rows:
            _log_run(report)
        return reply

    def _explain(
        self, request: v1.ExplainRequest, progress: Progress | None = None
    ) -> tuple[v1.ExplainResponse, RunReport] | ExplainQuery:
        """The answer where the graph is there; else only what is asked."""
        query = explain_query(request, self.model)
        recipe = query.recipe or self.model.default_recipe(query.request)
        cached = cached_variant(self.model, recipe.opened, query.request)
        if cached is None:
            return query
        with self.model.variants.using(cached) as variant:
            return self._explain_by(variant, request, query, progress)

    def _explain_by(
        self, variant: Variant, request: v1.ExplainRequest, query: ExplainQuery, progress: Progress | None
    ) -> tuple[v1.ExplainResponse, RunReport]:
        recipe, report = query.recipe or self.model.default_recipe(query.request), RunReport()
        if request.output_format.validate_only:
            variant.over(recipe)
            reply = v1.ExplainResponse(
                model=v1.ModelRef(name=self.name, version=self.version),
                request_id=request.request_id,
                recipe_digest=recipe.digest,
                graph_digest=variant.digest,
                method=recipe.method,
                explained=variant.explainer.explained[0],
                warnings=variant.notes,
            )
        else:
            explanation, _, report = self.model.explain(query, progress, variant)
            reply = explain_response(request, explanation, self.model, variant)
            if reply.layers and reply.conservation:
                worst = max(row.relative_error for row in reply.conservation)
                self.model.context.metrics.conserved(self.name, worst)
        reply.timing.queue.FromNanoseconds(int(1e9 * report.queue_seconds))
        reply.timing.batch_size = report.batch_rows
        reply.timing.graph_cache_hit = True
        return reply, report

    async def explainability(self, request: v1.GetExplainabilityRequest) -> v1.GetExplainabilityResponse:
        """What can be explained of the model, and how its inputs are prepared."""
        return await self._descriptions.reply(request)

    async def compile(self, request: v1.CompileGraphRequest) -> AsyncIterator[v1.CompileGraphResponse]:
        """The graph's digest and size, then its bytes."""
        variant = await self._requested(*await self._in_thread(lambda: graph_query(request, self.model)))

        def make() -> tuple[bytes, v1.CompileGraphResponse]:
            content, first = serialised(variant.explainer.compiled.held), v1.CompileGraphResponse()
            first.graph.graph_digest, first.graph.byte_size = variant.digest, len(content)
            first.graph.warnings.extend(variant.notes)
            if request.with_triton_config:
                first.graph.triton_config_pbtxt = ModelDescription(self.model).triton_config(variant)
            return content, first

        content, first = await self._in_thread(make)
        yield first
        for chunk in pieces(content, "graph"):
            yield v1.CompileGraphResponse(chunk=chunk)

    async def close(self) -> None:
        """Put the sessions away."""
        await asyncio.to_thread(self.model.close)

    # Inside

    async def _graph(self, name: str) -> tuple[list[TensorMetadata], list[TensorMetadata], ModelQueue]:
        """Inputs, outputs and queue of a served name."""
        _, recipe = split(name)
        if recipe is None:
            return self._inputs, self._outputs, self.model.forward_queue
        variant = await self._variant(recipe)
        return *variant.signature, variant.queue

    async def _variant(self, recipe: str) -> Variant:
        """A recipe by the last part of a served name, "" for the model's own; compiled if it was not."""
        if recipe and recipe not in recipe_names():
            raise NotFound(f"no recipe {recipe[:100]!r}; `ListRecipes` or `onnxplain methods` has their names.").at(
                "model_name"
            )
        wanted = named(recipe) if recipe else self.model.default_recipe()
        require_graph(wanted, "model_name")
        if (cached := cached_variant(self.model, wanted)) is not None:
            return cached
        if (call := CALL.get(None)) is not None:
            call.caller.require("explain")
        return await self._requested(wanted)

    async def _requested(self, recipe: Recipe, request: Request | None = None) -> Variant:
        """A compiled graph, awaited where it has to be compiled; no thread waits."""
        return await asyncio.wrap_future(requested_variant(self.model, recipe, request))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """Do blocking work in a thread that knows the current call."""
        return await in_thread(self._threads, work)


def _log_run(report: RunReport) -> None:
    log_fields(queue_ms=round(1e3 * report.queue_seconds, 3), batch_rows=report.batch_rows)
