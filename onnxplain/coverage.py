"""What each node of a model would get, and what blocks: asked before anything runs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from onnxplain.compile import Compiled, Request, Resolved, compile_graph, require_reached
from onnxplain.compile.assemble import survey
from onnxplain.compile.layer_choice import map_layers
from onnxplain.errors import OnnxplainError
from onnxplain.frontend.normalise import Normalised
from onnxplain.frontend.tree_path import find_trees
from onnxplain.graph.node import is_float
from onnxplain.methods import METHODS, Looped
from onnxplain.methods.moved import moved
from onnxplain.recipes import Recipe


@dataclass
class Coverage:
    """Per method: the rule of every node on the path, or why there is none (the first reason, and all by node).

    without_graph: of the methods that go over no path, what they do.
    """

    explained: tuple[str, ...]
    attributed: tuple[str, ...]
    blocked: dict[str, str] = field(default_factory=dict)
    nodes: dict[str, dict[str, str]] = field(default_factory=dict)
    rules: dict[str, dict[str, str]] = field(default_factory=dict)
    without_graph: dict[str, str] = field(default_factory=dict)
    streams: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def without_derivative(self) -> str:
        """The method to take where no other one can: one that reads trees before one that runs the model; or ""."""
        ready = [METHODS[name] for name in self.without_graph]
        ready.sort(key=lambda entry: not (isinstance(entry, Looped) and entry.of_trees))
        return ready[0].name if ready else ""

    def text(self) -> str:
        """For people: one line a method, and each reason once."""
        lines, said = [], dict[str, str]()
        width = max(map(len, METHODS))
        for method in METHODS:
            if method in self.blocked:
                first = said.setdefault(self.blocked[method], method)
                reason = self.blocked[method] if first == method else f"as {first}"
                lines.append(f"  {method:<{width}} blocked: {reason}")
            elif method in self.without_graph:
                lines.append(f"  {method:<{width}} ok: {self.without_graph[method]}")
            elif method in self.rules:
                counts = Counter(rule.split("(")[0] for rule in self.rules[method].values())
                lines.append(
                    f"  {method:<{width}} ok: " + ", ".join(f"{name} ×{n}" for name, n in counts.most_common())
                )
        return "coverage:\n" + "\n".join(lines)

    def summary(self) -> dict[str, Any]:
        """For machines."""
        names = ("explained", "attributed", "blocked", "rules", "without_graph", "streams")
        return {name: getattr(self, name) for name in names}


def coverage(normalised: Normalised, resolved: Resolved, request: Request, chosen: Recipe | None = None) -> Coverage:
    """Try every method (or one recipe) on a model without running it."""
    found = Coverage(resolved.explained, ())
    tried: dict[Recipe, Compiled] = {}
    for recipe in [chosen] if chosen is not None else [Recipe(name) for name in METHODS]:
        names = [str(v.name) for v in normalised.model.graph.inputs]
        floats = [str(v.name) for v in normalised.model.graph.inputs if is_float(v)]
        by_user = bool(request.attribute_to)
        try:
            entry = METHODS[recipe.method]
            if isinstance(entry, Looped) and entry.maps:
                moved(names, names, floats, False, recipe.method)
            if isinstance(entry, Looped) and not entry.base:
                if entry.maps:
                    map_layers(normalised, resolved, request)
                else:
                    moved(list(request.attribute_to) or names, names, floats, by_user, recipe.method)
                found.without_graph[recipe.method] = _without_graph(normalised, resolved, entry)
                continue
            base = recipe.one_pass  # looped methods share it
            found.rules[recipe.method], blocking = survey(normalised, resolved, base.propagation(), request)
            if blocking:
                found.nodes[recipe.method] = blocking
                more = f" ({len(blocking) - 1} more nodes block)" if len(blocking) > 1 else ""
                found.blocked[recipe.method] = next(iter(blocking.values())) + more
                continue
            if base not in tried:
                tried[base] = compile_graph(normalised, resolved, base.propagation(), request)
            compiled = tried[base]
            attributed, notes = list(compiled.relevances.values()), list(compiled.notes)
            if isinstance(entry, Looped) and not entry.maps:
                _, more_notes = moved(attributed, names, floats, by_user, recipe.method)
                notes += more_notes
        except OnnxplainError as error:
            found.blocked[recipe.method] = str(error)
            continue
        found.attributed = found.attributed or tuple(attributed)
        found.streams = compiled.provenance["streams"]
        found.notes += [note for note in notes if note not in found.notes]
    return found


def _without_graph(normalised: Normalised, resolved: Resolved, method: Looped) -> str:
    """What a forward-only method does. Raises UnsupportedModel where nothing is explained, or there are no trees."""
    resolved.require_explained()
    require_reached(normalised.model.graph, resolved.explained)
    if not method.of_trees:
        return "runs the model"
    found = [find_trees(normalised.model, name).trees for name in resolved.explained]
    return f"reads {sum(len(trees.roots) for trees in found)} trees"
