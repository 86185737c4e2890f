"""A Subject as JSON and graphs, and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxplain.compile import Request, Resolved
from onnxplain.frontend.load import Source
from onnxplain.frontend.normalise import Normalised
from onnxplain.frontend.verify import Reference
from onnxplain.graph.stored_graph import DeferredModel, Ports, StoredGraph
from onnxplain.prepared import named_arrays
from onnxplain.prepared.entry import CacheEntry
from onnxplain.subject import Opener, Subject

SOURCE, FORWARD = "source", "forward"  # graphs: as the file says; the normal form with the protected tensors


def subject_about(subject: Subject) -> dict[str, Any]:
    """All of a subject that is JSON."""
    source, normalised, resolved = subject.source, subject.normalised, subject.resolved
    return {
        "loaded": {
            "sha256": source.sha256, "weight_inputs": list(source.weight_inputs), "faithful": source.faithful,
        },
        "normalised": {"changes": normalised.changes, "notes": normalised.notes},
        "outputs": len(normalised.ports.outputs),
        "reference": {
            "bounded": sorted(normalised.reference.bounded), "tolerance": normalised.reference.tolerance,
        },
        "resolved": {
            "explained": list(resolved.explained), "heads": dict(resolved.heads),
            "protected": list(resolved.protected), "notes": list(resolved.notes),
            "problem": resolved.problem,
        },
        "row_axes": subject.row_axes(),
    }  # fmt: skip


def subject_of(
    entry: CacheEntry,
    graphs: Mapping[str, StoredGraph],
    path: Path,
    request: Request,
    provider: str,
    threads: int,
    opener: Opener | None,
) -> Subject:
    """The subject that `subject_about` and the graphs were taken from; `path`: where its file lies now."""
    about = entry.about
    loaded, forward = about["loaded"], graphs[FORWARD]
    held: Any = graphs[SOURCE]  # a Source reads it when somebody looks at its model
    weight_inputs = tuple(loaded["weight_inputs"])
    source = Source(held, path, loaded["sha256"], weight_inputs, loaded["faithful"], entry.section("outline"))
    arrays = named_arrays.from_bytes(entry.view("reference"))
    reference = Reference(
        _part(arrays, "feeds/"),
        _part(arrays, "outputs/"),
        frozenset(about["reference"]["bounded"]),
        about["reference"]["tolerance"],
    )
    held = _without_protected(forward, about["outputs"])
    normalised = Normalised(held, source, reference, about["normalised"]["changes"], about["normalised"]["notes"])
    known = about["resolved"]
    resolved = Resolved(
        tuple(known["explained"]), known["heads"], tuple(known["protected"]), tuple(known["notes"]), known["problem"],
    )  # fmt: skip
    return Subject.restored(normalised, request, resolved, forward, about["row_axes"], provider, threads, opener)


def _without_protected(forward: StoredGraph, outputs: int) -> DeferredModel:
    """The normal form itself: the graph that answers, with the first of its outputs."""

    def read() -> ir.Model:
        model = forward.parse()
        kept = list(model.graph.outputs)[:outputs]
        model.graph.outputs.clear()
        model.graph.outputs.extend(kept)
        return model

    return DeferredModel(Ports(forward.ports.inputs, forward.ports.outputs[:outputs]), forward.nodes, read)


def _part(arrays: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
