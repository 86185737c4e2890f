"""What is known of an op is in its registration: no condition elsewhere goes by the name of one."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest

import onnxplain

ROOT = Path(onnxplain.__file__).parent
NAMES = {schema.name for schema in onnx.defs.get_all_schemas_with_history()}
HOMES = ("vjp/", "frontend/", "graph/patterns")  # registrations, the ONNX that comes in, shapes that are recognised
REASONED = {
    "graph/builder.py": "Pad: the form of what is emitted, not what a model's op means",
    "graph/backward_builder.py": "Transpose: a crash of onnxruntime beside Casts",
    "graph/node.py": "Constant: a tensor that ONNX writes as a node",
    "graph/shape_rules.py": "type and shape of what onnx does not infer",
    "graph/polynomial.py": "arithmetic on lengths and formulas, below the registry",
    "graph/streams.py": "defaults of the attributes that an axis rule reads",
    "exports/batching.py": "arithmetic on lengths, in models that no derivative is asked of",
    "compile/cuda.py": "the kernels of onnxruntime's CUDA provider",
    "compile/contract.py": "ZipMap makes no tensor; the source model has it and no graph of ours",
    "compile/save.py": "ZipMap makes no tensor",
    "methods/detections.py": "the head that was cut",
    "methods/prediction_difference.py": "the head that was cut",
    "fit/cam_head.py": "the head that was cut",
    "explainer.py": "the head that was cut, by the name that the provenance has",
    "explanation.py": "the head that was cut",
    "client/responses.py": "the head that was cut",
}


def label(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def conditions(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, op name) of every op name that is compared with, or lies in a collection that can be asked."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Compare, ast.Tuple, ast.List, ast.Set)):
            words = [node.left, *node.comparators] if isinstance(node, ast.Compare) else node.elts
        elif isinstance(node, ast.Dict):
            words = [key for key in node.keys if key is not None]
        elif isinstance(node, ast.match_case):
            words = [part for part in ast.walk(node.pattern) if isinstance(part, ast.Constant)]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "startswith":
            words = node.args
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "split":
            text = node.func.value
            found = text.value.split() if isinstance(text, ast.Constant) and isinstance(text.value, str) else []
            yield from ((node.lineno, word) for word in found if word in NAMES)
            continue
        else:
            continue
        for word in words:
            if isinstance(word, ast.Constant) and word.value in NAMES:
                yield word.lineno, word.value


FILES = [path for path in sorted(ROOT.rglob("*.py")) if not label(path).startswith(HOMES)]


@pytest.mark.parametrize("path", FILES, ids=label)
def test_no_condition_goes_by_the_name_of_an_op(path):
    found = list(conditions(ast.parse(path.read_text())))
    if label(path) not in REASONED:
        assert not found, "say it in the op's registration (@vjp), and ask for it here"


@pytest.mark.parametrize("name", REASONED)
def test_every_reason_for_an_op_name_is_still_needed(name):
    assert list(conditions(ast.parse((ROOT / name).read_text()))), f"{name} may leave the list"


@pytest.mark.parametrize(
    "source", ['x.op_type == "Conv"', 'x in {"Conv", "Gemm"}', 'A = ("Relu",)', 'A = {"Add": 1}', '"Add Mul".split()']
)
def test_a_list_or_comparison_of_op_names_would_be_found(source):
    assert list(conditions(ast.parse(source)))
