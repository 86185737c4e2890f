"""What calls may ask of a model's compiled graphs, and how they wait for one."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace
from functools import cache

from onnxplain.compile import Request
from onnxplain.errors import Busy
from onnxplain.graph.stored_graph import nodes_of
from onnxplain.recipes import Recipe, named, recipe_names
from onnxplain.server.call import CALL
from onnxplain.server.models.loaded import LoadedModel
from onnxplain.server.models.variant import NODE, Variant


def cached_variant(model: LoadedModel, recipe: Recipe, request: Request | None = None) -> Variant | None:
    """A compiled graph that is there already. Raises why it cannot be compiled, where that is remembered."""
    return model.variants.get(model.variant_key(recipe, request))


def requested_variant(model: LoadedModel, recipe: Recipe, request: Request | None = None) -> Future[Variant]:
    """A compiled graph as a future: compiled in the queue where it is not there, once however many ask.

    Cancel the future, or stop the current call, to leave. Raises Busy; Denied where the caller may not have it
    compiled; why it cannot be compiled, where that is known; UsageError for a looped recipe.
    """
    key = model.variant_key(recipe, request)
    if (cached := model.variants.get(key)) is not None:
        future: Future[Variant] = Future()
        future.set_result(cached)
        return future
    require_open(model, *key)
    try:
        return model.context.compile_queue.submit(
            (model, *key),
            f"{model.name}: compiling {recipe.title}",
            lambda: model.variant(*key),
            compile_bytes(model),
            lambda error: model.variants.fail(key, error),
        )
    except Busy:
        model.context.metrics.refused(model.name, "compile")
        raise


def require_open(model: LoadedModel, recipe: Recipe, request: Request) -> None:
    """Raise Denied where this is none of the model's own graphs and the caller may not have others compiled."""
    call = CALL.get(None)
    if call is not None and not is_open(model, recipe, request):
        call.caller.require(
            "compile", "which has recipes compiled beyond those with a name, the model's own tensors and no overrides"
        )


def is_open(model: LoadedModel, recipe: Recipe, request: Request) -> bool:
    """Whether whoever may explain may have a graph compiled: a recipe by name, over the tensors the model explains.

    The ledger and the kind of seed may be others, which makes it a few graphs for each name.
    """
    own = (tuple(model.request.explain), tuple(model.subject.resolved.explained))
    plain = replace(request, explain=model.request.explain, ledger=model.request.ledger, seed=model.request.seed)
    if plain != model.request or tuple(request.explain) not in own:
        return False
    of_model = (model.recipe.opened, *map(_by_name, model.settings.serving.recipes))
    return recipe in of_model or recipe in _named()


def compile_bytes(model: LoadedModel) -> int:
    """What compiling a recipe takes in memory, about: the graph, and sessions that verify it."""
    return 3 * model.forward_queue.nbytes + 4 * NODE * nodes_of(model.subject.normalised.held)


@cache
def _by_name(name: str) -> Recipe:
    return named(name).opened


@cache
def _named() -> frozenset[Recipe]:
    return frozenset(_by_name(name) for name in recipe_names())
