"""Whether a recipe describes a whole model of its pool's architecture."""

from __future__ import annotations

from evomerge.errors import RecipeError
from evomerge.models.architecture.layout import Layout
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import SliceId


def check_slices(recipe: Recipe, layout: Layout, whole: bool) -> None:
    """Every output slice exists in the architecture and none is missing, up to the recipe's own depth.

    Args:
        recipe: of the result, or of an intermediate.
        layout: of the pool.
        whole: whether it must have the pool's depth, as an encoder-decoder must, and what `Layout.fixed` is said of.
    """
    given = {entry.slice for entry in recipe.slices}
    depth = 1 + max((s.layer for s in given if s.layer is not None), default=-1)
    wanted = [s for s in layout.slices if s.layer is None or s.layer < depth]
    if depth > layout.layers:
        first = [s.component for s in layout.slices if s.layer == 0]
        wanted += [SliceId(component, i) for i in range(layout.layers, depth) for component in first]
    if whole and depth != layout.layers:
        raise RecipeError(
            f"the recipe has {depth} layers",
            layout.fixed or f"an encoder-decoder keeps its layers: {layout.layers} in both stacks",
        )
    missing = [s for s in wanted if s not in given]
    if missing or not depth:
        raise RecipeError(
            f"the recipe has no slice {missing[0]}" + (f" and lacks {len(missing) - 1} more" if missing[1:] else ""),
            f"a model of {layout.layers} layers has {len(layout.slices)} slices",
            "say for each slice how it is made",
        )
