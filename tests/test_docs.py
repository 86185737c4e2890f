"""What the documents say, held against the code: names, options, paths, tables, commands, examples."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from pathlib import Path

import pytest
from running import running_server

from onnxplain.cli import COMMANDS, cli, main
from onnxplain.cli.run import run
from onnxplain.composites import COMPOSITES
from onnxplain.methods import METHODS
from onnxplain.rules import RULES
from onnxplain.vjp import OPS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
DOCS = [
    ROOT / "docs" / name
    for name in ("architecture.md", "operations.md", "scaling.md", "ops.md", "gallery.md", "clients/README.md")
]
PAGES = [ROOT / "README.md", *DOCS, ROOT / "models" / "README.md"]
RENEW = "out of date: run `python docs/make_tables.py`"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)


def commands() -> list[list[str]]:
    """Every `onnxplain …` of the README's shell blocks, as arguments."""
    lines = [line for block in blocks("sh") for line in block.splitlines() if "docker" not in line]
    parts = [shlex.split(part) for line in lines for part in line.split("&&")]
    return [words[1:] for words in parts if words[0] == "onnxplain"]


@pytest.fixture
def make_tables():
    return maker("make_tables")


def maker(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def beside_the_models(tmp_path, monkeypatch):
    """A folder in which the README's relative paths hold and what is written does no harm."""
    (tmp_path / "models").symlink_to(ROOT / "models", target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ONNXPLAIN_MODELS", raising=False)
    return tmp_path


def test_the_table_of_ops_is_up_to_date(make_tables):
    assert (ROOT / "docs" / "ops.md").read_text() == make_tables.ops_page(), RENEW


def test_the_tables_of_the_readme_are_up_to_date(make_tables):
    assert make_tables.with_tables(README) == README, RENEW


@pytest.mark.parametrize("title, registry", [("Method", METHODS), ("Composite", COMPOSITES), ("Rule", RULES)])
def test_the_readme_names_all_there_is_and_nothing_else(title, registry):
    table = re.search(rf"^\| {title} \|.*?^(\n|<!--)", README, re.M | re.S)[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.M) == list(registry)


def test_what_the_readme_calls_unsupported_is():
    (line,) = [line for line in README.splitlines() if line.startswith("* No derivative yet:")]
    named = re.findall(r"`(\w+)`", line)
    assert named and not set(named) & set(OPS)


def test_every_option_named_in_the_readme_exists():
    commands = [cli.get_command(None, name) for name in COMMANDS]
    known = {option for command in commands for parameter in command.params for option in parameter.opts}
    prose = re.sub(r"^```.*?^```", "", README, flags=re.M | re.S)
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]*", prose)) <= known


def test_the_gallery_shows_every_method_with_a_command_that_can_be_given(monkeypatch):
    gallery = maker("make_gallery")
    assert gallery.PAGE.read_text() == gallery.page(), "out of date: run `python docs/make_gallery.py`"
    shown = {name.partition("-")[0] for section in gallery.SECTIONS for name in section.methods}
    assert shown == {*METHODS} - {"d_rise"}  # which needs a detector, and no model here is one
    given = []
    monkeypatch.setattr(run, "callback", lambda **values: given.append(values))
    for section in gallery.SECTIONS:
        command, *words = section.words
        assert command == "run" and run.main(words, standalone_mode=False) is None
        assert (gallery.PICTURES / f"{section.name}.jpg").stat().st_size < 500_000
    assert len(given) == len(gallery.SECTIONS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)#:]+)\)", prose):
        assert (page.parent / target).exists(), target


def test_files_named_in_the_architecture_exist():
    text = (ROOT / "docs" / "architecture.md").read_text()
    for name in re.findall(r"`((?:\w+/)*\w+\.py)(?:: \w+)?`", text):
        places = [ROOT / name, ROOT / "onnxplain" / name, ROOT / "onnxplain" / "graph" / name]
        assert any(place.exists() for place in places), name


def test_examples_of_additions_are_the_code_itself():
    code = "\n".join(path.read_text() for path in sorted((ROOT / "onnxplain").rglob("*.py")))
    for example in blocks("text"):
        assert example in code, example


def test_the_readmes_commands_and_python_examples_run(beside_the_models, capsys):
    with running_server() as server:  # `onnxplain serve` without an argument, in a folder with ./models
        for arguments in commands():
            if arguments != ["serve"]:
                main([word.replace("localhost:8001", server.address) for word in arguments])  # SystemExit where wrong
        for example in blocks("python"):
            exec(compile(example.replace("localhost:8001", server.address), "README.md", "exec"), {})
    assert "3 (2, 1, 28, 28)" in capsys.readouterr().out
    written = {path.name for path in Path("explanations/mobilenet_v2").iterdir()}
    assert {"grid.png", "report.html", "manifest.json", "lrp.npz"} <= written
