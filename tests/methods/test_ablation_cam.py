"""Ablation-CAM: its equation by hand, the pooled linear head, only the layers above run, scores near 0 and below."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from nets import in_batches_of, net, normal, relu_net

from onnxplain import Explainer, cut
from onnxplain.subject import Subject

X = normal(3, 2, 6, 6)
CLOSE = {"rtol": 1e-3, "atol": 1e-5}  # float32: a fall is the difference of near scores


def saved(model: onnx.ModelProto, folder) -> str:
    path = folder / "m.onnx"
    onnx.save(model, path)
    return str(path)


def by_hand(path: str, layer: str, folder, target: int, weights: str = "relative") -> np.ndarray:
    """One run of the model cut at the layer for each channel of each sample."""
    cut(path, folder / "tail.onnx", at=layer)
    front = Explainer(path, "gradient", keep=layer).explain(X, 0)
    tail = Subject.of(folder / "tail.onnx")
    maps = []
    for a in front.kept[layer].astype(np.float32):
        score = lambda a: float(tail.forward({layer: a[None]})[tail.resolved.explained[0]][0, target])  # noqa: E731
        whole, total = score(a), 0.0
        for k in range(len(a)):
            without = a.copy()
            without[k] = 0
            total = total + (whole - score(without)) / (abs(whole) if weights == "relative" else 1) * a[k]
        maps.append(np.maximum(total, 0)[None])
    return np.stack(maps)


@pytest.mark.parametrize("weights", ["relative", "fall"])
@pytest.mark.parametrize("layer", [None, "p1", "r1"])
def test_every_channel_is_weighed_by_how_far_the_score_falls_without_it(layer, weights, tmp_path):
    path = saved(relu_net(), tmp_path)
    found = Explainer(path, "ablation_cam", attribute_to=layer, weights=weights).explain(X, [0, 3])
    assert list(found.relevances) == [layer or "r2"]
    expected = np.concatenate([by_hand(path, layer or "r2", tmp_path, k, weights) for k in (0, 3)])
    np.testing.assert_allclose(found.relevance, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def pooled(bias: float = 0.0) -> onnx.ModelProto:
    return net(
        """g (float[N, 2, 6, 6] x) => (float[N, 4] y) {
            c = Conv <pads = [1, 1, 1, 1]> (x, w1) r = Relu (c) p = GlobalAveragePool (r) f = Flatten (p)
            y = Gemm <transB = 1> (f, w2, b2) }""",
        w1=normal(5, 2, 3, 3, seed=1), w2=normal(4, 5, seed=3), b2=np.full(4, bias, np.float32),
    )  # fmt: skip


def test_on_a_pooled_linear_head_a_channel_falls_by_its_weight_times_its_mean(tmp_path):
    found = Explainer(saved(pooled(), tmp_path), "ablation_cam", weights="fall").explain(X, 1)
    a = Explainer(tmp_path / "m.onnx", "gradient", keep="r").explain(X, 0).kept["r"].astype(np.float64)
    weights = normal(4, 5, seed=3)[1] * a.mean((2, 3))
    expected = np.maximum(np.einsum("nc,nchw->nhw", weights, a), 0)[:, None]
    np.testing.assert_allclose(found.relevance, expected, **CLOSE)


@pytest.mark.parametrize("rows", [1, 3])
def test_channels_are_taken_away_in_any_cut_and_company(rows, tmp_path, monkeypatch):
    explainer = Explainer(saved(relu_net(), tmp_path), "ablation_cam")
    whole = explainer.explain(X, 1).relevance
    in_batches_of(rows, monkeypatch)
    alone = np.concatenate([explainer.explain(X[n : n + 1], 1).relevance for n in range(3)])
    np.testing.assert_allclose(alone, whole, **CLOSE)


def test_a_frozen_batch_gives_the_same(tmp_path):
    free = Explainer(saved(relu_net(), tmp_path), "ablation_cam").explain(X, [0, 2]).relevance
    fixed = Explainer(saved(relu_net(batch="3"), tmp_path), "ablation_cam").explain(X, [0, 2]).relevance
    np.testing.assert_allclose(fixed, free, **CLOSE)


def test_only_the_layers_above_run_for_each_channel(tmp_path):
    explainer = Explainer(saved(relu_net(), tmp_path), "ablation_cam")
    explainer.explain(X, 1)
    (tail,) = explainer.subject.tails.values()
    assert [node.op_type for node in tail.subject.normalised.model.graph] == ["Flatten", "Gemm"]


def test_a_score_below_0_does_not_turn_the_map_round_and_one_of_0_has_no_shares(tmp_path):
    """The bias moves the score and no fall: so the maps are the same but for the scale, and it is said why."""
    maps, notes = {}, {}
    for bias in (50.0, -50.0):
        found = Explainer(saved(pooled(bias), tmp_path), "ablation_cam").explain(X[:1], 1)
        maps[bias], notes[bias] = found.relevance * abs(found.scores[0, 1]), " ".join(found.notes)
    np.testing.assert_allclose(maps[50.0], maps[-50.0], rtol=1e-2, atol=1e-3)
    assert "a score is negative" in notes[-50.0] and "a score is" not in notes[50.0]
    zero = pooled()
    for tensor in zero.graph.initializer:
        if tensor.name == "b2":  # such that the score of class 1 is 0 for this sample
            score = Explainer(saved(pooled(), tmp_path), "gradient").explain(X[:1], 1).scores[0, 1]
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(4, -score, np.float32), "b2"))
    found = Explainer(saved(zero, tmp_path), "ablation_cam").explain(X[:1], 1)
    fall = Explainer(saved(zero, tmp_path), "ablation_cam", weights="fall").explain(X[:1], 1)
    assert abs(found.scores[0, 1]) < 1e-6 and "a score is 0" in " ".join(found.notes)
    np.testing.assert_allclose(found.relevance, fall.relevance, rtol=1e-5)
