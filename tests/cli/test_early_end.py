"""Ctrl-C in `onnxplain run`: what estimates leaves its estimate, all else nothing; the exit code says interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from nets import MODELS
from rich.progress import Progress

from onnxplain.cli.early_end import EarlyEnd
from onnxplain.recipes import Recipe

CNN = MODELS / "digits_cnn"
DIGIT = CNN / "samples" / "digit_3.png"


def interrupted(out: Path, *words: str) -> tuple[int, str]:
    """Exit code and messages of a run that gets SIGINT once it explains."""
    command = [sys.executable, "-c", SLOW, "run", str(CNN), str(DIGIT), *words, "--out", str(out)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(MODELS.parent), os.environ.get("PYTHONPATH", "")])}
    running = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert running.stderr is not None
    said = ""
    while "LOOKING" not in said:
        said += running.stderr.readline()
    running.send_signal(signal.SIGINT)
    _, rest = running.communicate(timeout=60)
    return running.returncode, said + rest


SLOW = """
import sys
from onnxplain.cli import early_end, main
told = early_end.EarlyEnd.__call__
def said(self, done, total):
    if done < 64:
        print("LOOKING", file=sys.stderr, flush=True)
    return told(self, done, total)
early_end.EarlyEnd.__call__ = said
main(sys.argv[1:])
"""


@pytest.mark.parametrize("name, unit", [("rise", "masks"), ("smooth_grad", "samples")])
def test_an_estimate_is_kept_and_says_how_far_it_got(name, unit, tmp_path):
    code, said = interrupted(tmp_path, "--method", name, "--option", f"{unit}=1000000", "--method", "lrp")
    assert code == 130 and "Ctrl-C again ends at once" in said
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert any(f" of 1000000 {unit}" in note and "ended early" in note for note in manifest["notes"])
    with np.load(tmp_path / f"{name}.npz") as arrays:
        assert np.isfinite(arrays["input.relevance"]).all() and arrays["input.standard_error"].any()
    assert not (tmp_path / "lrp.npz").exists()


def test_what_has_no_answer_before_its_last_look_keeps_nothing_and_says_so(tmp_path):
    code, said = interrupted(tmp_path / "a", "--method", "integrated_gradients", "--option", "steps=1000000")
    assert code == 130 and "has no answer before its last look" in said and not (tmp_path / "a").exists()


def test_a_second_one_ends_at_once():
    """Of the handler itself: no clock decides."""
    with Progress(disable=True) as progress, EarlyEnd(Recipe("rise"), progress, progress.add_task("")) as end:
        assert end(5, 10) is False
        signal.raise_signal(signal.SIGINT)
        assert end.asked and end(6, 10) is True
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
