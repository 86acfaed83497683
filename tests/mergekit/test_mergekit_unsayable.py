"""Recipes that no mergekit file means are refused, by slice and with the reason."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from mergekit_recipes import recipe_of

from evomerge.errors import RecipeError
from evomerge.mergekit.unsayable import require_sayable
from evomerge.mergekit.writer import to_mergekit
from evomerge.models.pool import Pool
from evomerge.recipes.heads import Heads
from evomerge.recipes.network import Network
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import Input, SliceId, SliceRecipe, parameters


def replaced(recipe: Recipe, **entries: SliceRecipe) -> Recipe:
    """The recipe with some slices replaced; ``layers_1_mlp`` stands for ``layers.1.mlp``."""
    changed = {e.slice: e for e in entries.values()}
    return Recipe(
        recipe.models, tuple(changed.get(e.slice, e) for e in recipe.slices), recipe.dtype, recipe.config_from
    )


MLP = SliceId("mlp", 1)
TWO = (Input("a", None, (("weight", 0.5),)), Input("b", None, (("weight", 0.5),)))


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (SliceRecipe(MLP, "linear", TWO), "its method is linear, embed has task_arithmetic"),
        (SliceRecipe(MLP, "task_arithmetic", TWO, base=Input("c")), "its base is .*c, layers.1.attn has .*base"),
        (SliceRecipe(MLP, "task_arithmetic", TWO, base=Input("base"), scale=0.5), "scaled by 0.5"),
        (
            SliceRecipe(MLP, "task_arithmetic", (Input("a", 2), TWO[1]), base=Input("base")),
            "it takes layer 2 of .*a, but layers.1.attn takes layer 1",
        ),
        (
            SliceRecipe(MLP, "task_arithmetic", (Input("a"), Input("a")), base=Input("base")),
            "a is an input twice",
        ),
        (
            SliceRecipe(
                MLP, "task_arithmetic", (*TWO, Input("base")), parameters({"normalize": True}), base=Input("base")
            ),
            "its base is also an input",
        ),
    ],
)
def test_what_mergekit_cannot_say_is_refused_by_slice(pool: Pool, entry: SliceRecipe, reason: str) -> None:
    recipe = replaced(recipe_of(pool, "task_arithmetic", "ab", lambda s, n, p: 0.5), entry=entry)
    with pytest.raises(RecipeError, match=f"slice layers.1.mlp: .*{reason}"):
        to_mergekit(recipe, pool.layout)


def test_a_third_model_in_a_slerp_layer_is_refused(pool: Pool) -> None:
    recipe = recipe_of(pool, "slerp", "ab", lambda s, n, p: 0.5)
    entry = SliceRecipe(MLP, "slerp", (Input("a"), Input("c")))
    with pytest.raises(RecipeError, match=r"slice layers\.1\.mlp: slerp takes two models"):
        to_mergekit(replaced(recipe, entry=entry), pool.layout)


def test_a_missing_slice_is_refused(pool: Pool) -> None:
    whole = recipe_of(pool, "linear", "ab", lambda s, n, p: 0.5)
    for missing in (SliceId("head"), SliceId("norm", 1)):
        rest = tuple(e for e in whole.slices if e.slice != missing)
        with pytest.raises(RecipeError, match=f"slice {missing}: the recipe leaves it out"):
            to_mergekit(Recipe(whole.models, rest, "float32", "base"), pool.layout)


def test_a_slice_of_an_intermediate_is_named_with_it(pool: Pool) -> None:
    whole = recipe_of(pool, "linear", "ab", lambda s, n, p: 0.5)
    bad = replaced(whole, entry=SliceRecipe(MLP, "ties", TWO, base=Input("base")))
    slices = tuple(SliceRecipe(s, "linear", (Input("both"), Input("c"))) for s in pool.info.slices)
    with pytest.raises(RecipeError, match=r"^intermediate both: mergekit cannot express slice layers\.1\.mlp: "):
        to_mergekit(replace(whole, slices=slices, intermediates=(("both", bad),)), pool.layout)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            {"config_from": "a", "heads": Heads(("score.weight",), ("a", "b"))},
            r"heads of their own \(a, b\); .*OUT --task NAME` writes",
        ),
        ({"kept": ("vision.*",)}, r"keeps vision\.\*; .*pool\.kept=null; `evomerge merge RUN OUT` writes the model"),
        ({"dense": "merged"}, r"dense layers behind them.*pool\.dense=kept; `evomerge merge RUN OUT` writes the model"),
        ({"network": Network("unet", "base")}, r"no parts of pipelines; .*; `evomerge merge RUN OUT` writes the model"),
    ],
)
def test_what_mergekit_cannot_say_has_a_next_step(pool: Pool, more: dict[str, Any], said: str) -> None:
    recipe = recipe_of(pool, "linear", "ab", lambda s, n, p: 0.5)
    require_sayable(recipe, pool.layout)
    with pytest.raises(RecipeError, match=said):
        require_sayable(replace(recipe, **more), pool.layout)


def test_encoder_decoders_have_a_next_step(pool: Pool) -> None:
    with pytest.raises(RecipeError, match=r"encoder-decoders; .*; `evomerge merge RUN OUT` writes the model"):
        require_sayable(recipe_of(pool, "linear", "ab", lambda s, n, p: 0.5), replace(pool.layout, encoder=1))
