"""Laws of names: what is given goes to the input of its name, or is refused; never to another, never nowhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest
from nets import MODELS, compiled, net, normal, relu_net
from onnx import numpy_helper

from onnxplain import Explainer, inputs
from onnxplain.errors import InputError, UnknownName, UsageError
from onnxplain.inputs import InputSpec
from onnxplain.inputs.naming import match
from onnxplain.inputs.tables import from_table

X = InputSpec("x", "float32", ("N", 3))
A, B = InputSpec("a", "float32", ("N", 1)), InputSpec("b", "float32", ("N", 1))
VALUES = np.arange(6, dtype=np.float32).reshape(2, 3)


@dataclass
class Table:
    """As much of a DataFrame as is used: pandas is no dependency."""

    data: dict[str, Any]

    @property
    def columns(self):
        return list(self.data)

    def __getitem__(self, name):
        return self.data[name]

    def to_numpy(self):
        return np.stack([np.asarray(column) for column in self.data.values()], 1)


# names


@pytest.mark.parametrize(
    "given, wanted, order",
    [
        (["b", "a"], ["a", "b"], [1, 0]),
        (["A", "b"], ["a", "b"], [0, 1]),
        (["a", "A"], ["A", "a"], [1, 0]),
        (["Input"], ["input"], [0]),
    ],
)
def test_a_name_is_equal_or_differs_in_case_from_the_only_one(given, wanted, order):
    assert match(given, wanted, "input", "here") == order


@pytest.mark.parametrize(
    "given, wanted, says",
    [
        (["imput"], ["input"], r"no input is named 'imput' \(did you mean input\?\); input 'input' is missing"),
        (["x", "labels"], ["x"], "no input is named 'labels'"),
        (["a"], ["a", "b"], "input 'b' is missing"),
        (["a", "a"], ["a"], "'a' is there twice"),
        (["aA", "Aa"], ["AA"], "no input is named 'aA', 'Aa'"),
        (["AA"], ["aA", "Aa"], "no input is named 'AA'.*'aA', 'Aa' is missing"),
    ],
)
def test_names_that_are_not_the_wanted_ones_are_refused_by_name(given, wanted, says):
    with pytest.raises(InputError, match=says):
        match(given, wanted, "input", "here")


@pytest.mark.parametrize(
    "arrays, says",
    [
        ({"y": VALUES}, "no input is named 'y'"),
        ({"x": VALUES, "y": VALUES}, "no input is named 'y'"),
        ({"": VALUES, "x": VALUES}, "Give arrays by name"),
        ({}, "input 'x' is missing"),
        ({"x": np.zeros(2, [("p", "f4"), ("q", "f4")])}, "named fields"),
    ],
)
def test_inputs_bind_by_name_or_not_at_all(arrays, says):
    with pytest.raises(InputError, match=says):
        inputs.bind(arrays, [X])


def test_a_lone_array_without_a_name_is_the_only_input():
    np.testing.assert_array_equal(inputs.bind({"": VALUES}, [X])["x"], VALUES)
    np.testing.assert_array_equal(inputs.bind({"X": VALUES}, [X])["x"], VALUES)
    with pytest.raises(InputError, match="Give arrays by name"):
        inputs.bind({"": VALUES}, [A, B])


def test_an_explainer_takes_no_unknown_feed_and_no_unknown_seed(tmp_path):
    explainer = compiled(relu_net(), tmp_path, "gradient").explainer
    x, seed = normal(1, 2, 6, 6), np.eye(4, dtype=np.float32)[:1]
    for feeds in ({"input": x}, {"x": x, "mask": x}):
        with pytest.raises(InputError, match="no input is named"):
            explainer.explain(feeds)
        with pytest.raises(InputError, match="no input is named"):
            explainer.run(feeds, seed)
    for given in ({"logits": seed, "other": seed}, {"other": seed}, {"logits": seed, "logits.seed": seed}, {}):
        with pytest.raises(InputError, match="seed"):
            explainer.run(x, given)
    for name in ("logits", "logits.seed"):
        assert explainer.run(x, {name: seed})["x.relevance"].shape == x.shape


# files


def test_an_archive_with_more_than_the_inputs_is_refused_and_says_how_to_choose(tmp_path):
    np.savez(tmp_path / "d.npz", x=VALUES, labels=np.arange(2))
    np.savez(tmp_path / "wrong.npz", images=VALUES)
    path = tmp_path / "d.npz"
    for given in (path, f"x={path}"):
        with pytest.raises(InputError, match=rf"'labels'.*x={path}:ARRAY"):
            inputs.load([given], [X])
    with pytest.raises(InputError, match=r"no input is named 'images'.*:ARRAY"):
        inputs.load([tmp_path / "wrong.npz"], [X])
    for given in (f"{path}:x", f"x={path}:x", f"x={tmp_path / 'wrong.npz'}", f"{tmp_path / 'wr*.npz'}:images"):
        np.testing.assert_array_equal(inputs.load([given], [X]).feeds["x"], VALUES)
    with pytest.raises(InputError, match="no array named 'y'; there is x, labels"):
        inputs.load([f"{path}:y"], [X])


def test_arrays_of_one_archive_go_to_the_inputs_they_are_given_to(tmp_path):
    path = tmp_path / "d.npz"
    np.savez(path, p=np.ones((1, 1), np.float32), q=np.zeros((1, 1), np.float32))
    with pytest.raises(InputError, match=r"no input is named 'p', 'q'.*a=.*d\.npz:ARRAY"):
        inputs.load([path], [A, B])
    for files in ([f"a={path}:p", f"b={path}:q"], [f"{path}:p", f"{path}:q"]):
        feeds = inputs.load(files, [A, B]).feeds
        assert (feeds["a"].item(), feeds["b"].item()) == (1, 0)


def test_a_tensor_file_of_another_name_is_refused_unless_said(tmp_path):
    (tmp_path / "t.pb").write_bytes(numpy_helper.from_array(VALUES, "y").SerializeToString())
    with pytest.raises(InputError, match=rf"no input is named 'y'.*x={tmp_path / 't.pb'}"):
        inputs.load([tmp_path / "t.pb"], [X])
    np.testing.assert_array_equal(inputs.load([f"x={tmp_path / 't.pb'}"], [X]).feeds["x"], VALUES)


def test_a_file_beside_an_assigned_one_is_not_forgotten(tmp_path):
    np.save(tmp_path / "a.npy", VALUES)
    with pytest.raises(InputError, match="in the one way"):
        inputs.load([f"x={tmp_path / 'a.npy'}", tmp_path / "a.npy"], [X])


# tables


def test_columns_of_a_csv_stand_in_the_models_order(tmp_path):
    (tmp_path / "a.csv").write_text("p,q,r\n0,1,2\n")
    (tmp_path / "b.csv").write_text("r,p,q\n5,3,4\n")
    known = {"x": ("p", "q", "r")}
    loaded = inputs.load([tmp_path / "b.csv"], [X], columns=known)
    assert loaded.feeds["x"].tolist() == [[3, 4, 5]] and loaded.features["x"] == ("p", "q", "r") and not loaded.notes
    together = inputs.load([tmp_path / "a.csv", tmp_path / "b.csv"], [X])
    np.testing.assert_array_equal(together.feeds["x"], VALUES)  # the second file's as the first's
    assert "not known" in together.notes[0] and len(together.notes) == 1


@pytest.mark.parametrize(
    "header, says",
    [
        ("p,q,s", "no column is named 's'.*'r' is missing"),
        ("p,q,r,s", "no column is named 's'"),
        ("p,q", "column 'r' is missing"),
        ("p,q,p", "two columns are called 'p'"),
    ],
)
def test_columns_that_are_not_the_models_are_refused_by_name(tmp_path, header, says):
    (tmp_path / "a.csv").write_text(f"{header}\n{','.join('1' for _ in header.split(','))}\n")
    with pytest.raises(InputError, match=says):
        inputs.load([tmp_path / "a.csv"], [X], columns={"x": ("p", "q", "r")})


def test_a_csv_for_several_inputs_has_a_column_for_each_and_no_other(tmp_path):
    (tmp_path / "a.csv").write_text("b,a,id\n1,2,3\n")
    with pytest.raises(InputError, match="no input is named 'id'"):
        inputs.load([tmp_path / "a.csv"], [A, B])


def test_a_table_is_taken_by_the_names_of_its_columns():
    table = Table({"r": [2.0, 5.0], "p": [0.0, 3.0], "q": [1.0, 4.0]})
    np.testing.assert_array_equal(from_table(table, [X], {"x": ("p", "q", "r")})["x"], VALUES)
    two = from_table(Table({"b": [1.0], "a": [2.0]}), [A, B], {})
    assert (two["a"].tolist(), two["b"].tolist()) == ([[2]], [[1]])
    cells = from_table(Table({"cells": [VALUES[0], VALUES[1]]}), [X], {})
    np.testing.assert_array_equal(cells["x"], VALUES)


@pytest.mark.parametrize(
    "table, specs, columns, says",
    [
        (Table({"p": [0.0], "q": [1.0], "r": [2.0]}), [X], {}, "names of the model's are not known.*to_numpy"),
        (Table({"p": [0.0], "q": [1.0]}), [X], {"x": ("p", "q", "r")}, "column 'r' is missing"),
        (Table({"p": [0.0], "q": [1], "r": [2], "id": [3]}), [X], {"x": ("p", "q", "r")}, "no column is named 'id'"),
        (Table({"a": [0.0]}), [A, B], {}, "column 'b' is missing"),
        (Table({"a": [0.0], "b": [0.0], "c": [0.0]}), [A, B], {}, "no column is named 'c'"),
        (Table({"n": [1.5]}), [InputSpec("n", "int64", ("N", 1))], {}, "cannot hold"),
    ],
)
def test_a_table_whose_columns_are_not_the_models_is_refused(table, specs, columns, says):
    with pytest.raises(InputError, match=says):
        from_table(table, specs, columns)


def test_a_table_in_another_order_gives_the_same_scores(tmp_path):
    onnx.save(net("g (float[N, 3] x) => (float[N, 2] y) { y = MatMul (x, w) }", w=normal(3, 2)), tmp_path / "m.onnx")
    explainer = Explainer(tmp_path / "m.onnx", "gradient", columns=["p", "q", "r"])
    expected = explainer.explain(VALUES).scores
    shuffled = Table({"r": VALUES[:, 2], "p": VALUES[:, 0], "q": VALUES[:, 1]})
    np.testing.assert_array_equal(explainer.explain(shuffled).scores, expected)
    with pytest.raises(InputError, match="not known"):
        Explainer(tmp_path / "m.onnx", "gradient").explain(shuffled)
    with pytest.raises(UnknownName, match="columns"):
        Explainer(tmp_path / "m.onnx", "gradient", columns={"z": ["p"]})


def test_model_toml_names_the_columns(tmp_path):
    (tmp_path / "m.toml").write_text('[input]\nfeatures = ["p", "q"]\n[inputs.b]\nfeatures = ["r"]\nscale = 2\n')
    settings = inputs.load_settings(tmp_path / "m.toml")
    assert settings.columns("a", 0) == ("p", "q") and settings.columns("b", 1) == ("r",)
    assert settings.input is None and settings.picture("b", 1).scale == 2, "features alone say nothing of pictures"
    for wrong in ('"p"', '["p", "p"]', "[]", "[1]"):
        (tmp_path / "m.toml").write_text(f"[input]\nfeatures = {wrong}\n")
        with pytest.raises(UsageError, match="features"):
            inputs.load_settings(tmp_path / "m.toml")


@pytest.mark.parametrize("name, file", [("iris_mlp", "flowers"), ("bc_logreg", "cells")])
def test_packaged_tables_have_the_columns_their_model_names(name, file):
    known = inputs.load_settings(MODELS / name / "model.toml").columns("X")
    spec = InputSpec("X", "float32", ("N", len(known)))
    loaded = inputs.load([MODELS / name / "samples" / f"{file}.csv"], [spec], columns={"X": known})
    np.testing.assert_array_equal(loaded.feeds["X"], np.load(MODELS / name / "samples" / f"{file}.npz")["X"])
