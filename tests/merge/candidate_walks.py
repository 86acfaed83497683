"""Random walks through candidates as searches make them: small steps, crossovers, layers in another order, repeats."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from evomerge.models.pool import Pool
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import Input, SliceId, SliceRecipe, parameters

Slices = dict[SliceId, SliceRecipe]
_METHODS = ("source", "linear", "task_arithmetic", "ties", "dare_ties", "stage")
_WEIGHTS = (0.0, 0.25, 0.5)


def walk(pool: Pool, rng: np.random.Generator, steps: int) -> Iterator[Recipe]:
    """Recipes, each near one of those before; values are few, so that slices come back."""
    seen = [{s: random_slice(pool, rng, s) for s in pool.info.slices}]
    yield recipe_of(pool, seen[0])
    for _ in range(steps - 1):
        kind = int(rng.integers(5))
        new = dict(seen[-1])
        if kind == 0:
            for number in rng.choice(len(pool.info.slices), 2):
                changed = pool.info.slices[number]
                new[changed] = random_slice(pool, rng, changed)
        elif kind == 1:
            other = seen[rng.integers(len(seen))]
            new = {s: other[s] if rng.random() < 0.5 else entry for s, entry in new.items()}
        elif kind == 2:
            layers = rng.integers(0, pool.info.layers, pool.info.layers)
            new = {s: _moved(entry, None if s.layer is None else int(layers[s.layer])) for s, entry in new.items()}
        elif kind == 3:
            new = seen[rng.integers(len(seen))]
        else:
            name = str(rng.choice(["base", "a", "b"]))
            new = {s: SliceRecipe(s, "linear", (Input(name),)) for s in new}
        seen.append(new)
        yield recipe_of(pool, new)


def random_slice(pool: Pool, rng: np.random.Generator, slice_: SliceId) -> SliceRecipe:
    method = str(rng.choice(_METHODS))
    if method == "source":
        return SliceRecipe(slice_, "linear", (Input(str(rng.choice(["base", "a", "b"]))),))
    if method == "stage":
        name = str(rng.choice(["one", "two"]))
        inputs = (Input(name), Input("b", None, parameters({"weight": 0.5})))[: int(rng.integers(1, 3))]
        return SliceRecipe(slice_, "linear", inputs)
    more = {"density": 0.5} if method in ("ties", "dare_ties") else {}
    weights = rng.choice(_WEIGHTS, 2) if method != "linear" else rng.choice(_WEIGHTS[1:], 2)
    inputs = tuple(Input(m, None, parameters({"weight": float(w), **more})) for m, w in zip("ab", weights, strict=True))
    return SliceRecipe(slice_, method, inputs, (), None if method == "linear" else Input("base"))


def recipe_of(pool: Pool, slices: Slices) -> Recipe:
    used = {i.model for entry in slices.values() for i in entry.inputs}
    stages = tuple((name, _stage(pool, weight)) for name, weight in (("one", 0.25), ("two", 0.75)) if name in used)
    info = pool.info
    return Recipe(info.refs, tuple(slices.values()), info.dtype, info.config_from, intermediates=stages)


def _stage(pool: Pool, weight: float) -> Recipe:
    return pool.info.linear({"a": weight, "b": 1 - weight})


def _moved(entry: SliceRecipe, layer: int | None) -> SliceRecipe:
    """The same of another layer of every source."""
    base = None if entry.base is None else Input(entry.base.model, layer)
    inputs = tuple(Input(i.model, layer, i.parameters) for i in entry.inputs)
    return SliceRecipe(entry.slice, entry.method, inputs, entry.parameters, base)
