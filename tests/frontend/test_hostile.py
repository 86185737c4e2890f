"""No file, however hostile, harms whoever loads it: one line, soon, in little memory, and nothing else is opened."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hostile import CASES, Watch, good

from onnxplain.cpu_session import CpuSession
from onnxplain.errors import Expired, UnsupportedModel
from onnxplain.frontend.limits import check_sizes

PROCESSES = 4  # each loads a quarter of the corpus; a crash names the file
SECONDS = 5.0  # until a file is refused
MEMORY = 1 << 30  # bytes more than before
RUN = 60.0  # seconds of one run without a loop, as the service has it
WORST = 1000  # characters of the one line, the folder's own path included

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="measures with /proc and inotify")


def records(root: Path, names: list[str]) -> list[dict]:
    command = [sys.executable, str(Path(__file__).parents[1] / "hostile.py"), str(root), str(RUN), *names]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    died = f"died at {names[len(found)]}" if len(found) < len(names) else "died after the last"
    assert done.returncode == 0, f"{died} ({done.returncode}): {done.stderr[-2000:]}"
    return found


@pytest.mark.parametrize("part", range(PROCESSES))
def test_every_hostile_file_is_refused_with_one_line_soon_and_in_little_memory(tmp_path, part):
    names = list(CASES)[part::PROCESSES]
    root = tmp_path / "repository"
    root.mkdir()
    wrong = {}
    for record in records(root, names):
        says, text = CASES[record["name"]].says, record["text"]
        loaded = not record["kind"]
        laws = {
            "refused on purpose": record["refused"] or (loaded and not says),
            "says why": says in text,
            "one line": "\n" not in text and record["length"] <= WORST and (loaded or text.isprintable()),
            "soon": record["seconds"] < SECONDS,
            "little memory": record["bytes"] < MEMORY,
            "opens nothing else": not record["elsewhere"],
        }
        if broken := [law for law, holds in laws.items() if not holds]:
            wrong[record["name"]] = (broken, record)
    assert not wrong


def test_the_watch_sees_whoever_opens_a_file(tmp_path):
    (tmp_path / "secret").touch()
    watch = Watch(tmp_path / "secret")
    assert watch.opened() == 0
    subprocess.run(["cat", str(tmp_path / "secret")], check=True)
    assert watch.opened() == 1


def test_the_corpus_is_large():
    assert sum(bool(case.says) for case in CASES.values()) >= 40


def test_a_run_that_takes_too_long_is_stopped():
    endless = CASES["loop_for_ever"].make(Path())
    with pytest.raises(Expired, match=r"longer than 0\.2 s"):
        CpuSession(endless.SerializeToString()).run({"x": [[1.0, 2, 3], [4, 5, 6]]}, seconds=0.2)


@pytest.mark.parametrize("name", ["bomb_computed", "bomb_in_a_branch", "bomb_in_a_function", "loop_that_collects"])
def test_a_bomb_is_known_before_it_is_run(name):
    with pytest.raises(UnsupportedModel, match="elements"):
        check_sizes(CASES[name].make(Path()), "m")
    check_sizes(good(), "m")
