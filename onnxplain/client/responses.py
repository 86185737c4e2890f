"""A reply becomes the Explanation that the same request gives offline."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from google.protobuf import json_format

from onnxplain.client.requests import ModelInfo
from onnxplain.errors import InputError, OnnxplainError
from onnxplain.explanation import Explanation
from onnxplain.inputs import Loaded, Target, resolve_targets
from onnxplain.methods import METHODS
from onnxplain.methods.registry import Method
from onnxplain.recipes import Recipe
from onnxplain.runtime.session import Array
from onnxplain.v1 import explainer_pb2 as v1
from onnxplain.wire.tensors import v1_array


@dataclass
class RemoteExplanation(Explanation):
    """An Explanation that came from a server.

    version: the number of the version that answered. recipe_digest, graph_digest: of what ran. conservation: relative
    error of each row of each target, () where the method has none. layers: `LayerReport`s with a ledger. timing:
    seconds of queue, compile and compute on the server.
    """

    model: str = ""
    version: str = ""
    recipe_digest: str = ""
    graph_digest: str = ""
    conservation: Sequence[float] = ()
    layers: Sequence[v1.LayerReport] = ()
    timing: dict[str, float] = field(default_factory=dict)


def remote_explanation(
    reply: v1.ExplainResponse, info: ModelInfo, loaded: Loaded, words: Sequence[str]
) -> RemoteExplanation:
    """All that the reply says. words: the targets as they were asked. Raises InputError for a reply with a hole."""
    if not reply.attributions or not reply.targets:
        raise InputError("the server's reply has no relevance in it; is it a newer server? Update this package.")
    provenance = json.loads(reply.provenance_json or "{}")
    scores = _array(reply.scores, "scores")
    kind = info.reply.kind or ("sigmoid" if "Sigmoid" in (provenance.get("heads") or {}).values() else None)
    timing = reply.timing
    explanation = RemoteExplanation(
        method=_method(reply.method),
        recipe=_recipe(reply),
        targets=_targets(reply, scores, info.labels, kind, words),
        samples=scores.shape[0] if scores.ndim else 1,
        relevances={a.of: _array(a.relevance, f"attributions[{n}]") for n, a in enumerate(reply.attributions)},
        standard_errors={
            a.of: _array(a.standard_error, f"attributions[{n}].standard_error")
            for n, a in enumerate(reply.attributions)
            if a.HasField("standard_error")
        },
        inputs=loaded.feeds,
        scores=scores,
        explained=reply.explained,
        outputs={reply.explained: scores},
        kept={tensor.name: _array(tensor, f"outputs[{n}]") for n, tensor in enumerate(reply.outputs)},
        ledger=_array(reply.ledger, "ledger") if reply.HasField("ledger") else None,
        provenance=provenance,
        labels=info.labels,
        kind=kind,
        notes=list(dict.fromkeys(reply.warnings)),
        seconds=timing.compute.ToNanoseconds() / 1e9,
        model=reply.model.name,
        version=reply.model.version,
        recipe_digest=reply.recipe_digest,
        graph_digest=reply.graph_digest,
        conservation=tuple(entry.relative_error for entry in reply.conservation),
        layers=tuple(reply.layers),
        timing={name: getattr(timing, name).ToNanoseconds() / 1e9 for name in ("queue", "compile", "compute")},
    )
    explanation.show(loaded, info.specs[0].name)
    return explanation


def _array(tensor: Any, where: str) -> Array:
    return v1_array(tensor, f"the reply's {where}")


def _method(name: str) -> Method:
    """One that this package does not have yet is drawn as most are: signed, channels summed."""
    return METHODS[name] if name in METHODS else Method(name, "", "")


def _recipe(reply: v1.ExplainResponse) -> Recipe:
    """As the server resolved it."""
    if not reply.recipe.fields:
        raise InputError("the server's reply does not say its recipe; is it an older server?")
    return Recipe.of(json_format.MessageToDict(reply.recipe), "the reply's recipe")


def _targets(
    reply: v1.ExplainResponse, scores: Array, labels: Sequence[str], kind: str | None, words: Sequence[str]
) -> list[Target]:
    """As the server resolved them. A seed is not sent: it is a 1 at the index, or what the same words give here."""
    try:
        here = [target for word in words for target in resolve_targets(word, scores, labels, kind)]
    except OnnxplainError:  # a word that a newer server understands
        here = []
    here = here if [t.name for t in here] == [t.name for t in reply.targets] else []
    targets = []
    for n, target in enumerate(reply.targets):
        index = _array(target.index, f"targets[{n}].index") if target.HasField("index") else None
        seed = here[n].seed if here else _seed(index, scores)
        targets.append(Target(target.name, tuple(target.names), seed, index, np.array(target.score, np.float64)))
    return targets


def _seed(index: Array | None, scores: Array) -> Array:
    """A 1 for each row at its index; all zero where there is none."""
    seed = np.zeros(scores.shape, np.float32)
    if index is not None and index.ndim == 2 and index.shape[1] == scores.ndim - 1:
        for row in range(len(seed)):
            seed[(row, *index[min(row, len(index) - 1)])] = 1
    return seed
