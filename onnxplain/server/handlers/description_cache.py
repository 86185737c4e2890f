"""What can be explained of a model, recipe by recipe: found out as bounded work, then kept."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from onnxplain.recipes import Recipe
from onnxplain.server.call import in_thread
from onnxplain.server.handlers.explain_request import recipe_and_head
from onnxplain.server.handlers.model_description import ModelDescription
from onnxplain.server.models.inference_metadata import TensorMetadata
from onnxplain.server.models.loaded import LoadedModel
from onnxplain.server.models.variant_requests import compile_bytes, require_open
from onnxplain.v1 import explainer_pb2 as v1

RECIPES = 32  # of which it is kept what they do with the model


class DescriptionCache:
    """Replies to GetExplainability for one model. The full view tries every method: it waits in the compile queue."""

    def __init__(
        self,
        model: LoadedModel,
        threads: ThreadPoolExecutor,
        inputs: list[TensorMetadata],
        outputs: list[TensorMetadata],
    ):
        self._model, self._threads = model, threads
        self._describe = partial(ModelDescription(model).explainability, inputs=inputs, outputs=outputs)
        self._replies: dict[Recipe, v1.GetExplainabilityResponse] = {}

    async def reply(self, request: v1.GetExplainabilityRequest) -> v1.GetExplainabilityResponse:
        """Inputs and settings; in the full view what a recipe does. Raises Busy, and Denied as `require_open` does."""
        if request.view == v1.EXPLAINABILITY_VIEW_BASIC:
            return await in_thread(self._threads, partial(self._describe, request))
        recipe, _ = await in_thread(self._threads, partial(recipe_and_head, request.recipe, self._model))
        recipe = recipe or self._model.recipe
        known = self._replies.get(recipe)
        if known is not None:
            return known
        require_open(self._model, recipe.opened, self._model.request)
        future = self._model.context.compile_queue.submit(
            (self._model, "explainability", recipe),
            f"{self._model.name}: what {recipe.title} does with it",
            partial(self._describe, request),
            compile_bytes(self._model),
        )
        reply = await asyncio.wrap_future(future)
        if len(self._replies) >= RECIPES:
            self._replies.pop(next(iter(self._replies)))
        self._replies[recipe] = reply
        return reply
