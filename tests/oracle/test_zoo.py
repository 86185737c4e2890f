"""Real architectures: the gradient is torch's or refused, relevance is finite, a stock session runs what is written.

The default oracle run takes a few; `pytest -m zoo tests/oracle` all of them. `python -m tests.oracle.zoo` prints the
table. ONNXPLAIN_ZOO_CACHE names a folder that keeps the exports.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from .specimens import CACHE
from .zoo import CACHED, subjects, surprise, verdict

SOME = {
    "timm": ["resnet10t", "mobilenetv3_small_050", "test_convnext", "vit_tiny_patch16_224", "swinv2_cr_tiny_224"],
    "transformers": ["bert", "deberta", "gpt2", "llama", "modernbert", "t5", "vit", "wav2vec2"],
}
INSTALLED = [kind for kind in SOME if importlib.util.find_spec(kind)]
ALL = [(kind, name, dynamo) for kind in INSTALLED for name, dynamo in subjects(kind)]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return CACHE if CACHED else tmp_path_factory.mktemp("zoo")


def check(kind: str, name: str, dynamo: bool, cache: Path) -> None:
    assert not surprise(kind, verdict(kind, name, dynamo, cache))


def law(argument: str, values: list[Any]) -> Any:
    return pytest.mark.parametrize(
        argument, values, ids=lambda value: {True: "dynamo", False: ""}.get(value, str(value))
    )


@pytest.mark.oracle
@law("kind, name", [(kind, name) for kind in INSTALLED for name in SOME[kind]])
def test_a_well_known_architecture_is_explained_as_torch_does(kind, name, cache):
    check(kind, name, False, cache)


@pytest.mark.zoo
@law("kind, name, dynamo", ALL)
def test_every_architecture_is_explained_as_torch_does_or_is_refused_as_expected(kind, name, dynamo, cache):
    check(kind, name, dynamo, cache)
