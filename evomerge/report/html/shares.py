"""How much of each source model is in every slice of a recipe, merges of merges multiplied out."""

from __future__ import annotations

from collections.abc import Mapping

from evomerge.recipes.method_spec import Value, scalars
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import Input, SliceId, SliceRecipe

Shares = dict[str, float]
_BY_PLACE = ("slerp", "nuslerp", "multislerp")


def number_of(value: Value | None, default: float = 1.0) -> float:
    """A parameter as one number; the mean of those that it has by tensor."""
    if value is None:
        return default
    found = [float(v) for v in scalars(value) if isinstance(v, int | float)]
    return sum(found) / len(found) if found else default


def weights_of(entry: SliceRecipe) -> list[tuple[Input, float]]:
    """The inputs of a slice with what they count; a base takes what is left to one."""
    own = dict(entry.parameters)
    if "t" in own and len(entry.inputs) == 2:
        t = number_of(own["t"])
        return [(entry.inputs[0], 1 - t), (entry.inputs[1], t)]
    weights = [number_of(dict(source.parameters).get("weight"), 1.0 / len(entry.inputs)) for source in entry.inputs]
    total = sum(weights)
    if own.get("normalize", entry.base is None) is True and total:
        weights = [weight / total for weight in weights]
    scale = number_of(own.get("lambda")) if entry.base is not None else 1.0
    found = [(source, scale * weight) for source, weight in zip(entry.inputs, weights, strict=True)]
    return found if entry.base is None else [*found, (entry.base, 1 - scale * sum(weights))]


def shares_of(recipe: Recipe) -> dict[SliceId, Shares]:
    """Every slice's shares of the source models; they add up to one where the methods' weights do.

    A share says how far along the way to a model a slice lies, whatever the way: spheres count as lines.
    """
    stages: dict[str, dict[SliceId, Shares]] = {}
    for name, stage in recipe.stages.items():
        stages[name] = _stage(stage, stages)
    return _stage(recipe, stages)


def _stage(recipe: Recipe, stages: Mapping[str, Mapping[SliceId, Shares]]) -> dict[SliceId, Shares]:
    found: dict[SliceId, Shares] = {}
    for entry in recipe.slices:
        shares: Shares = {}
        for source, weight in weights_of(entry):
            place = entry.slice
            if source.layer is not None and place.layer is not None:
                place = SliceId(place.component, source.layer)
            inner = stages[source.model].get(place, {}) if source.model in stages else {source.model: 1.0}
            for model, share in inner.items():
                shares[model] = shares.get(model, 0.0) + weight * share
        found[entry.slice] = shares
    return found
