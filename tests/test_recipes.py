"""A recipe says the same in Python, in TOML, in a message and on a command line, and has one digest."""

from __future__ import annotations

import numpy as np
import pytest
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct

from onnxplain.composites import parse_assignments
from onnxplain.errors import InputError, UnknownName, UsageError
from onnxplain.recipes import Recipe, named, recipe_names


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_survives_every_form(name, tmp_path):
    recipe = named(name)
    (tmp_path / "r.toml").write_text(recipe.toml())
    message = Struct()
    message.update(recipe.content())
    back = json_format.MessageToDict(message)
    assert Recipe.read(tmp_path / "r.toml") == recipe == Recipe.of(recipe.content()) == Recipe.of(back)
    assert recipe.title == name or name.startswith(recipe.title)
    assert named(recipe.title) == recipe


def test_names_and_digests_tell_recipes_apart():
    recipes = {named(name) for name in recipe_names()}
    assert len(recipes) == len({recipe.digest for recipe in recipes}) == len(recipe_names())


def test_what_is_left_to_defaults_is_the_same_as_what_is_said():
    assert Recipe("lrp") == Recipe("lrp", {"composite": "default", "rules": []})
    assert (
        Recipe("integrated_gradients").digest == Recipe("integrated_gradients", {"steps": 50}, named("gradient")).digest
    )
    assert Recipe("integrated_gradients", {"steps": "30"}) == Recipe("integrated_gradients", {"steps": 30.0})
    assert Recipe("integrated_gradients", {"steps": 51}).digest != Recipe("integrated_gradients").digest


@pytest.mark.parametrize("text", ["epsilon", "epsilon()", "epsilon(epsilon=1e-06)", " epsilon ( epsilon = 0.000001 ) "])
def test_a_composite_has_one_text_however_much_is_said(text):
    assert Recipe("lrp", {"composite": text}) == named("lrp-epsilon")
    assert Recipe("lrp", {"composite": "epsilon(epsilon=0.1)"}).title == "lrp-epsilon(epsilon=0.1)"
    assert named("lrp-epsilon(epsilon=0.1)").options["composite"] == "epsilon(epsilon=0.1)"
    assert named("lrp-default") == Recipe("lrp") and Recipe("smooth_grad", base="lrp") == named("smooth_grad-lrp")


@pytest.mark.parametrize(
    "name", ["nothing", "lrp-nothing", "gradient-epsilon", "lrp-none", "smooth_grad-smooth_grad", ""]
)
def test_a_name_of_no_recipe_is_refused(name):
    with pytest.raises(UsageError):
        named(name)


@pytest.mark.parametrize(
    "text",
    [
        "epsilon(epsilon=-1)",
        "epsilon(epsilon=1e999)",
        "epsilon(epsilon=None)",
        "epsilon(epsilon=[1,2])",
        "epsilon(x=1)",
    ],
)
def test_an_option_of_a_composite_that_means_nothing_is_refused(text):
    for make in (lambda: Recipe("lrp", {"composite": text}), lambda: parse_assignments([f"type:Gemm={text}"])):
        with pytest.raises(UsageError, match="epsilon"):
            make()


def test_numpys_numbers_are_numbers():
    options = {"steps": np.int64(20), "baseline": np.array([0.5, 1.0])}
    assert Recipe.asked("integrated_gradients", **options) == Recipe(
        "integrated_gradients", {"steps": 20, "baseline": (0.5, 1.0)}
    )
    with pytest.raises(UsageError, match="a list of numbers"):
        Recipe.asked("integrated_gradients", baseline=np.zeros((2, 2)))


def test_a_base_is_a_name_or_a_table():
    by_name = Recipe.of({"method": "smooth_grad", "base": "lrp-epsilon"})
    by_table = Recipe.of({"method": "smooth_grad", "base": {"method": "lrp", "composite": "epsilon"}})
    assert by_name == by_table == named("smooth_grad-lrp-epsilon") and by_name.one_pass == named("lrp-epsilon")


@pytest.mark.parametrize(
    "content, error, says",
    [
        ({"method": "lrp", "composit": "epsilon"}, UnknownName, "Did you mean composite"),
        ({"method": "lrp", "steps": 3}, UsageError, "takes no steps"),
        ({"method": "lrp", "base": "gradient"}, UsageError, "takes no base: it is one-pass"),
        ({"method": "smooth_grad", "base": "smooth_grad"}, UsageError, "base of smooth_grad is a one-pass method"),
        ({"method": "smooth_grad", "base": 3}, UsageError, "base is the name of a recipe or a table"),
        ({"method": "smooth_grad", "noise": -1}, UsageError, "a number at least 0"),
        ({"method": "smooth_grad", "noise": True}, UsageError, "noise is a number"),
        ({"method": "smooth_grad", "average": "median"}, UsageError, "mean or square or variance"),
        ({"method": "smooth_grad", "samples": 2.5}, UsageError, "samples is a whole number"),
        ({"method": "lrp", "rules": "first=flat"}, UsageError, "rules is a list"),
        ({"method": "lrp", "composite": 3}, UsageError, "composite is a name"),
        ({"method": 3}, UsageError, "method is a name"),
    ],
)
def test_a_recipe_that_cannot_be_is_one_line(content, error, says):
    with pytest.raises(error, match=says):
        Recipe.of(content)


def test_a_file_that_is_none_is_one_line(tmp_path):
    with pytest.raises(InputError, match="cannot read the recipe"):
        Recipe.read(tmp_path / "none.toml")
