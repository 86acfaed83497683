"""Recipes that a search begins with, as recipes over its own pool."""

from __future__ import annotations

from dataclasses import replace

from evomerge.errors import RecipeError, nearest
from evomerge.recipes.pool_info import PoolInfo
from evomerge.recipes.recipe import Recipe


def adopted(recipe: Recipe, pool: PoolInfo) -> Recipe:
    """A recipe from elsewhere with this pool's models, under the names that both have for them.

    Raises:
        RecipeError: a model that the pool does not have, or has with other content; another dtype or other slices.
    """
    own = dict(pool.refs)
    for name, ref in recipe.models:
        if name not in own:
            raise RecipeError(f"its model {name!r} is not in the pool", nearest(name, own))
        if ref.fingerprint and own[name].fingerprint and ref.fingerprint != own[name].fingerprint:
            raise RecipeError(f"its model {name!r} has other content than the pool's", "the same models")
    if recipe.dtype != pool.dtype:
        raise RecipeError(f"its dtype is {recipe.dtype}", f"the pool's, {pool.dtype}")
    if [entry.slice for entry in recipe.slices] != sorted(pool.slices, key=lambda slice_: slice_.order):
        raise RecipeError(f"it makes {len(recipe.slices)} slices", f"the {len(pool.slices)} of the pool's models")
    made: dict[str, Recipe] = {}
    for name, stage in (*recipe.stages.items(), ("", recipe)):
        inner = tuple((inner, made[inner]) for inner, _ in stage.intermediates)
        made[name] = replace(stage, models=pool.refs, intermediates=inner)
    return made[""]
