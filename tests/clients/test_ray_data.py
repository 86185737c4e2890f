"""`onnxplain run --engine ray` from outside: 2 000 pictures; its process killed, an actor killed: no row lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from nets import MODELS
from PIL import Image

from onnxplain.bulk import Dataset

from .conftest import ROOT, environment
from .processes import below, gone

pytestmark = [pytest.mark.clients, pytest.mark.timeout(600)]
ROWS, PER_PARTITION = 2000, 40
OPTIONS = ["--method", "integrated_gradients", "--option", "steps=8", "--partition-rows", str(PER_PARTITION)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures of digits, no two alike."""
    root = tmp_path_factory.mktemp("pictures")
    digits = np.load(MODELS / "digits_cnn" / "samples" / "ten_digits.npz")["input"]
    rng = np.random.default_rng(0)
    for n in range(ROWS):
        noisy = np.clip(255 * digits[n % 10, 0] + rng.normal(0, 10, (28, 28)), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(root / f"{n:04}.png")
    return root


def started(folder: Path, out: Path, engine: str, *options: str) -> subprocess.Popen[str]:
    python = sys.executable if engine == "local" else environment("ray") / "bin" / "python"
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [python, "-m", "onnxplain", "run", MODELS / "digits_cnn", folder, "--engine", engine, "--out", out]
    return subprocess.Popen(
        [*map(str, command), *OPTIONS, *options], env={**env, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def finished(running: subprocess.Popen[str]) -> str:
    said, _ = running.communicate(timeout=400)
    assert running.returncode == 0, said
    return said


def entries(out: Path) -> set[str]:
    return {path.name for path in out.glob("part-*.json")}


def wait_for(out: Path, count: int, running: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 120
    while len(entries(out)) < count:
        assert running.poll() is None and time.monotonic() < until, running.stdout and running.stdout.read()
        time.sleep(0.02)


def actors(running: subprocess.Popen[str]) -> list[int]:
    return [pid for pid, command in below(running.pid).items() if "MapWorker" in command]


def test_2000_pictures_over_ray_killed_and_resumed_equal_one_process(folder, tmp_path):
    environment("ray")
    whole, out = tmp_path / "whole", tmp_path / "ray"
    finished(started(folder, whole, "local"))

    first = started(folder, out, "ray", "--workers", "2")
    wait_for(out, 5, first)
    family = {pid: line for pid, line in below(first.pid).items() if "Agent" not in line}  # Ray's agents take a minute
    first.send_signal(signal.SIGKILL)
    first.wait()
    made = entries(out)
    assert 5 <= len(made) < ROWS // PER_PARTITION
    until = time.monotonic() + 30
    while not all(map(gone, family)) and time.monotonic() < until:
        time.sleep(0.1)
    assert all(map(gone, family)), [family[pid] for pid in family if not gone(pid)]  # the cluster dies with its owner

    second = started(folder, out, "ray", "--resume", "--workers", "2")
    wait_for(out, len(made) + 5, second)
    victims = actors(second)
    assert victims
    os.kill(victims[0], signal.SIGKILL)
    said = finished(second)
    assert f"{ROWS} of {ROWS} rows explained, in {ROWS // PER_PARTITION} partitions, {len(made)} from before" in said

    assert [row.row for row in Dataset(out).rows()] == list(range(ROWS))
    for path in sorted(whole.iterdir()):
        assert (out / path.name).read_bytes() == path.read_bytes(), path.name
