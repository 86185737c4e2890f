"""From a request of onnxplain.v1 to what the engine is asked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from google.protobuf import json_format, struct_pb2

from onnxplain.compile import Request
from onnxplain.errors import InputError, OnnxplainError, UsageError
from onnxplain.explainer import Ask
from onnxplain.inputs import bind, resolve_targets
from onnxplain.inputs.targets import Target, contrast, from_classes, from_seed
from onnxplain.recipes import Recipe, named
from onnxplain.runtime.session import Array
from onnxplain.server.call import CALL
from onnxplain.server.models.explain_query import ExplainQuery
from onnxplain.server.models.loaded import LoadedModel
from onnxplain.v1 import explainer_pb2 as v1
from onnxplain.wire.tensors import quoted, v1_array, v1_arrays

REQUEST_ID = 128  # characters
WORDS = 1000  # characters of a target
RECIPE_NAME = 200  # characters; names of recipes are read piece by piece
RECIPE_BYTES = 64 * 1024  # of the overrides of a recipe: rules by node, bounds by channel
RELEVANCE = ("FP32", "FP16", "BF16", "FP64")  # what relevance can be sent as
MAX_TARGETS = 1024  # of one request; admission bounds rows times targets as well


def explain_query(request: v1.ExplainRequest, model: LoadedModel) -> ExplainQuery:
    """Arrays, targets, recipe and tensors of an ExplainRequest. Raises errors with the field they are about."""
    if len(request.request_id) > REQUEST_ID:
        raise UsageError(f"request_id: {len(request.request_id)} characters, at most {REQUEST_ID} are taken.").at(
            "request_id"
        )
    require_float(request.output_format.datatype)
    feeds = bound_inputs(request, model)
    recipe, head = recipe_and_head(request.recipe, model)
    asks = [_target_finder(target, f"targets[{n}]") for n, target in enumerate(request.targets)] or ["predicted"]
    if len(asks) > MAX_TARGETS:
        raise UsageError(f"{len(asks)} targets in one request: send at most {MAX_TARGETS}.").at("targets")
    ledger = request.diagnostics == v1.DIAGNOSTICS_LAYERS
    tensors = compile_request(model, request.targets, request.attribute_to, head, tuple(request.outputs), ledger)
    return ExplainQuery(feeds, asks, recipe, tensors)


def ask_for_turn(request: v1.ExplainRequest) -> None:
    """Tell the current call how urgent the request is, and how long its runs may wait. Raises UsageError, Denied."""
    call = CALL.get(None)
    seconds = request.queue_timeout.ToNanoseconds() / 1e9 if request.HasField("queue_timeout") else None
    if seconds is not None and seconds < 0:
        raise UsageError(f"{seconds:g} s: a run cannot wait less than no time.").at("queue_timeout")
    if call is None:
        return
    try:
        call.ask_for_turn(request.priority, seconds)
    except OnnxplainError as error:
        raise error.at("priority") from None


def graph_query(request: v1.CompileGraphRequest, model: LoadedModel) -> tuple[Recipe, Request]:
    """Recipe and tensors of a CompileGraphRequest. Raises errors with the field they are about."""
    recipe, head = recipe_and_head(request.recipe, model)
    targets = [request.target] if request.HasField("target") else []
    tensors = compile_request(model, targets, request.attribute_to, head)
    if request.target.HasField("indices"):
        tensors = replace(tensors, seed="index")
    wanted = recipe or model.default_recipe(tensors)
    require_graph(wanted, "recipe")
    return wanted, tensors


def require_graph(recipe: Recipe, field: str) -> None:
    """Refuse a looped recipe, of which no one graph answers; field: where the request names it."""
    try:
        recipe.require_graph()
    except OnnxplainError as error:
        raise error.at(field) from None


def bound_inputs(request: v1.ExplainRequest, model: LoadedModel) -> dict[str, Array]:
    """The arrays, each in the model's declared shape and type."""
    arrays = v1_arrays(request.inputs)
    specs = model.subject.inputs
    names = {spec.name for spec in specs}
    for n, name in enumerate(arrays):
        if name not in names and not (len(specs) == len(arrays) == 1 and not name):
            known = ", ".join(map(str, specs))
            raise InputError(f"no input named {name[:100]!r}; the model takes {known}.").at(f"inputs[{n}].name")
    try:
        return bind(arrays, specs, "the request")
    except OnnxplainError as error:
        raise error.at(error.field or "inputs") from None


def recipe_and_head(message: v1.Recipe, model: LoadedModel) -> tuple[Recipe | None, str]:
    """The recipe (None: the model's own) and how the head is treated ("": as by default)."""
    try:
        if len(message.name) > RECIPE_NAME:
            raise UsageError(f"the recipe's name has {len(message.name)} characters; `ListRecipes` has the names.")
        base = named(message.name) if message.name else None
        overrides = recipe_overrides(message)
        head = overrides.pop("head", "")
        if head not in ("", "cut", "keep"):
            raise UsageError(f"head is cut or keep, not {head!r}.")
        if overrides:
            below = (base or model.recipe).content()
            if overrides.get("method", below["method"]) != below["method"]:
                below = {}  # another method, with options of its own
            if isinstance(overrides.get("rules"), list) and "rules" in below:
                overrides["rules"] = [*overrides["rules"], *below["rules"]]
            base = Recipe.of({**below, **overrides}, "recipe.overrides")
        if base is not None:
            base.check()
    except OnnxplainError as error:
        raise error.at(error.field or "recipe") from None
    return base, str(head)


def recipe_overrides(message: v1.Recipe) -> dict[str, Any]:
    """The keys of a recipe that a client gives. Raises UsageError for numbers that are none."""
    if not message.HasField("overrides"):
        return {}
    size = message.overrides.ByteSize()
    if size > RECIPE_BYTES:
        raise UsageError(f"{size} bytes of overrides; at most {RECIPE_BYTES} are taken.").at("recipe.overrides")
    where = _not_finite(message.overrides.fields.items())
    if where:
        raise UsageError(f"{where} is NaN or infinite; give a number.").at(f"recipe.overrides.{where}"[:200])
    overrides: dict[str, Any] = json_format.MessageToDict(message.overrides)
    return overrides


def _not_finite(fields: Iterable[tuple[str, struct_pb2.Value]]) -> str:
    """Where in a Struct a number is NaN or infinite, "" if nowhere."""
    for name, value in fields:
        if not math.isfinite(value.number_value):
            return name
        inner = [(f"{name}.{key}", entry) for key, entry in value.struct_value.fields.items()]
        inner += [(f"{name}[{n}]", entry) for n, entry in enumerate(value.list_value.values)]
        if inner and (where := _not_finite(inner)):
            return where
    return ""


def require_float(datatype: str) -> None:
    """Refuse types that relevance cannot be sent as: whole numbers would make nearly all of it zero."""
    if datatype and datatype not in RELEVANCE:
        raise InputError(
            f"relevance cannot be sent as {quoted(datatype)}; give {', '.join(RELEVANCE)}, or nothing for what was "
            "computed."
        ).at("output_format.datatype")


def compile_request(
    model: LoadedModel,
    targets: Sequence[v1.Target],
    attribute_to: Sequence[str],
    head: str = "",
    outputs: Sequence[str] = (),
    ledger: bool = False,
) -> Request:
    """Which tensors are explained, attributed to and returned as well."""
    explain = sorted({target.output for target in targets if target.output})
    if len(explain) > 1 or (explain and not all(target.output for target in targets)):
        raise UsageError(
            f"the targets of one request explain one tensor, not {', '.join(explain)}; send a request for each."
        ).at("targets")
    if len(attribute_to) > 64 or len(outputs) > 64:
        raise UsageError("at most 64 tensors can be asked for at once.").at("attribute_to")
    own = {str(value.name) for value in model.subject.source.ports.outputs}
    kept = tuple(name for name in outputs if name not in own)
    explained = tuple(explain) or model.request.explain
    head = "" if head == "cut" and not explained else head  # the default, by its name
    return Request(explained, head, "tensor", tuple(attribute_to), kept, ledger)


def _target_finder(target: v1.Target, where: str) -> Ask:
    """One target in the words of `Explainer.explain`."""
    kind = target.WhichOneof("selector")
    if kind is None:
        return "predicted"
    if kind == "expression":
        words = target.expression or "predicted"
        if len(words) > WORDS:
            raise UsageError(f"a target of {len(words)} characters; at most {WORDS} are taken.").at(
                f"{where}.expression"
            )
        return _with_field(f"{where}.expression", lambda s, labels, k: resolve_targets(words, s, labels, k))
    if kind == "arg_max":
        if target.arg_max.k < 0:
            raise UsageError(f"k is {target.arg_max.k}; give 1 or more.").at(f"{where}.arg_max.k")
        word = f"top{target.arg_max.k}" if target.arg_max.k > 1 else "predicted"
        return _with_field(f"{where}.arg_max.k", lambda s, labels, k: resolve_targets(word, s, labels, k))
    if kind == "seed":
        seed = v1_array(target.seed, f"{where}.seed")
        return _with_field(f"{where}.seed", lambda s, labels, k: from_seed(seed, s, "seed", labels, k))
    if kind == "indices":
        classes = list(target.indices.index)
        if not classes:
            raise UsageError("no index given.").at(f"{where}.indices")
        return _with_field(f"{where}.indices", lambda s, labels, k: from_classes(classes, s, labels, k))
    positive, negatives = target.contrast.positive, list(target.contrast.negatives)
    return _with_field(f"{where}.contrast", lambda s, labels, k: contrast(positive, negatives, s, labels, k))


def _with_field(field: str, make: Any) -> Ask:
    def find(scores: Array, labels: Sequence[str], kind: str | None) -> list[Target]:
        try:
            targets: list[Target] = make(scores, labels, kind)
        except OnnxplainError as error:
            raise error.at(field) from None
        return targets

    return find


def target_count(target: v1.Target) -> int:
    """How many explanations a target asks for, per row."""
    if target.WhichOneof("selector") == "arg_max":
        return max(1, min(target.arg_max.k, MAX_TARGETS))
    word = target.expression.strip().lower()
    if word.startswith("top") and word[3:].lstrip("-").isdecimal() and len(word) < 10:
        return max(1, int(word[3:].lstrip("-")))
    return 1


def struct_fields(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """A table as google.protobuf.Struct takes it: tuples become lists, what is None is left out."""
    fields: dict[str, Any] = {}
    for key, value in mapping.items():
        if value is None:
            continue
        fields[key] = list(map(_listed, value)) if isinstance(value, tuple | list) else value
    return fields


def _listed(value: Any) -> Any:
    return list(map(_listed, value)) if isinstance(value, tuple | list) else value
