"""One name, one meaning, across the package: of classes, and of what is imported."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import onnxplain

ROOT = Path(onnxplain.__file__).parent
TREES = {
    ".".join(("onnxplain", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): ast.parse(
        path.read_text()
    )
    for path in sorted(ROOT.rglob("*.py"))
    if "v1" not in path.relative_to(ROOT).parts  # generated
}
SHARED_CLASSES: dict[str, str] = {}
SEVERAL_ALIASES: dict[str, str] = {}


def classes() -> dict[str, set[str]]:
    """Every public class at the top of a module -> the modules that define one of its name."""
    found = defaultdict(set)
    for module, tree in TREES.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].add(module)
    return found


def definition(module: str, name: str) -> str:
    """Where an imported name comes from: through packages that only hand it on to where it is made."""
    for node in TREES[module].body if module in TREES else ():
        if isinstance(node, ast.ImportFrom) and node.module not in (None, module):  # itself: one of its modules
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return definition(node.module, alias.name)
    return f"{module}.{name}"


def imports(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(what is imported, by the name of its definition; its name here)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, alias.asname or alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield from ((definition(node.module, alias.name), alias.asname or alias.name) for alias in node.names)


def test_no_two_public_classes_share_a_name():
    shared = {name: sorted(modules) for name, modules in classes().items() if len(modules) > 1}
    assert shared.keys() == SHARED_CLASSES.keys(), shared


def test_nothing_is_imported_under_two_names():
    names = defaultdict(lambda: defaultdict(list))
    for module, tree in TREES.items():
        for thing, name in imports(tree):
            names[thing][name].append(module)
    several = {thing: dict(found) for thing, found in names.items() if len(found) > 1}
    assert several.keys() == SEVERAL_ALIASES.keys(), several


def test_log_fields_are_read_by_the_access_log_and_the_trace_only():
    """What a call returns comes back by `return`: no handler, queue or service reads what another one logged."""
    for module, tree in TREES.items():
        if module not in ("onnxplain.server.call", "onnxplain.server.guard", "onnxplain.server.isolation.call_fields"):
            touched = [n.lineno for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr == "log_fields"]
            assert not touched, f"{module}:{touched[0]}: fields of the log are for the log; write by call.log_fields()"
