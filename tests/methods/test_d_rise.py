"""D-RISE on detectors with closed forms: fixed boxes with linear scores, a box that follows the picture."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from nets import net, normal
from test_perturbation import saved

from onnxplain import Explainer
from onnxplain.errors import UnknownName, UsageError
from onnxplain.methods.detections import DetectionReader, Detections, reader_of

FEW = {"masks": 60, "cells": 4, "random_seed": 2}
BOXES = np.array([[0, 0, 4, 4], [4, 4, 8, 8], [0, 4, 4, 8]], np.float32)
X = np.abs(normal(1, 1, 8, 8, seed=3))


def fixed(classes: int = 1, centres: bool = False) -> onnx.ModelProto:
    """Three boxes that stay, each with scores linear in the picture, none negative; (N, 3, 4) and (N, 3, classes)."""
    boxes = np.concatenate([(BOXES[:, :2] + BOXES[:, 2:]) / 2, BOXES[:, 2:] - BOXES[:, :2]], 1) if centres else BOXES
    text = f"""g (float[N, 1, 8, 8] x) => (float[N, 3, 4] where, float[N, 3, {classes}] scores) {{
        f = Flatten (x) s = MatMul (f, w) scores = Reshape (s, form)
        z = ReduceSum <keepdims = 1> (f, axis) n = Mul (z, zero) n3 = Unsqueeze (n, last) where = Add (n3, boxes)
    }}"""
    return net(
        text, w=weights(classes), form=np.array([-1, 3, classes]), axis=np.array([1]), zero=np.float32(0).reshape(()),
        last=np.array([2]), boxes=boxes[None],
    )  # fmt: skip


def weights(classes: int) -> np.ndarray:
    return np.abs(normal(64, 3 * classes, seed=classes)) / 64


def rise_of(weight: np.ndarray, tmp_path, **options) -> np.ndarray:
    """RISE of a linear score by itself, with the same masks."""
    text = "g (float[N, 1, 8, 8] x) => (float[N, 1] y) { f = Flatten (x) y = MatMul (f, w) }"
    (tmp_path / "alone").mkdir(exist_ok=True)
    path = saved(net(text, w=weight.reshape(64, 1).astype(np.float32)), tmp_path / "alone")
    return Explainer(path, "rise", **FEW, **options).explain(X, 0).relevance


@pytest.mark.parametrize("offset", ["mean", "none"])
@pytest.mark.parametrize("number", [0, 2])
def test_of_fixed_boxes_and_one_class_it_is_rise_of_the_score_of_the_detection(number, offset, tmp_path):
    path, options = saved(fixed(), tmp_path), {**FEW, "offset": offset, "explain": "scores"}
    found = Explainer(path, "d_rise", **options).explain(X, f"{number},0").relevance
    np.testing.assert_allclose(found, rise_of(weights(1)[:, number], tmp_path, offset=offset), rtol=1e-4, atol=1e-6)
    centred = Explainer(saved(fixed(centres=True), tmp_path), "d_rise", box="centre", **options).explain(
        X, f"{number},0"
    )
    np.testing.assert_allclose(centred.relevance, found, rtol=1e-4, atol=1e-6)


def test_without_a_target_it_is_the_detection_of_the_highest_score(tmp_path):
    explainer = Explainer(saved(fixed(2), tmp_path), "d_rise", explain="scores", **FEW)
    scores = (X.reshape(1, -1) @ weights(2)).reshape(3, 2)
    best = int(scores.max(1).argmax())
    other = Explainer(saved(fixed(2), tmp_path), "d_rise", explain="scores", **FEW)
    predicted, named = (
        explainer.explain(X).relevance,
        other.explain(X, f"{best},{int(scores[best].argmax())}").relevance,
    )
    assert np.corrcoef(predicted.ravel(), named.ravel())[0, 1] > 0.9  # all its classes, or the one


def one_output(layout: str) -> onnx.ModelProto:
    """Centre, size and two scores of six boxes, said in one output."""
    w, boxes = np.abs(normal(64, 12, seed=7)) / 64, np.array([[2, 2, 4, 4], [6, 6, 4, 4]] * 3, np.float32)
    boxes += np.arange(6, dtype=np.float32)[:, None] * np.array([0, 0, 0.5, 0.5], np.float32)
    middle = ", one" if layout == "rows_with_objectness" else ""
    turn = "all = Transpose <perm = [0, 2, 1]> (t)" if layout == "columns" else "all = Identity (t)"
    shape = "6, 7" if middle else "6, 6"
    text = f"""g (float[N, 1, 8, 8] x) => (float[N, {shape}] all) {{
        f = Flatten (x) s = MatMul (f, w) scores = Reshape (s, form)
        z = ReduceSum <keepdims = 1> (f, axis) n = Mul (z, zero) n3 = Unsqueeze (n, last) b = Add (n3, boxes)
        one = Add (n3, ones) t = Concat <axis = 2> (b{middle}, scores) {turn}
    }}"""
    return net(
        text, w=w, form=np.array([-1, 6, 2]), axis=np.array([1]), zero=np.float32(0).reshape(()), last=np.array([2]),
        boxes=boxes[None], ones=np.ones((1, 6, 1), np.float32),
    )  # fmt: skip


def test_however_one_output_says_detections_they_are_the_same(tmp_path):
    found = {}
    for layout, place in (("rows", "1,4"), ("columns", "4,1"), ("rows_with_objectness", "1,5")):
        objectness = "auto" if layout == "rows_with_objectness" else "none"  # it says one everywhere
        explainer = Explainer(
            saved(one_output(layout), tmp_path), "d_rise", layout=layout, objectness=objectness, **FEW
        )
        found[layout] = explainer.explain(X, place).relevance
    assert found["rows"].any()
    for other in ("columns", "rows_with_objectness"):
        np.testing.assert_allclose(found[other], found["rows"], rtol=1e-4, atol=1e-6)


def test_a_box_that_follows_a_spot_depends_on_the_spot(tmp_path):
    """The box is as wide as the brightness of the spot: where that is covered, nothing overlaps."""
    text = """g (float[N, 1, 8, 8] x) => (float[N, 1, 4] boxes, float[N, 1, 1] scores) {
        f = Flatten (x) size = MatMul (f, spot) boxes = Unsqueeze (size, one)
        z = ReduceSum <keepdims = 1> (f, one) n = Mul (z, zero) o = Add (n, unit) scores = Unsqueeze (o, one)
    }"""
    spot = np.zeros((64, 4), np.float32)
    spot[9, 2:] = 1
    graph = net(text, spot=spot, one=np.array([1]), zero=np.float32(0).reshape(()), unit=np.float32(1).reshape(()))
    x = np.ones((1, 1, 8, 8), np.float32)
    found = Explainer(saved(graph, tmp_path), "d_rise", explain="scores", masks=400, cells=8).explain(x, "0,0")
    assert np.abs(found.relevance).argmax() == 9 and found.relevance[0, 0, 1, 1] > 0.1
    noise = np.delete(found.relevance.ravel(), [0, 1, 2, 8, 9, 10, 16, 17, 18])
    assert np.abs(noise).max() < 5 * found.standard_errors["x"].max()


def test_similarity_is_iou_times_cosine_times_objectness():
    target = Detections(np.array([[0.0, 0, 2, 2]]), np.array([[1.0, 0.0]]), np.ones(1))
    others = Detections(
        np.array([[1.0, 0, 3, 2], [0, 0, 2, 2], [0, 0, 2, 2], [2, 2, 4, 4], [1, 1, 1, 1]]),
        np.array([[1.0, 0], [1, 1], [0, 1], [1, 0], [0, 0]]), np.array([1.0, 0.5, 1, 1, 1]),
    )  # fmt: skip
    np.testing.assert_allclose(others.similarity(target), [1 / 3, 0.5 / np.sqrt(2), 0, 0, 0], atol=1e-12)
    labelled = Detections(others.boxes, others.scores[:, :1], others.objectness, np.array([7, 7, 3, 7, 7]))
    own = Detections(target.boxes, np.ones((1, 1)), np.ones(1), np.array([7]))
    np.testing.assert_allclose(labelled.similarity(own), [1 / 3, 0.5, 0, 0, 0], atol=1e-12)


def test_how_detections_are_said_is_found_or_refused():
    outputs = {"b": np.zeros((1, 9, 4), np.float32), "s": np.zeros((1, 9, 3), np.float32), "l": np.zeros((1, 9))}
    found = reader_of(outputs, "s", "auto", "", "", False, "")
    assert (found.layout, found.boxes) == ("separate", "b")
    yolo = {"y": np.zeros((1, 84, 100), np.float32)}
    assert reader_of(yolo, "y", "auto", "", "", False, "").layout == "columns"
    with pytest.raises(UsageError, match=r"no detections are known in y \[1, 10\]"):
        reader_of({"y": np.zeros((1, 10), np.float32)}, "y", "auto", "", "", False, "")
    with pytest.raises(UnknownName, match="box"):
        reader_of(outputs, "s", "auto", "box", "", False, "")
    with pytest.raises(UsageError, match="they are for one score a box"):
        reader_of(outputs, "s", "auto", "", "l", False, "").read(outputs)
    logits = DetectionReader("s", "separate", "b", head="Softmax").read({**outputs, "s": normal(1, 9, 3)})
    np.testing.assert_allclose(logits.scores.sum(1), 1)


def test_a_detector_may_answer_another_number_of_boxes_each_time(tmp_path):
    """As many as there are bright pixels, without an axis of samples."""
    text = """g (float[1, 1, 8, 8] x) => (float[M, 4] boxes, float[M] scores) {
        f = Reshape (x, flat) on = Greater (f, half) i = NonZero (on) it = Transpose (i)
        s = GatherND (f, it) scores = Identity (s) b = Unsqueeze (s, last) boxes = Mul (b, box)
    }"""
    graph = net(text, flat=np.array([-1]), half=np.float32(0.5).reshape(()), last=np.array([1]),
                box=np.array([[0, 0, 1, 1]], np.float32))  # fmt: skip
    path = saved(graph, tmp_path)
    explainer = Explainer(path, "d_rise", explain="scores", kind="classification", **FEW)
    assert explainer.explain(np.ones((1, 1, 8, 8), np.float32), 0).relevance.any()
