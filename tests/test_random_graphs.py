"""Random graphs stand guard: the gradient is the slope of the untouched model, the books close, forms agree.

`pytest -m guard` judges ONNXPLAIN_GRAPHS graphs (3000) from ONNXPLAIN_FIRST (1000) on and prints what came of them.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable

import pytest
from random_graphs.draw import Drawn, gradient_graph
from random_graphs.judge import Outcome, judged, text
from random_graphs.ledgers import judged_network

GRAPHS, NETWORKS, TOGETHER = 300, 100, 10
KINKS = 0.05  # of the graphs may lie at a kink for every input tried


def failures(judge: Callable[[int], tuple[Drawn, Outcome]], seeds: Iterable[int]) -> list[str]:
    """What is wrong with the graphs of these random seeds: the seed, the fault, and the model to look at."""
    found = []
    for seed in seeds:
        drawn, outcome = judge(seed)
        nameless = outcome.word == "refused" and outcome.detail.startswith("(names no node)")
        if outcome.word in ("wrong", "crashed") or nameless:
            asked = f"explain {drawn.explain or 'default'}, attribute to {drawn.attribute or 'inputs'}"
            found.append(f"random seed {seed}: {outcome.word}: {outcome.detail}\n{asked}\n{text(drawn.model)}")
    return found


@pytest.mark.parametrize("first", range(0, GRAPHS, TOGETHER))
def test_the_gradient_of_a_random_graph_is_its_slope_or_is_refused(first):
    found = failures(judged, range(first, first + TOGETHER))
    assert not found, "\n\n".join(found)


@pytest.mark.parametrize("first", range(0, NETWORKS, TOGETHER))
def test_the_relevance_of_a_random_network_keeps_the_laws_or_is_refused(first):
    found = failures(judged_network, range(first, first + TOGETHER))
    assert not found, "\n\n".join(found)


def test_the_graphs_are_of_many_kinds():
    drawn = [gradient_graph(seed) for seed in range(60)]
    kinds = {node.op_type for one in drawn for node in one.model.graph.node}
    assert len(kinds) >= 90
    assert {one.model.opset_import[0].version for one in drawn} >= {13, 17, 18, 21}


@pytest.mark.guard
@pytest.mark.parametrize("judge, share", [(judged, 1.0), (judged_network, 1 / 3)], ids=["gradient", "relevance"])
def test_many_random_graphs(judge, share, capsys):
    first, count = int(os.environ.get("ONNXPLAIN_FIRST", 1000)), int(os.environ.get("ONNXPLAIN_GRAPHS", 3000))
    words: Counter[str] = Counter()
    reasons: dict[tuple[str, str], list[int]] = defaultdict(list)
    for seed in range(first, first + int(count * share)):
        _, outcome = judge(seed)
        words[outcome.word] += 1
        if outcome.word != "right":
            reasons[outcome.word, outcome.reason].append(seed)
    with capsys.disabled():
        print(f"\n{dict(words)}")
        for (word, reason), seeds in sorted(reasons.items(), key=lambda item: (item[0][0], -len(item[1]))):
            print(f"{word:10}{len(seeds):6}  {reason}  {seeds[:5]}")
    assert words["wrong"] == words["crashed"] == 0
    assert words["kink"] <= KINKS * sum(words.values())
