"""CHAIN: outputs of one model feed inputs of another, as a generator feeds a classifier; both become one model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxplain import __version__
from onnxplain.compile import provenance
from onnxplain.compile.connection import Connect, Pairs, PortConnection
from onnxplain.compile.needed import keep_needed
from onnxplain.compile.reconcile import PREFIXES, merge_functions, rename_apart, same_opsets
from onnxplain.compile.written import Sample, WrittenModel, by_name, write
from onnxplain.errors import UnknownName, UsageError
from onnxplain.frontend.load import Source, load
from onnxplain.frontend.verify import Reference, reference


def chain(
    first: str | Path,
    second: str | Path,
    path: str | Path,
    *,
    connect: Connect | None = None,
    keep: str | Sequence[str] = (),
    sample: Sample = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> WrittenModel:
    """Write one model to `path` in which outputs of `first` feed inputs of `second`.

    connect: {output of first: input, or inputs, of second}; None: tensors of one name, else the only two that fit. An
    open length takes the number or name it meets; types, ranks and numbers that differ are refused. Inputs of the whole
    are those of first and the unconnected ones of second; its outputs those of second, then the outputs of first that
    `keep` names. Where opsets differ the older model is raised. A name that both models have gets a prefix: the
    second's `second/`, unless it is a port of the whole and the first's is not, which then gets `first/`; a port of the
    whole that is renamed is told in a note. sample, shapes: input of the whole to verify on, as in `Subject.of`: it has
    run and answered what the two do in turn.
    Raises UnknownName, UsageError, UnsupportedModel, ConversionChanged, InputError.
    """
    sources = load(Path(first)), load(Path(second))
    kept = (keep,) if isinstance(keep, str) else tuple(keep)
    connection = PortConnection(sources[0].model, sources[1].model, connect)
    for n, name in enumerate(kept):
        if name not in connection.outputs:
            raise UnknownName("output of the first model", name, connection.outputs)
        if name in kept[:n]:
            raise UsageError(f"--keep {name}: named twice.")
    notes: list[str] = [f"{source} feeds {target}" for target, source in connection.pairs.items()]
    models = [source.model.clone() for source in sources]
    for which, model in enumerate(models):
        connection.lengths.rewrite(model, which)
    models = list(same_opsets(models[0], models[1], notes))
    whole = Whole(models[0], models[1], connection.pairs, kept, notes)
    run = reference(Source(whole.model, None, "", faithful=False), (), by_name(sample, whole.model), shapes)
    expected = _in_turn(whole, sources, connection.pairs, run)
    return write(whole.model, Path(path), sources, expected, notes)


class Whole:
    """The first model, into which the second is put, in place.

    model: both. inputs, outputs: names of its ports → (0 or 1, their name in the first or second model).
    """

    def __init__(self, first: ir.Model, second: ir.Model, pairs: Pairs, keep: Sequence[str], notes: list[str]) -> None:
        outputs = {str(value.name): value for value in first.graph.outputs}
        fed = {value: outputs[pairs[str(value.name)]] for value in second.graph.inputs if value.name in pairs}
        kept = [outputs[name] for name in keep]
        rest = [value for value in second.graph.inputs if value not in fed]
        ends = dict.fromkeys(fed.get(value, value) for value in second.graph.outputs) | dict.fromkeys(kept)
        inputs = [*first.graph.inputs, *rest]
        before = {
            value: (which, str(value.name)) for which, model in enumerate((first, second)) for value in _ports(model)
        }
        rename_apart(first, second, {*inputs, *ends}, fed)
        self.notes = notes
        if renamed := merge_functions(first, second):
            notes.append(f"functions of the second model that the first has too are renamed: {', '.join(renamed)}")
        _move(first, second, fed)
        gone = keep_needed(first, inputs, list(ends))
        notes += [f"{value.name} is no longer an input: no output needs it" for value in gone]
        for value in (*first.graph.inputs, *first.graph.outputs):
            which, name = before[value]
            if value.name != name:
                notes.append(
                    f"{name} of the {PREFIXES[which].rstrip('/')} model is named {value.name}, its name being taken"
                )
        self.model = first
        self.inputs = {str(value.name): before[value] for value in first.graph.inputs}
        self.outputs = {str(value.name): before[value] for value in first.graph.outputs}


def _ports(model: ir.Model) -> list[ir.Value]:
    return [*model.graph.inputs, *model.graph.outputs]


def _move(first: ir.Model, second: ir.Model, fed: Mapping[ir.Value, ir.Value]) -> None:
    """The second model's nodes, weights, functions and metadata into the first; ports are set afterwards."""
    graph, other = first.graph, second.graph
    weights, nodes = list(other.initializers.values()), list(other)
    for ports in (graph.outputs, other.inputs, other.outputs):
        ports.clear()
    for entry, source in fed.items():
        entry.replace_all_uses_with(source)
    other.initializers.clear()
    other.remove(nodes)
    for weight in weights:
        graph.register_initializer(weight)
    graph.extend(nodes)
    first.functions.update(second.functions)
    for domain, version in second.opset_imports.items():
        graph.opset_imports[domain] = version
    first.ir_version = max(first.ir_version, second.ir_version)
    graph.name = "_".join(name for name in (graph.name, other.name) if name)
    for ours, theirs in ((first.metadata_props, second.metadata_props), (graph.metadata_props, other.metadata_props)):
        for key, text in theirs.items():
            if key == provenance.KEY or ours.setdefault(key, text) == text:
                continue
            ours[f"{PREFIXES[1]}{key}"] = text
    first.producer_name, first.producer_version = "onnxplain", __version__


def _in_turn(whole: Whole, sources: Sequence[Source], pairs: Pairs, found: Reference) -> Reference:
    """What the two files answer, one after the other, to what the whole was fed."""
    feeds: tuple[dict[str, np.ndarray], dict[str, np.ndarray]] = ({}, {})
    for name, array in found.feeds.items():
        which, own = whole.inputs[name]
        feeds[which][own] = array
    first = reference(sources[0], sample=feeds[0])
    joined = {target: {**first.feeds, **first.outputs}[source] for target, source in pairs.items()}
    second = reference(sources[1], sample={**feeds[1], **joined})
    answers = [{**answer.feeds, **answer.outputs} for answer in (first, second)]
    outputs = {name: answers[which][own] for name, (which, own) in whole.outputs.items()}
    return replace(found, outputs=outputs, tolerance=max(first.tolerance, second.tolerance))
