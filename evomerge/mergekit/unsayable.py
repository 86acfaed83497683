"""Recipes as wholes for which mergekit has no words, with what to do in place of its file."""

from __future__ import annotations

from evomerge.errors import RecipeError
from evomerge.models.architecture.layout import Layout
from evomerge.recipes.dense import MERGED
from evomerge.recipes.recipe import Recipe

_INSTEAD = "`evomerge merge RUN OUT` writes the model"


def require_sayable(recipe: Recipe, layout: Layout) -> None:
    """Raise `RecipeError` for a recipe of a kind of models, or with parts, that mergekit does not have.

    Args:
        recipe: the recipe.
        layout: of the pool's models.
    """
    if layout.encoder:
        raise RecipeError("mergekit cannot express merges of encoder-decoders", "decoders and encoders", _INSTEAD)
    if recipe.network is not None:
        raise RecipeError("mergekit merges no parts of pipelines", "recipes of models that are merged whole", _INSTEAD)
    if recipe.heads is not None:
        tasks = _some(recipe.heads.tasks)
        raise RecipeError(
            f"mergekit merges all tensors of a model, and the recipe has heads of their own ({tasks})",
            "recipes of pools with pool.heads=null, whose models have heads alike",
            "`evomerge merge RUN OUT --task NAME` writes a task's model, with --all-tasks those of all",
        )
    if recipe.kept:
        raise RecipeError(
            f"mergekit merges all tensors of a model, and the recipe keeps {_some(recipe.kept)}",
            "recipes of pools with pool.kept=null",
            _INSTEAD,
        )
    if recipe.dense == MERGED:
        raise RecipeError(
            "mergekit merges models without dense layers behind them, and the recipe merges these",
            "recipes of pools with pool.dense=kept",
            _INSTEAD,
        )


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
