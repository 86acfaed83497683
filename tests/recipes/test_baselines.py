"""What a search has to beat."""

from __future__ import annotations

from dataclasses import replace

from contracts.space_samples import pool

from evomerge.recipes.pool_info import UNIFORM, baseline_recipes
from evomerge.recipes.slices import Input


def test_every_model_and_their_average() -> None:
    found = baseline_recipes(pool())
    assert list(found) == ["math", "lang", "base", UNIFORM]
    assert {entry.inputs for entry in found["lang"].slices} == {(Input("lang", None, (("weight", 1.0),)),)}
    halves = tuple(Input(name, None, (("weight", 0.5),)) for name in ("math", "lang"))
    assert {entry.inputs for entry in found[UNIFORM].slices} == {halves}


def test_models_of_other_depths_have_their_own_and_no_average() -> None:
    found = baseline_recipes(replace(pool(4), depths=(("math", 2), ("lang", 5))))
    layers = {name: {e.slice.layer for e in recipe.slices} - {None} for name, recipe in found.items()}
    assert layers == {"math": {0, 1}, "lang": {0, 1, 2, 3, 4}, "base": {0, 1, 2, 3}}
