"""Two models made fit to stand in one file: one opset, one version of every domain, functions and names apart."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator

import onnx
import onnx_ir as ir

from onnxplain.compile.needed import Key, drop_uncalled
from onnxplain.errors import UnsupportedModel
from onnxplain.frontend.passes.constants import inline_functions
from onnxplain.frontend.passes.opset import OPSET, raise_opset

PREFIXES = ("first/", "second/")  # of names that both models have


def same_opsets(first: ir.Model, second: ir.Model, notes: list[str]) -> tuple[ir.Model, ir.Model]:
    """Both at the opset of the newer, 18 at least where one has to be raised, and the other domains at one version.

    Functions of a model that is raised are inlined. Raises UnsupportedModel for versions that mean different things.
    """
    models = [first, second]
    for model in models:
        drop_uncalled(model)
    versions = [model.opset_imports.get("") for model in models]
    known = {version for version in versions if version is not None}
    if len(known) == 2:
        target = max(*known, OPSET)
        for n, (version, word) in enumerate(zip(versions, ("first", "second"), strict=True)):
            if version == target:
                continue
            inlined = " and its functions inlined" if models[n].functions else ""
            inline_functions(models[n])
            models[n] = raise_opset(models[n], target)
            notes.append(f"the {word} model is raised from opset {version} to {target}{inlined}")
    for model in models:
        if known and "" not in model.opset_imports:
            model.opset_imports[""] = max(known)
    shared = models[0].opset_imports.keys() & models[1].opset_imports.keys()
    for domain in sorted(shared - {""}):
        a, b = (model.opset_imports[domain] for model in models)
        if a != b and (differing := _changed(models, domain, a, b)) is not None:
            raise UnsupportedModel(
                f"the first model has version {a} of the domain {domain}, the second version {b}, and {differing} is "
                f"not known to mean the same in both. Export both with the same version."
            )
        for model in models:
            model.opset_imports[domain] = max(a, b)
    return models[0], models[1]


def _changed(models: Iterable[ir.Model], domain: str, a: int, b: int) -> str | None:
    """An op of the domain that is not known to be the same in both versions, named by a node that uses it."""
    for model in models:
        for node in _nodes(model):
            if node.domain != domain or node.op_identifier() in model.functions:
                continue
            try:
                since = {onnx.defs.get_schema(node.op_type, version, domain).since_version for version in (a, b)}
            except onnx.defs.SchemaError:
                since = set()
            if len(since) != 1:
                return f"{node.name} ({node.op_type})"
    return None


def merge_functions(first: ir.Model, second: ir.Model) -> list[str]:
    """Functions of the second that are other than the first's of their name get another name; returns new names.

    Other is also what calls another one.
    """
    taken = {node.op_identifier() for node in _nodes(first)} | set(first.functions)
    other = {key for key in second.functions if key in taken and not _same(first.functions.get(key), second, key)}
    while more := {
        key
        for key, function in second.functions.items()
        if key in taken and key not in other and any(n.op_identifier() in other for n in function.all_nodes())
    }:
        other |= more
    renamed: dict[Key, str] = {}
    for key in sorted(other):
        n = 2
        while (key[0], f"{key[1]}_{n}", key[2]) in taken | set(second.functions):
            n += 1
        renamed[key] = f"{key[1]}_{n}"
    for node in _nodes(second):
        node.op_type = renamed.get(node.op_identifier(), node.op_type)
    functions = list(second.functions.items())
    second.functions.clear()
    for key, function in functions:
        function.name = renamed.get(key, function.name)
        second.functions[function.identifier()] = function
    return [f"{key[0]}.{name}" for key, name in renamed.items()]


def _same(ours: ir.Function | None, second: ir.Model, key: Key) -> bool:
    if ours is None:  # the first model's node of that name is no function
        return False
    ours_proto, theirs_proto = ir.to_proto(ours), ir.to_proto(second.functions[key])
    return bool(ours_proto.SerializeToString(deterministic=True) == theirs_proto.SerializeToString(deterministic=True))


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Every node of a model, of its bodies and functions."""
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def rename_apart(first: ir.Model, second: ir.Model, ports: Collection[ir.Value], gone: Collection[ir.Value]) -> None:
    """No name is in both models. The second's gets a prefix, unless it is a port of the whole and the first's is not.

    ports: of the whole, which keep their names if they can. gone: inputs of the second that are fed by the first.
    """
    ours, theirs = _values(first.graph), _values(second.graph)
    free = _free({*ours, *theirs})
    for name in theirs.keys() & ours.keys():
        inner = [value for value in theirs[name] if value not in gone]
        yields = 0 if any(v in ports for v in inner) and not any(v in ports for v in ours[name]) else 1
        new = free(f"{PREFIXES[yields]}{name}")
        for value in (ours[name], inner)[yields]:
            value.name = new
    nodes = [{node.name for node in graph.all_nodes() if node.name} for graph in (first.graph, second.graph)]
    free = _free(nodes[0] | nodes[1])
    new_names = {name: free(f"{PREFIXES[1]}{name}") for name in sorted(nodes[0] & nodes[1])}
    for node in second.graph.all_nodes():
        node.name = new_names.get(node.name or "", node.name)


def _values(graph: ir.Graph) -> dict[str, list[ir.Value]]:
    """Every named value of a graph and of its bodies."""
    found: dict[str, dict[ir.Value, None]] = {}
    pending = [graph]
    while pending:
        owner = pending.pop()
        values = [*owner.inputs, *owner.initializers.values()]
        for node in owner:
            values += node.outputs
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.GRAPH:
                    pending.append(attribute.as_graph())
                elif attribute.type == ir.AttributeType.GRAPHS:
                    pending.extend(attribute.as_graphs())
        for value in values:
            if value.name:
                found.setdefault(value.name, {})[value] = None
    return {name: list(values) for name, values in found.items()}


def _free(taken: set[str]) -> Callable[[str], str]:
    def free(name: str) -> str:
        n, found = 1, name
        while found in taken:
            n += 1
            found = f"{name}_{n}"
        taken.add(found)
        return found

    return free
