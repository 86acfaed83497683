"""What methods read beside the tensors that they merge: statistics of data, magnitudes of a layer or a model."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from evomerge.errors import RecipeError
from evomerge.merge.methods import METHODS
from evomerge.merge.planning.slice_plan import Source
from evomerge.models.pool import Pool
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import SliceId, SliceRecipe

_HOW = "choose calibration data: calibration=text 'calibration.files=[my.jsonl]'"


def statistics_keys(recipe: Recipe, pool: Pool, entry: SliceRecipe, sources: Sequence[Source]) -> tuple[str, ...]:
    """The keys of the statistics that a slice's method reads of its sources, kind by kind, found before any merging.

    Raises:
        RecipeError: of a source there are none.
    """
    keys = []
    for kind, source in itertools.product(METHODS[entry.method].spec.kinds, sources):
        where = f"slice {entry.slice}: method {entry.method!r} reads statistics ({kind})"
        if source.made is not None:
            raise RecipeError(f"{where} of {source.model}", "models: of intermediates there are none", "merge models")
        key = recipe.calibration.key(source.model, kind) if recipe.calibration is not None else None
        if key is None:
            raise RecipeError(f"{where}, and there are none of {source.model}", "what evomerge calibrate makes", _HOW)
        pool.statistics_of(source.model, kind, key)
        keys.append(key)
    return tuple(keys)


def check_scope(slice_: SliceId, scope: str, sources: Sequence[Source], base: Source | None) -> None:
    """Refuse to rank magnitudes over a layer or a model that there is no telling what it consists of.

    Raises:
        RecipeError: a source that is made of others, or of another layer than the base.
    """
    given, do = f"slice {slice_} ranks magnitudes by scope {scope}", "set scope to tensor"
    for source in (*sources, *([base] if base is not None else [])):
        if source.made is not None:
            raise RecipeError(given, f"sources and base are models of the pool, {source.model} is made of some", do)
        if base is not None and source.layer != base.layer:
            layers = f"layer {source.layer} of {source.model}, layer {base.layer} of the base {base.model}"
            raise RecipeError(f"{given} and takes {layers}", "the same layer of both", do)
