"""The models that a search has to beat: those of its pool, and their plain average."""

from __future__ import annotations

from evomerge.recipe import PoolInfo, Recipe

UNIFORM = "uniform average"


def baseline_recipes(info: PoolInfo) -> dict[str, Recipe]:
    """Recipes by name: every source, the base, and the uniform average where the models are equally deep."""
    names = [*info.sources, *([info.base] if info.base else [])]
    recipes = {name: info.linear({name: 1.0}) for name in names}
    if not info.uneven:
        recipes[UNIFORM] = info.linear(dict.fromkeys(info.sources, 1.0 / len(info.sources)))
    return recipes
