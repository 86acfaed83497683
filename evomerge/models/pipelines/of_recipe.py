"""The pool of a recipe that merges the networks of pipelines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from evomerge.models.checkpoints.pins import changed_since
from evomerge.models.pipelines.opening import open_pipelines
from evomerge.models.pool import Pool
from evomerge.models.pool_settings import raise_all
from evomerge.recipes.recipe import Recipe


def pipelines_of_recipe(recipe: Recipe, root: str | Path | None = None) -> Pool:
    """Open the pipelines of a recipe with a network, and check that they are the ones it was made from.

    Raises:
        PoolError: as `open_pipelines`; also when a network's content is not what the recipe's fingerprint says.
    """
    assert recipe.network is not None
    order = dict(recipe.models)
    entries = [entry for part in (recipe, *recipe.stages.values()) for entry in part.slices]
    bases = [entry.base.model for entry in entries if entry.base]
    base = recipe.config_from if recipe.config_from in bases and len(order) > 1 else None
    names = [recipe.config_from, *(name for name in order if name != recipe.config_from)]
    pool = open_pipelines(
        {name: order[name] for name in names},
        base,
        root,
        recipe.dtype,
        network=recipe.network.name,
        others=recipe.network.others,
        fingerprints=False,
    )
    raise_all([problem for name, ref in order.items() for problem in changed_since(name, ref, pool.checkpoints[name])])
    info = replace(pool.info, refs=tuple((name, order[name]) for name in names), network=recipe.network)
    return replace(pool, info=info)
