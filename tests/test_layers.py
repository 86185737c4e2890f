"""The layers of docs/architecture.md as laws: who may import whom, between packages and inside them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import onnxplain

ROOT = Path(onnxplain.__file__).parent
LAYERS = [
    {"errors", "interrupt", "__version__", "v1"},  # v1: generated from protos/
    {"machine", "bfloat16"},
    {"environment"},  # what all sessions of a process share
    {"registry", "options", "cpu_session", "wire", "trees", "localisation"},
    {"graph"},
    {"frontend"},
    {"vjp"},
    {"rules"},
    {"composites"},
    {"compile"},
    {"runtime"},
    {"methods", "inputs", "render"},  # arrays and names: they know no graph
    {"recipes"},  # a method by name, made into a composite, a start and a finish
    {"coverage", "drawing"},
    {"explanation"},
    {"invocation"},
    {"model_part", "inner_tensors"},
    {"subject"},
    {"explanation_graph"},  # one compiled graph
    {"prepared"},  # the same and its subject, kept for other processes
    {"loop_answers"},
    {"point_runs"},
    {"loops"},  # the same graph, many times
    {"layer_tail"},
    {"loop_plan"},
    {"explainer"},
    {"evaluate", "fit"},  # what is made of explainers
    {"sources", "client", "bulk"},
    {"mlflow"},
    {"exports"},
    {"server"},
    {"cli"},
    {"engines"},
    {"__main__"},
]
LEVEL = {unit: level for level, units in enumerate(LAYERS) for unit in units}
FILES = [path for path in sorted(ROOT.rglob("*.py")) if path != ROOT / "__init__.py"]  # which re-exports the top


def unit(path: Path) -> str:
    """The package or module directly under onnxplain that a file belongs to."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything a file imports, wherever in the file it does."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def label(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=label)
def test_imports_point_down(path):
    for line, name in imports(path):
        package, _, rest = name.partition(".")
        if package != "onnxplain":
            continue
        asked = rest.split(".")[0]
        assert asked in LEVEL, f"{label(path)}:{line}: {asked} has no layer"
        allowed = asked == unit(path) or LEVEL[asked] < LEVEL[unit(path)]
        assert allowed, f"{label(path)}:{line}: {unit(path)} imports {asked}, which lies above or beside it"


@pytest.mark.parametrize("path", FILES, ids=label)
def test_onnxruntime_is_imported_by_those_around_its_sessions_only(path):
    if unit(path) not in ("bfloat16", "environment", "cpu_session", "runtime"):
        assert not [line for line, name in imports(path) if name.split(".")[0] == "onnxruntime"]


@pytest.mark.parametrize("path", [p for p in FILES if unit(p) in ("methods", "render", "evaluate")], ids=label)
def test_methods_and_pictures_know_arrays_only(path):
    assert not [line for line, name in imports(path) if name.split(".")[0] in ("onnx", "onnx_ir", "onnxscript")]


def test_every_module_has_a_layer():
    assert {unit(path) for path in FILES} <= set(LEVEL)


def module(path: Path) -> str:
    """The dotted name of a file."""
    return ".".join(("onnxplain", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


MODULES = {module(path): path for path in FILES}


@cache
def edges() -> list[tuple[str, str]]:
    """(module, module it imports); the package itself where a name comes from its __init__."""
    found = []
    for name, path in MODULES.items():
        for _, imported in imports(path):
            below = next((m for m in (imported, imported.rpartition(".")[0]) if m in MODULES), None)
            if below is not None and below != name:
                found.append((name, below))
    return found


@pytest.mark.parametrize("package", sorted({m for m, path in MODULES.items() if path.name == "__init__.py"}))
def test_no_circle_inside_a_package(package):
    """Its modules and folders can be put in an order in which every import points down."""
    below: dict[str, set[str]] = {}
    for importer, imported in edges():
        inside = [
            m.removeprefix(f"{package}.").split(".")[0] for m in (importer, imported) if m.startswith(f"{package}.")
        ]
        if len(inside) == 2 and inside[0] != inside[1]:
            below.setdefault(inside[0], set()).add(inside[1])
        elif importer.startswith(f"{package}.") and imported == package:
            below.setdefault(inside[0], set()).add("__init__")
        elif importer == package and imported.startswith(f"{package}."):
            below.setdefault("__init__", set()).add(inside[0])
    try:
        list(TopologicalSorter(below).static_order())
    except CycleError as circle:
        pytest.fail(f"{package}: {' -> '.join(circle.args[1])}")


LONGEST = 300  # lines


@pytest.mark.parametrize("path", [path for path in FILES if unit(path) != "v1"], ids=label)
def test_a_long_module_says_why(path):
    """In a sentence of its docstring that begins with "Long because"."""
    text = path.read_text()
    if text.count("\n") <= LONGEST:
        return
    assert "Long because " in (ast.get_docstring(ast.parse(text)) or ""), f"{label(path)}: {text.count(chr(10))} lines"


def test_one_function_infers_the_outputs_of_a_node():
    asking = [label(path) for path in FILES if "infer_node_outputs" in path.read_text()]
    assert asking == ["graph/inference.py"]
