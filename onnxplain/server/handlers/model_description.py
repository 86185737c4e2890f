"""What the service tells of a model: what can be explained of it, how its inputs are prepared, which recipes exist."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

from google.protobuf import json_format

from onnxplain.composites import COMPOSITES
from onnxplain.coverage import coverage
from onnxplain.errors import InputError
from onnxplain.exports.triton import config_of
from onnxplain.methods import METHODS
from onnxplain.methods.options import Option
from onnxplain.recipes import named, recipe_names
from onnxplain.server.handlers.explain_request import recipe_and_head, struct_fields
from onnxplain.server.models.inference_metadata import TensorMetadata
from onnxplain.server.models.loaded import LoadedModel
from onnxplain.server.models.served import EXPLAIN
from onnxplain.server.models.variant import Variant
from onnxplain.v1 import explainer_pb2 as v1


class ModelDescription:
    """What can be said of one model, as replies."""

    def __init__(self, model: LoadedModel):
        self.model = model

    def explainability(
        self, request: v1.GetExplainabilityRequest, inputs: list[TensorMetadata], outputs: list[TensorMetadata]
    ) -> v1.GetExplainabilityResponse:
        """Inputs, labels and settings; usable and blocked methods; the rule of every kind of node by one recipe."""
        model, subject, settings = self.model, self.model.subject, self.model.settings
        reply = v1.GetExplainabilityResponse(
            model=v1.ModelRef(name=model.name, version=model.version),
            labels=model.labels,
            kind=settings.output.kind or "",
            explained=subject.resolved.explained,
            default_recipe=model.recipe.title,
            max_message_bytes=model.context.options.max_message_bytes,
            description=settings.description,
            max_batch_size=model.admission.max_rows,
        )
        reply.default_options.update(struct_fields(model.recipe.content()))
        for field, tensors in ((reply.inputs, inputs), (reply.outputs, outputs)):
            for t in tensors:
                field.add(name=t.name, datatype=t.datatype, shape=t.shape or (), any_rank=t.shape is None)
        for n, spec in enumerate(subject.inputs):
            picture, columns = settings.picture(spec.name, n), settings.columns(spec.name, n)
            if picture is not None or columns:
                table = {} if picture is None else struct_fields(dataclasses.asdict(picture))
                reply.input_settings.update({spec.name: table | ({"features": list(columns)} if columns else {})})
        if request.view != v1.EXPLAINABILITY_VIEW_BASIC:
            self._methods(reply, request)
        return reply

    def _methods(self, reply: v1.GetExplainabilityResponse, request: v1.GetExplainabilityRequest) -> None:
        """What works and what blocks, method by method, and by one recipe op by op."""
        model, subject = self.model, self.model.subject
        recipe, _ = recipe_and_head(request.recipe, model)
        recipe = recipe or model.recipe
        all_methods = model.coverage()
        covered = coverage(subject.normalised, subject.resolved, subject.request, recipe)
        reply.supported = recipe.method not in covered.blocked
        reply.attributable.extend(covered.attributed or all_methods.attributed)
        reply.methods.extend(name for name in METHODS if name not in all_methods.blocked)
        reply.streams = covered.streams or all_methods.streams
        for name, reason in all_methods.blocked.items():
            reply.blocked_methods.add(method=name, reason=reason)
        self._ops(reply, covered.rules.get(recipe.method, {}), covered.nodes.get(recipe.method, {}))
        if recipe.method not in covered.blocked:
            variant = model.variant(recipe.opened)
            reply.estimated_bytes_per_row = variant.explainer.bytes_per_stream

    def _ops(self, reply: v1.GetExplainabilityResponse, rules: dict[str, str], blocked: dict[str, str]) -> None:
        """Counts by op type and rule."""
        graph = self.model.subject.normalised.model.graph
        by_name = {node.name or str(node.outputs[0].name): node for node in graph}
        opset = graph.opset_imports.get("", 18)
        counted: Counter[tuple[str, str, str, str]] = Counter()
        for name, rule in rules.items():
            node = by_name.get(name)
            counted[(node.domain if node else "", node.op_type if node else name.split("_")[0], rule, "")] += 1
        for name, reason in blocked.items():
            node = by_name.get(name)
            counted[(node.domain if node else "", node.op_type if node else name, "", reason)] += 1
        for (domain, op_type, rule, reason), count in sorted(counted.items()):
            reply.ops.add(
                domain=domain,
                op_type=op_type,
                since_version=graph.opset_imports.get(domain, opset),
                count=count,
                rule=rule,
                support=v1.SUPPORT_BLOCKED if reason else v1.SUPPORT_EXACT,
                reason=reason,
            )

    def triton_config(self, variant: Variant) -> str:
        """config.pbtxt for the compiled graph."""
        return config_of(variant.explainer, f"{self.model.name}{EXPLAIN}")


def list_recipes(page_size: int, token: str) -> v1.ListRecipesResponse:
    """All recipes by name, in pages."""
    names = recipe_names()
    if token and token not in names:
        raise InputError(f"page_token {token[:100]!r} is none of this server's: give next_page_token.").at("page_token")
    start = names.index(token) if token else 0
    size = page_size if page_size > 0 else len(names)
    reply = v1.ListRecipesResponse()
    for name in names[start : start + size]:
        reply.recipes.append(_info(name))
    if start + size < len(names):
        reply.next_page_token = names[start + size]
    return reply


TYPES = {"int": "integer", "float": "number", "bool": "boolean", "str": "string"}
LISTS = {"list": "number", "texts": "string"}


def _info(name: str) -> v1.RecipeInfo:
    """One recipe: what it does, and the schema of what may be said about it."""
    recipe = named(name)
    method = METHODS[recipe.method]
    info = v1.RecipeInfo(name=name, title=method.doc, cite=method.cite, kind=method.family)
    properties: dict[str, Any] = {"head": {"type": "string", "enum": ["cut", "keep"]}}
    for option in method.options.values():
        properties[option.name] = _schema(option)
    if recipe.base is not None:
        properties["base"] = {"type": ["string", "object"]}
    if "composite" in recipe.options:
        composite = COMPOSITES[recipe.composite]
        properties["composite"] = {"type": "string", "examples": list(COMPOSITES)}
        if name != recipe.method:
            info.title, info.cite = f"{method.doc} Composite: {composite.doc}", f"{method.cite}; {composite.cite}"
    json_format.ParseDict({"type": "object", "properties": properties}, info.schema)
    info.defaults.update(struct_fields({**recipe.content(), "head": "cut"}))
    return info


def _schema(option: Option) -> dict[str, Any]:
    kinds: list[dict[str, Any]] = [{"type": TYPES[kind]} for kind in option.types if kind in TYPES]
    kinds += [{"type": "array", "items": {"type": LISTS[kind]}} for kind in option.types if kind in LISTS]
    kinds += [{"type": "string", "enum": list(option.choices)}] if option.choices else []
    kinds += [{"type": "null"}] if option.none else []
    if option.range is not None:
        limits = {"minimum": option.range.low, "maximum": option.range.high}
        kinds[0] |= {key: limit for key, limit in limits.items() if limit is not None}
    found = kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
    return {**found, "description": option.doc} if option.doc else found
