"""From what the engine explanation to replies of onnxplain.v1."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from onnxplain.compile.ledger import COLUMNS, LEDGER
from onnxplain.errors import InputError, UnknownName
from onnxplain.explanation import Explanation
from onnxplain.methods import OnePass
from onnxplain.runtime.session import Array
from onnxplain.server.handlers.explain_request import struct_fields
from onnxplain.server.models.loaded import LoadedModel
from onnxplain.server.models.variant import Variant
from onnxplain.v1 import explainer_pb2 as v1
from onnxplain.wire.tensors import v1_tensor

SUMS = "standard errors are of single elements: none are known of the sums that sum_axes asks for"


def explain_response(
    request: v1.ExplainRequest, explanation: Explanation, model: LoadedModel, variant: Variant
) -> v1.ExplainResponse:
    """The whole answer to Explain but its timing."""
    reply = v1.ExplainResponse(
        model=v1.ModelRef(name=model.name, version=model.version),
        request_id=request.request_id,
        recipe_digest=explanation.recipe.digest,
        graph_digest=variant.digest,
        method=explanation.method.name,
        explained=explanation.explained,
        provenance_json=json.dumps(explanation.provenance, sort_keys=True, ensure_ascii=False),
        warnings=dict.fromkeys([*model.notes, *variant.notes, *explanation.notes]),
    )
    reply.recipe.update(struct_fields(explanation.recipe.content()))
    axes = explanation.provenance.get("stream_axis") or {}
    wanted = request.output_format
    for name, relevance in explanation.relevances.items():
        axis = 0 if variant.forward_only else axes.get(f"{name}.relevance")
        attribution = v1.Attribution(
            relevance=v1_tensor(f"{name}.relevance", _summed(relevance, wanted, axis or 0), wanted.datatype),
            of=name,
            stream_axis=-1 if axis is None else axis,
        )
        if name in explanation.standard_errors and not wanted.sum_axes:
            errors = explanation.standard_errors[name]
            attribution.standard_error.CopyFrom(v1_tensor(f"{name}.standard_error", errors, wanted.datatype))
        reply.attributions.append(attribution)
    if explanation.standard_errors and wanted.sum_axes:
        reply.warnings.append(SUMS)
    for target in explanation.targets:
        resolved = v1.ResolvedTarget(name=target.name, names=target.names, score=target.score.astype(float).tolist())
        if target.index is not None:
            resolved.index.CopyFrom(v1_tensor("index", np.asarray(target.index, np.int64)))
        reply.targets.append(resolved)
    reply.scores.CopyFrom(v1_tensor(explanation.explained, explanation.scores))
    known = {**explanation.outputs, **explanation.kept, **explanation.inputs}
    for n, name in enumerate(request.outputs):
        if name not in known:
            raise UnknownName("output", name[:200], known).at(f"outputs[{n}]")
        reply.outputs.append(v1_tensor(name, known[name]))
    if request.diagnostics != v1.DIAGNOSTICS_OFF:
        reply.conservation.extend(_conservation(explanation))
    if request.diagnostics == v1.DIAGNOSTICS_LAYERS and explanation.ledger is not None:
        reply.ledger.CopyFrom(v1_tensor(LEDGER, explanation.ledger))
        reply.layers.extend(_layers(explanation))
    return reply


def _summed(relevance: Array, wanted: v1.OutputFormat, rows: int) -> Array:
    """Relevance summed over the axes that the client does not want. rows: the axis of the rows, which stays."""
    if not wanted.sum_axes:
        return relevance
    if any(not -relevance.ndim <= axis < relevance.ndim for axis in wanted.sum_axes):
        raise InputError(f"sum_axes {list(wanted.sum_axes)}: the relevance has axes 0 to {relevance.ndim - 1}.").at(
            "output_format.sum_axes"
        )
    axes = [axis % relevance.ndim for axis in wanted.sum_axes]
    if rows in axes or len(set(axes)) < len(axes):
        raise InputError(
            f"sum_axes {list(wanted.sum_axes)}: each axis once, and not axis {rows}, along which the rows lie."
        ).at("output_format.sum_axes")
    total: Array = relevance.sum(tuple(axes), dtype=np.float64).astype(relevance.dtype)
    return total


def _conservation(explanation: Explanation) -> Sequence[v1.Conservation]:
    """Per row: what was to be explained, what arrived, what the ledger says was absorbed. Relevance methods only."""
    if not isinstance(explanation.method, OnePass) or not explanation.method.relevance:
        return []
    rows = []
    for target, sample, row in explanation.rows():
        scores = np.atleast_1d(target.score)
        seeded = float(scores[min(sample, len(scores) - 1)])
        sums = explanation.where(row)
        arrived, absorbed = sums.pop("input"), float(sum(sums.values()))
        error = abs(seeded - arrived - absorbed) / max(abs(seeded), 1e-30)
        rows.append(
            v1.Conservation(seed_sum=seeded, attributed_sum=arrived, absorbed_sum=absorbed, relative_error=error)
        )
    return rows


def _layers(explanation: Explanation) -> Sequence[v1.LayerReport]:
    """Relevance in and out of every node, summed over all rows."""
    assert explanation.ledger is not None
    names = explanation.provenance["ledger"]["rows"]
    rules = explanation.provenance.get("rules") or {}
    sums = explanation.ledger.sum(0)
    into, out = COLUMNS.index("in"), COLUMNS.index("out")
    return [
        v1.LayerReport(
            node=name, rule=str(rules.get(name, "")), relevance_in=float(row[into]), relevance_out=float(row[out])
        )
        for name, row in zip(names, sums, strict=True)
    ]
