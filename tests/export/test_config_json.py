"""Configurations of merged models: only dtype and depth change."""

from __future__ import annotations

from typing import Any

from evomerge.export.config_json import origins, with_dtype, with_layers
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import Input, ModelRef, SliceId, SliceRecipe


def test_the_dtype_is_said_where_it_was() -> None:
    config = {"_name_or_path": "/a/b", "torch_dtype": "float32", "text_config": {"dtype": "float32", "n": 1}, "n": 2}
    assert with_dtype(config, "bfloat16") == {
        "torch_dtype": "bfloat16",
        "text_config": {"dtype": "bfloat16", "n": 1},
        "n": 2,
    }
    assert config["torch_dtype"] == "float32"


def test_the_dtype_is_added_where_it_was_not() -> None:
    assert with_dtype({"rope": {"factor": 2}}, "float16") == {"rope": {"factor": 2}, "dtype": "float16"}


def test_lists_by_layer_follow_their_layers() -> None:
    config = {"n_layer": 3, "layer_types": ["full", "sliding", "linear"], "eos": [1, 2], "rope": {"n": 3}}
    lists = {
        "layer_types": ["full", "linear", "linear", "sliding"],
        "window": [None, 8, 8, None],  # of transformers, not in the file: said where layers differ
        "same": [1, 1, 1, 1],
    }
    assert with_layers(config, "n_layer", lists, 4) == {
        "n_layer": 4,
        "layer_types": ["full", "linear", "linear", "sliding"],
        "window": [None, 8, 8, None],
        "eos": [1, 2],
        "rope": {"n": 3},
    }


def test_the_depth_may_lie_in_a_part() -> None:
    config = {"text_config": {"num_hidden_layers": 2, "x": 1}, "vision_config": {"hidden": 4}}
    assert with_layers(config, "num_hidden_layers", {}, 1) == {
        "text_config": {"num_hidden_layers": 1, "x": 1},
        "vision_config": {"hidden": 4},
    }
    both = {"vision_config": {"num_hidden_layers": 2}, "text_config": {"x": 1}}  # a default, which is not written
    assert with_layers(both, "num_hidden_layers", {}, 3) == {
        "vision_config": {"num_hidden_layers": 2},
        "text_config": {"num_hidden_layers": 3, "x": 1},
    }


def test_layers_are_followed_through_intermediates() -> None:
    def stack(model: str, layers: list[int], **more: Any) -> Recipe:
        slices = [SliceRecipe(SliceId("attn", i), "passthrough", (Input(model, at),)) for i, at in enumerate(layers)]
        return Recipe((("a", ModelRef("a")),), tuple(slices), "float32", "a", **more)

    tall = stack("a", [0, 1, 1, 2])
    expected = {0: ("a", 2), 1: ("a", 2), 2: ("a", 1), 3: ("a", 0)}
    assert origins(stack("tall", [3, 3, 1, 0], intermediates=(("tall", tall),))) == expected


def test_ancestors_are_followed_once() -> None:
    models = (("a", ModelRef("a")),)
    recipe = Recipe(
        models, tuple(SliceRecipe(SliceId("attn", i), "linear", (Input("a"),)) for i in range(4)), "float32", "a"
    )
    for age in range(40):  # as a tree, 4 to the power of 40 layers
        name = f"age {age}"
        slices = tuple(SliceRecipe(SliceId("attn", i), "linear", (Input(name), Input(name))) for i in range(4))
        recipe = Recipe(models, slices, "float32", "a", intermediates=((name, recipe),))
    assert origins(recipe) == {i: ("a", i) for i in range(4)}
