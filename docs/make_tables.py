"""Write the tables of README.md and docs/ops.md from the registries: `python docs/make_tables.py`.

`tests/test_docs.py` fails when they are out of date.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import onnx

from onnxplain.cli.methods import catalogue
from onnxplain.composites.composite import base_rule
from onnxplain.graph.node import Node
from onnxplain.vjp import OPS
from onnxplain.vjp.registry import Op

HERE = Path(__file__).resolve().parent
README, OPS_PAGE = HERE.parent / "README.md", HERE / "ops.md"
MARKS = "<!-- {} of the tables: python docs/make_tables.py -->"
TITLES = {"methods": "Method", "composites": "Composite", "rules": "Rule"}

INTRODUCTION = """# Operators

Written by `python docs/make_tables.py` from the registry of derivatives (`onnxplain/vjp/`); do not edit.

* **kind**: what the op is to relevance. A sum or product of which one operand only can receive relevance counts as a
  shift or scaling (rule `pass`), a MatMul, Gemm or Conv without constant weights as a product (`uniform`).
* **LRP rule**: the rule where no entry of the composite matches. *derivative*: relevance follows the value, as the
  derivative does. *none*: gradient methods only; LRP through the op is an error that names the node.
* **batch axis**: the rule by which the batch axis is followed through the op, so that many seeds can share one forward
  pass. A rule may still answer "not proven" for some attributes; seeds then have exactly the explained tensor's shape.
* **attributes**: those that the op's own test cases set. Every case is compared with central differences.
"""


def names(op: Op, op_type: str) -> str:
    """The op as ONNX writes it, its domain in front where it is not ai.onnx."""
    return f"`{op.domain}.{op_type}`" if op.domain else f"`{op_type}`"


def rule_without_assignment(op: Op, op_type: str) -> str:
    """What an LRP composite does at an op that none of its entries matches."""
    rule = base_rule(Node(op_type, (), (), domain=op.domain), op.kind)
    if rule is None:
        return "none"
    return "derivative" if rule == op.rule else f"`{getattr(rule, 'name', rule)}`"


def followed(op: Op) -> str:
    """Name of the rule for the batch axis."""
    return "not proven" if op.streams is None else op.streams.__qualname__.split(".")[0].strip("_").replace("_", " ")


def attributes(op: Op, op_type: str) -> str:
    """Attributes of the op's test cases that its schema knows."""
    versions = [s for s in onnx.defs.get_all_schemas_with_history() if (s.name, s.domain) == (op_type, op.domain)]
    known = {name for schema in versions for name in schema.attributes}
    found = {name for case in op.cases for name in case.attributes}
    return ", ".join(f"`{name}`" for name in sorted(found & known))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def ops_page() -> str:
    """The whole of docs/ops.md."""
    rows = [
        (names(op, name), op.kind, rule_without_assignment(op, name), followed(op), attributes(op, name))
        for name, op in sorted(OPS.items())
    ]
    return f"{INTRODUCTION}\n{len(rows)} operators.\n\n" + table(
        ("op", "kind", "LRP rule", "batch axis", "attributes"), rows
    )


def choices() -> str:
    """The tables of methods, composites and rules."""
    found = catalogue()
    parts = []
    for group, title in TITLES.items():
        rows = []
        for name, entry in found[group].items():
            options = ", ".join(f"`{key}={value}`" if value else f"`{key}`" for key, value in entry["options"].items())
            rows.append((f"`{name}`", entry["doc"], options, entry["cite"]))
        parts.append(table((title, "what it does", "options", "source"), rows))
    return "\n".join(parts)


def with_tables(text: str) -> str:
    """The README with its tables renewed."""
    begin, end = MARKS.format("begin"), MARKS.format("end")
    before, rest = text.split(begin)
    return f"{before}{begin}\n{choices()}{end}{rest.split(end)[1]}"


if __name__ == "__main__":
    OPS_PAGE.write_text(ops_page())
    README.write_text(with_tables(README.read_text()))
