"""The models that a search has to beat: those of its pool, and their plain average."""

from __future__ import annotations

from collections.abc import Iterator

from evomerge.recipe import Input, PoolInfo, Recipe, SliceId, SliceRecipe

UNIFORM = "uniform average"


def baseline_recipes(info: PoolInfo) -> dict[str, Recipe]:
    """Recipes by name: every source, the base, and the uniform average where the models are equally deep."""
    names = [*info.sources, *([info.base] if info.base else [])]
    recipes = {name: _alone(info, name) for name in names}
    if not info.uneven:
        recipes[UNIFORM] = info.linear(dict.fromkeys(info.sources, 1.0 / len(info.sources)))
    return recipes


def _alone(info: PoolInfo, name: str) -> Recipe:
    """A model as it is, with all the layers that it has."""
    inputs = (Input(name, None, (("weight", 1.0),)),)
    return info.recipe(
        SliceRecipe(slice_, "linear", inputs, (("normalize", False),)) for slice_ in _slices(info, info.depth(name))
    )


def _slices(info: PoolInfo, depth: int) -> Iterator[SliceId]:
    """The slices of a model this deep: layers beyond those of `info` are like its last."""
    last = [s.component for s in info.slices if s.layer == info.layers - 1]
    for slice_ in info.slices:
        if slice_.layer is None or slice_.layer < depth:
            yield slice_
    for layer in range(info.layers, depth):
        yield from (SliceId(component, layer) for component in last)
