"""Recipes to write, and the documents that are written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import yaml

from evomerge.merge.methods import specs
from evomerge.mergekit.forms import FORMS
from evomerge.models.pool import Pool
from evomerge.recipes.recipe import Recipe
from evomerge.recipes.slices import Input, SliceId, SliceRecipe, parameters

READINGS = {m: {k: v for k, v in form.readings.items() if k != "weight"} for m, form in FORMS.items()}


def recipe_of(
    pool: Pool,
    method: str,
    names: Iterable[str],
    value: Callable[[SliceId, str, str], float],
    shared: Callable[[SliceId], Mapping[str, Any]] = lambda slice_: {},
) -> Recipe:
    """`method` on every slice; `value` gives each input's parameters, `shared` the others."""
    spec, names = specs()[method], tuple(names)
    per_input = [p.name for p in spec.parameters if p.per_input]
    return pool.info.recipe(
        SliceRecipe(
            slice_,
            method,
            tuple(Input(n, None, parameters({p: value(slice_, n, p) for p in per_input})) for n in names),
            parameters({**READINGS.get(method, {}), **shared(slice_)}),
            Input("base") if spec.base == "required" else None,
        )
        for slice_ in pool.layout.slices
    )


def document(text: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded
