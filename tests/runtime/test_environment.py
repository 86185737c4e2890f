"""Laws of what sessions of a server process share; each in a process of its own: it is begun once and for good."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from nets import net
from running import MODELS
from service.nets import large

from onnxplain import Explainer, environment
from onnxplain.runtime.session import Session

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
MIB = 2**20
TESTS = Path(__file__).parents[1]
BEGIN = """
import hashlib, json, os, sys
import numpy as np
from onnxplain import Explainer, environment
from onnxplain.errors import OutOfMemory
from onnxplain.runtime.session import Session
from pathlib import Path
MIB = 2**20
def resident(): return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
def threads(): return len(os.listdir("/proc/self/task"))
"""


def process(code: str, *arguments: str) -> dict:
    """What a process printed at its end, as JSON."""
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + code, *arguments], capture_output=True, text=True, env=environ, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def sized() -> bytes:
    """x (1), n () -> y (1): the sum of n copies of x, which are made."""
    model = net(
        "g (float[1] x, int64[1] n) => (float y) { e = Expand (x, n) f = Relu (e) y = ReduceSum <keepdims = 0> (f) }"
    )
    return model.SerializeToString()


def answers(path: str) -> list[str]:
    """Digests of a model's own outputs and of an explanation, on some rows."""
    rng = np.random.default_rng(0)
    explainer = Explainer(path, "gradient_x_input")
    feeds = {
        spec.name: rng.standard_normal([side if isinstance(side, int) else 3 for side in spec.shape]).astype(np.float32)
        for spec in explainer.subject.inputs
    }
    plain = Session(Path(path)).run(feeds)
    found = [*plain.values(), *explainer.explain(feeds, "predicted").relevances.values()]
    return [hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest() for array in found]


def test_a_run_that_wants_more_than_the_arena_is_ended_and_the_next_one_answers(tmp_path):
    (tmp_path / "sized.onnx").write_bytes(sized())
    found = process(
        """
environment.begin(2, 512 * MIB)
session = Session(Path(sys.argv[1]).read_bytes())
one, codes = np.ones(1, np.float32), []
def copies(n):
    try:
        return float(session.run({"x": one, "n": np.array([n])})["y"])
    except OutOfMemory as error:
        return str(error) if "/onnxruntime" in str(error) else "out of memory"
sizes = [1000, 2**30, 1000, 2**26, 2**24, 2**25, 2**28, 2**25, 2**30, 3, 2**24]
print(json.dumps({"answers": [copies(n) for n in sizes], "resident": resident()}))
""",
        str(tmp_path / "sized.onnx"),
    )
    refused = "out of memory"
    expected = [1000, refused, 1000, 2**26, 2**24, 2**25, refused, 2**25, refused, 3, 2**24]
    # two copies of 2**26 numbers are all there is, and then some: that one may go either way
    assert [a for n, a in enumerate(found["answers"]) if n != 3] == [a for n, a in enumerate(expected) if n != 3]
    assert found["resident"] < (512 + 400) * MIB


def test_memory_of_a_large_run_goes_back(tmp_path):
    (tmp_path / "sized.onnx").write_bytes(sized())
    found = process(
        """
environment.begin(2, 512 * MIB)
session = Session(Path(sys.argv[1]).read_bytes())
before = resident()
session.run({"x": np.ones(1, np.float32), "n": np.array([2**25])})
during = resident()
environment.give_back()
print(json.dumps({"grown": during - before, "left": resident() - before}))
""",
        str(tmp_path / "sized.onnx"),
    )
    assert found["grown"] > 100 * MIB and found["left"] < 30 * MIB


def test_however_many_sessions_are_made_runs_keep_their_bound(tmp_path):
    """Packed weights are never refused by onnxruntime: with enough of them it would see no limit any more."""
    (tmp_path / "sized.onnx").write_bytes(sized())
    (tmp_path / "large.onnx").write_bytes(large(60).SerializeToString())
    found = process(
        """
environment.begin(2, 256 * MIB)
small, content = Session(Path(sys.argv[1]).read_bytes()), Path(sys.argv[2]).read_bytes()
def asked():
    try:
        small.run({"x": np.ones(1, np.float32), "n": np.array([2**28])})  # a gigabyte, and another
    except OutOfMemory:
        return "refused"
sessions, ends, left = [], [], []
for _ in range(8):
    try:
        sessions.append(Session(content))
    except OutOfMemory as error:
        ends.append(str(error))
    left.append(environment.available())
    ends.append(asked())
made = len(sessions)
sessions.pop()
sessions.append(Session(content))
print(json.dumps({"made": made, "ends": ends, "left": left, "begun": 256 * MIB}))
""",
        str(tmp_path / "sized.onnx"),
        str(tmp_path / "large.onnx"),
    )
    assert found["made"] == 4
    assert [end for end in found["ends"] if end != "refused"] == [found["ends"][-2]] * 4
    assert "needs more memory to be loaded than there is" in found["ends"][-2]
    assert all(0 <= left < found["begun"] for left in found["left"])


def test_threads_stay_the_same_however_many_sessions_there_are(tmp_path):
    (tmp_path / "sized.onnx").write_bytes(sized())
    found = process(
        """
environment.begin(4, 512 * MIB)
content = Path(sys.argv[1]).read_bytes()
first, counts = [Session(content)], []
counts.append(threads())
more = [Session(content) for _ in range(20)]
for session in more:
    session.run({"x": np.ones(1, np.float32), "n": np.array([100_000])})
counts.append(threads())
print(json.dumps(counts))
""",
        str(tmp_path / "sized.onnx"),
    )
    assert found[0] == found[1]


@pytest.mark.parametrize("name", ["digits_cnn", "iris_mlp", "digits_gru", "digits_vit"])
def test_answers_are_the_same_to_the_last_bit(name):
    path = str(MODELS / name / "1" / "model.onnx")
    code = """
from runtime.test_environment import answers
environment.begin(0, 512 * MIB)
print(json.dumps(answers(sys.argv[1])))
"""
    assert process(code, path) == answers(path)


def test_sessions_that_were_there_before_go_on(tmp_path):
    (tmp_path / "sized.onnx").write_bytes(sized())
    found = process(
        """
content, feeds = Path(sys.argv[1]).read_bytes(), {"x": np.ones(1, np.float32), "n": np.array([100])}
old = Session(content)
environment.begin(2, 512 * MIB)
environment.begin(2, 512 * MIB)
new = Session(content)
try:
    environment.begin(3, 512 * MIB)
except RuntimeError as error:
    refused = str(error)
print(json.dumps([float(session.run(feeds)["y"]) for session in (old, new)] + [refused]))
""",
        str(tmp_path / "sized.onnx"),
    )
    assert found[:2] == [100, 100] and "begun" in found[2]


def test_nothing_is_shared_where_nothing_was_begun():
    assert environment.begun() is None
    environment.give_back()
