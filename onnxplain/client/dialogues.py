"""Which calls answer a request: generators that yield calls and are sent replies, whoever makes the calls.

So both clients share every decision, and neither waiting nor event loops are in here.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from onnxplain.client.calls import ModelState, RpcCall, explainer_call, inference_call
from onnxplain.client.requests import ModelInfo, X, bound, is_file, spec_of
from onnxplain.client.responses import RemoteExplanation, remote_explanation
from onnxplain.client.streams import OneFile, OneReply, Progress, messages, streamed
from onnxplain.errors import InputError, Unavailable, UsageError
from onnxplain.inputs import InputSpec, Loaded
from onnxplain.recipes import Recipe
from onnxplain.runtime.session import Array
from onnxplain.v1 import explainer_pb2 as v1
from onnxplain.wire.inference import messages as oip
from onnxplain.wire.tensors import datatype_of, to_array, to_raw, v1_tensor

T = TypeVar("T")
Steps = Generator[RpcCall, Any, T]
Ask = str | int
Names = str | Sequence[str]
PAGE = 100  # recipes of one reply


class Dialogues:
    """What is known of the server's models, and the dialogues about them."""

    def __init__(self) -> None:
        self._infos: dict[tuple[str, str], ModelInfo] = {}
        self._specs: dict[tuple[str, str], list[InputSpec]] = {}

    def explain(
        self, model: str, x: X, target: Ask | Sequence[Ask], version: str, method: str | None,
        recipe: str | Recipe | Mapping[str, Any] | None, options: Mapping[str, Any], explain: str,
        head: str, attribute_to: Names, outputs: Names, ledger: bool, progress: Progress | None,
    ) -> Steps[RemoteExplanation]:  # fmt: skip
        """See `Client.explain`."""
        steps = lambda: self._explain(  # noqa: E731
            model, x, target, version, method, recipe, options, explain, head, attribute_to, outputs, ledger, progress
        )
        return (yield from self._by_memory(model, version, steps))

    def _explain(
        self, model: str, x: X, target: Ask | Sequence[Ask], version: str, method: str | None,
        recipe: str | Recipe | Mapping[str, Any] | None, options: Mapping[str, Any], explain: str,
        head: str, attribute_to: Names, outputs: Names, ledger: bool, progress: Progress | None,
    ) -> Steps[RemoteExplanation]:  # fmt: skip
        words = [str(word) for word in ([target] if isinstance(target, str | int | np.integer) else target)]
        info = yield from self._info(model, version)
        while True:
            loaded = info.loaded(x)
            wanted = recipe_message(info.method, method, recipe, options, head)
            request = v1.ExplainRequest(
                model=v1.ModelRef(name=model, version=version),
                request_id=secrets.token_hex(8),
                targets=[v1.Target(output=explain, expression=word) for word in words],
                recipe=wanted,
                attribute_to=_names(attribute_to),
                outputs=_names(outputs),
                diagnostics=v1.DIAGNOSTICS_LAYERS if ledger else v1.DIAGNOSTICS_SUMMARY,
            )
            reply = yield self._explain_call(request, loaded.feeds, info.reply.max_message_bytes, len(words), progress)
            if reply.model.version == info.version:
                return remote_explanation(reply, info, loaded, words)
            before, info = info, (yield from self._info(model, version, anew=True))
            if before.asks_as(info) and reply.model.version == info.version:
                return remote_explanation(reply, info, loaded, words)
            # what was sent was made ready for another version: once more, by the settings of this one

    def infer(
        self, model: str, x: X, outputs: Names, version: str, parameters: Mapping[str, str | int | bool]
    ) -> Steps[dict[str, Array]]:
        """See `Client.infer`."""
        steps = lambda: self._infer(model, x, outputs, version, parameters)  # noqa: E731
        return (yield from self._by_memory(model, version, steps))

    def _infer(
        self, model: str, x: X, outputs: Names, version: str, parameters: Mapping[str, str | int | bool]
    ) -> Steps[dict[str, Array]]:
        if is_file(x):
            x = (yield from self._info(_base(model), version)).loaded(x).feeds
        specs = yield from self._inputs(model, version)
        request = oip.ModelInferRequest(model_name=model, model_version=version, id=secrets.token_hex(8))
        for name, array in bound(x, specs).items():
            request.inputs.add(name=name, datatype=datatype_of(array.dtype), shape=array.shape)
            request.raw_input_contents.append(to_raw(array))
        for name in _names(outputs):
            request.outputs.add(name=name)
        for name, value in parameters.items():
            kind = {bool: "bool_param", int: "int64_param"}.get(type(value), "string_param")
            setattr(request.parameters[name], kind, value)
        reply = yield inference_call("ModelInfer", request)
        if len(reply.raw_output_contents) != len(reply.outputs):
            raise InputError(f"the server's reply has {len(reply.outputs)} outputs, but not the bytes of each.")
        return {
            tensor.name: to_array(tensor.datatype, tensor.shape, raw, f"the reply's {tensor.name}")
            for tensor, raw in zip(reply.outputs, reply.raw_output_contents, strict=True)
        }

    def prepare(self, model: str, x: X, version: str) -> Steps[Loaded]:
        """See `Client.prepare`."""

        def steps() -> Steps[Loaded]:
            return (yield from self._info(model, version)).loaded(x)

        return (yield from self._by_memory(model, version, steps))

    def explainability(self, model: str, version: str) -> Steps[v1.GetExplainabilityResponse]:
        """See `Client.explainability`."""
        return (yield from self._info(model, version, anew=True, view=v1.EXPLAINABILITY_VIEW_FULL)).reply

    def recipes(self) -> Steps[list[v1.RecipeInfo]]:
        """See `Client.recipes`."""
        recipes: list[v1.RecipeInfo] = []
        token = ""
        while True:
            request = v1.ListRecipesRequest(page_size=PAGE, page_token=token)
            reply = yield explainer_call("ListRecipes", v1.ListRecipesResponse, request)
            recipes += reply.recipes
            if not reply.next_page_token or reply.next_page_token == token:
                return recipes
            token = reply.next_page_token

    def compile(
        self, model: str, version: str, method: str | None, recipe: str | Recipe | Mapping[str, Any] | None,
        options: Mapping[str, Any], explain: str, head: str, attribute_to: Names, progress: Progress | None,
    ) -> Steps[bytes]:  # fmt: skip
        """See `Client.compile`."""
        info = yield from self._info(model, version)
        request = v1.CompileGraphRequest(
            model=v1.ModelRef(name=model, version=version),
            recipe=recipe_message(info.method, method, recipe, options, head),
            target=v1.Target(output=explain),
            attribute_to=_names(attribute_to),
        )
        content: bytes = yield explainer_call(
            "CompileGraph", v1.CompileGraphResponse, request, lambda: OneFile(progress)
        )
        return content

    def models(self) -> Steps[list[ModelState]]:
        """See `Client.models`."""
        reply = yield inference_call("RepositoryIndex", oip.RepositoryIndexRequest())
        return [ModelState(entry.name, entry.version, entry.state, entry.reason) for entry in reply.models]

    def ready(self, model: str, version: str) -> Steps[bool]:
        """See `Client.ready`."""
        try:
            if model:
                reply = yield inference_call("ModelReady", oip.ModelReadyRequest(name=model, version=version))
            else:
                reply = yield inference_call("ServerReady", oip.ServerReadyRequest())
        except Unavailable:
            return False
        return bool(reply.ready)

    def _by_memory(self, model: str, version: str, steps: Callable[[], Steps[T]]) -> Steps[T]:
        """Take steps by what is remembered of a model; once more where that was of a version that is gone."""
        info, specs = self._infos.get((_base(model), version)), self._specs.get((model, version))
        try:
            return (yield from steps())
        except InputError:
            changed = False
            if info is not None:
                found = yield from self._info(_base(model), version, anew=True)
                changed = found.version != info.version or not info.asks_as(found)
            if specs is not None:
                changed |= (yield from self._inputs(model, version, anew=True)) != specs
            if not changed:
                raise
        return (yield from steps())

    def _inputs(self, model: str, version: str, anew: bool = False) -> Steps[list[InputSpec]]:
        """What a model, or the explanation of one, takes, fetched once."""
        specs = None if anew else self._specs.get((model, version))
        if specs is None:
            metadata = yield inference_call("ModelMetadata", oip.ModelMetadataRequest(name=model, version=version))
            specs = self._specs[(model, version)] = [spec_of(entry) for entry in metadata.inputs]
        return specs

    def _info(
        self, model: str, version: str, anew: bool = False, view: Any = v1.EXPLAINABILITY_VIEW_BASIC
    ) -> Steps[ModelInfo]:
        """What the server says of a model, fetched once."""
        info = None if anew else self._infos.get((model, version))
        if info is None:
            request = v1.GetExplainabilityRequest(model=v1.ModelRef(name=model, version=version), view=view)
            info = ModelInfo((yield explainer_call("GetExplainability", v1.GetExplainabilityResponse, request)))
            self._infos[(model, version)] = info
        return info

    def _explain_call(
        self, request: v1.ExplainRequest, feeds: Mapping[str, Array], limit: int, targets: int,
        progress: Progress | None,
    ) -> RpcCall:  # fmt: skip
        """One message each way where both are small, else a stream of pieces."""
        size = sum(array.nbytes for array in feeds.values())
        if progress is not None or streamed(size * max(1, targets), limit):
            return explainer_call(
                "ExplainStream",
                v1.ExplainStreamResponse,
                lambda: messages(request, feeds, limit, progress),
                lambda: OneReply(progress),
            )
        for name, array in feeds.items():
            request.inputs.append(v1_tensor(name, array))
        return explainer_call("Explain", v1.ExplainResponse, request)


def recipe_message(
    default: str, method: str | None, recipe: str | Recipe | Mapping[str, Any] | None, options: Mapping[str, Any],
    head: str = "",
) -> v1.Recipe:  # fmt: skip
    """A recipe as the protocol says it.

    default: the method of the model's own recipe, which then is what options are laid over. options: of the method,
    base among them.
    """
    if isinstance(method, Recipe):
        method, recipe = None, method if recipe is None else recipe
    said = {name: value for name, value in options.items() if value is not None}
    given = {name: value for name, value in said.items() if not isinstance(value, (tuple, list)) or value}
    if recipe is not None:
        if method or given:
            raise UsageError(
                f"recipe stands alone: put {', '.join([*(['method'] if method else []), *given])} into it."
            )
        if isinstance(recipe, str):
            message = v1.Recipe(name=recipe)
        else:
            table = recipe.content() if isinstance(recipe, Recipe) else dict(recipe)
            message = v1.Recipe(name=str(table.pop("method", "lrp")))
            _override(message, table)
    else:
        message = v1.Recipe(name="" if method in (None, default) else str(method))
        _override(message, given)
    if head:
        message.overrides["head"] = head
    return message


def _override(message: v1.Recipe, table: Mapping[str, Any]) -> None:
    if table:
        message.overrides.update({name: _plain(value) for name, value in table.items()})


def _plain(value: Any) -> Any:
    """As a Struct holds it: no tuples, no recipes."""
    if isinstance(value, Recipe):
        return _plain(value.content())
    if isinstance(value, Mapping):
        return {name: _plain(v) for name, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def _base(model: str) -> str:
    """The model itself, of M, M.explain or M.explain.RECIPE."""
    return model.partition(".explain")[0]


def _names(names: Names) -> list[str]:
    return [names] if isinstance(names, str) and names else list(names)
